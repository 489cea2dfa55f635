"""A resolved job to its result: every stage in order. A local run, a sweep, a container: all call `run`.

`python -m nanolit.jobs.execute job.yaml [result.json]` does the same for a job on disk.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from nanolit.config.build import build
from nanolit.config.names import decisive_settings, difference, tokenizer_folder
from nanolit.config.schema import Job
from nanolit.config.stored import read_job, write_job
from nanolit.jobs.origin import finished, origin
from nanolit.jobs.processes import (
    WAIT_SECONDS,
    Node,
    clean_environment,
    sigterm_interrupts,
    supervise,
    this_node,
    torchrun,
)
from nanolit.jobs.sources import check_sources, hub_forbidden
from nanolit.machine.locks import held
from nanolit.machine.paths import (
    dataset_folder,
    read_json,
    run_folder,
    stage_folder,
    write_json,
)
from nanolit.planning.batch import BatchPlan
from nanolit.planning.derivation import BasePlan, Plan, TokenizerPlan, as_json
from nanolit.planning.micro_batch import is_auto, tried
from nanolit.planning.plans import Plans, fresh_plan, fresh_plans, keep_stored
from nanolit.planning.ranks import num_ranks
from nanolit.planning.show import plan_table
from nanolit.report.card import final_table, write_report

Result = dict[str, Any]
WORKER = "nanolit.jobs.worker"
TRIAL = "nanolit.jobs.trial"


def run(job: Job, plans: Plans | None = None) -> Result:
    """Run the stages in order and return the last result, or that of the first that doesn't end well.

    Errors the user can fix are returned, never raised: {"status": "failed", "error": …}. `plans` are those
    of the job's stages, if they have been derived already.
    """
    try:
        node = Node() if under_torchrun() else this_node(nodes=job["cluster"]["nodes"])
        if node.rank:
            return follow(job, node)
        check_root(job)
        lock = run_folder(job["root"], job["run"]) / ".lock"
        with (
            hub_forbidden(job["offline"]),
            held(lock, busy=f"run {job['run']} is in use")
            if is_rank_zero()
            else held_by_rank_zero() as keep_open,
        ):
            plans = plans or fresh_plans(job)
            check_stages(job, plans)
            if not under_torchrun():
                plans = try_micro_batches(job, plans)
            return run_stages(job, training_plans(job, plans), node, keep_open)
    except (ValueError, OSError) as error:
        return {"status": "failed", "run": job["run"], "error": str(error)}


def follow(job: Job, node: Node) -> Result:
    """On a machine but the first of several: its ranks of every stage, and nothing else.

    The first machine makes the inputs and keeps the records; torchrun waits for it.
    """
    result: Result = {"status": "done", "run": job["run"]}
    with tempfile.TemporaryDirectory() as folder:
        for stage in job["stages"]:
            if stage == "tokenizer" or finished(job["root"], job["run"], stage):
                continue
            write_job(Path(folder) / "job.yaml", job)
            write_json(Path(folder) / "plan.json", as_json(keep_stored(job, fresh_plan(job, stage))))
            result = run_ranks(job, stage, Path(folder), node=node)
            if result["status"] != "done" or result.get("asked_to_stop"):
                break
    return {**result, "node": node.rank}


def training_plans(job: Job, plans: Plans) -> dict[str, Plan]:
    """Return the plans that training uses, the tokenizer's first where it is made first."""
    stages = {stage: plans.get(stage) or fresh_plan(job, stage) for stage in with_tokenizer(job)}
    return {stage: keep_stored(job, plan) for stage, plan in stages.items()}


def run_stages(job: Job, plans: Plans, node: Node, keep_open: list[int]) -> Result:
    """Run the stages of `plans` in order, up to one that doesn't end well."""
    result: Result = {}
    stages = list(plans)
    try:
        fetch_data(job, plans)
    except KeyboardInterrupt:
        error = "stopped while the data was fetched; the same command goes on from there"
        return {"status": "interrupted", "run": job["run"], "error": error}
    for stage, following in zip(stages, [*stages[1:], None], strict=True):
        if stage == "tokenizer":
            result = make_tokenizer(job, plans[stage])
        else:
            result = run_stage(job, stage, plans, node=node, keep_open=keep_open)
        if result["status"] != "done":
            return result
        if result.get("asked_to_stop") and following:
            error = f"stopped after {stage} was finished; the same command goes on with {following}"
            return {**result, "status": "interrupted", "error": error}
    if is_rank_zero():
        root = Path(job["root"])
        path = write_report(root, job["run"])
        say(f"\n{final_table(root, job['run'])}\nreport in {path}")
    return result


def with_tokenizer(job: Job) -> list[str]:
    """The job's stages, after the tokenizer where a base is still to be trained from new weights."""
    first = job["stages"][0]
    if first == "base" and not job["start_from"] and not finished(job["root"], job["run"], first):
        return ["tokenizer", *job["stages"]]
    return list(job["stages"])


def fetch_data(job: Job, plans: Plans) -> None:
    """Bring the shards that the stages still to run read to this machine: once, whoever comes first."""
    made = (tokenizer_folder(job) / "tokenizer.json").exists() and job["phase"] != "tokenizer"
    reading = [
        plan
        for plan in plans.values()
        if (isinstance(plan, TokenizerPlan) and not made)
        or (isinstance(plan, BasePlan) and not finished(job["root"], job["run"], plan.stage))
    ]
    if not reading:
        return
    num_shards = max(plan.shards for plan in reading)
    dataset = build(job["data"])
    with sigterm_interrupts(), held(dataset_folder(job["root"], dataset.name) / ".lock", wait=True):
        dataset.fetch(Path(job["root"]), num_shards=num_shards, offline=job["offline"])


def make_tokenizer(job: Job, plan: Plan) -> Result:
    """The job's tokenizer, trained unless a run with the same data and settings has already done so."""
    folder = tokenizer_folder(job)
    made = {"status": "done", "stage": "tokenizer", "run": job["run"], "tokenizer": folder.name}
    if not is_rank_zero():
        wait_for(folder / "tokenizer.json", seconds=WAIT_SECONDS)
        return made
    busy = folder.with_name(f".{folder.name}.lock")
    with held(busy, wait=True):
        if (folder / "tokenizer.json").exists() and job["phase"] != "tokenizer":
            say(f"tokenizer: {folder.name} is there")
            return made
        write_plan(job, plan)
        return run_in_process(job, plan)


def run_stage(job: Job, stage: str, plans: Plans, *, node: Node, keep_open: list[int]) -> Result:
    """Run one stage, on one device in this process, on several under torchrun, unless it is finished."""
    if result := finished(job["root"], job["run"], stage):
        say(f"{stage}: run {job['run']} has finished it{score(result)}")
        return {**result, "asked_to_stop": False}
    index = job["stages"].index(cast(Any, stage))
    shown = plans[job["stages"][index - 1]] if index else None
    folder = write_plan(job, plans[stage], known=shown)
    if num_ranks(job) == 1 or under_torchrun():
        return run_in_process(job, plans[stage])
    return run_ranks(job, stage, folder, node=node, keep_open=keep_open)


def run_ranks(job: Job, stage: str, folder: Path, *, node: Node, keep_open: Sequence[int] = ()) -> Result:
    """Run this machine's ranks of a stage under torchrun; `folder` holds its job.yaml and plan.json."""
    devices, interrupted = job["cluster"]["devices"], False
    # A port for each stage, so that no machine finds the store of the stage before.
    port = node.master_port + job["recipe"]["stages"].index(cast(Any, stage))
    command = torchrun(
        WORKER,
        [str(folder)],
        devices=devices,
        nodes=job["cluster"]["nodes"],
        node=replace(node, master_port=port),
    )
    try:
        code = supervise(command, environment=clean_environment(devices=devices), keep_open=keep_open)
    except KeyboardInterrupt:
        code, interrupted = 130, True
    result = stage_folder(job["root"], job["run"], stage) / "result.json"
    if result.exists():
        return read_json(result)
    if interrupted:
        error = "stopped before it could write a checkpoint; the same command goes on from the one before"
        return {"status": "interrupted", "run": job["run"], "stage": stage, "error": error}
    if node.rank and code == 0:
        return {"status": "done", "run": job["run"], "stage": stage}
    error = (
        f"stage {stage} ended with exit code {code} and without a result; the reason is in the lines above"
    )
    return {"status": "failed", "run": job["run"], "stage": stage, "error": error}


def try_micro_batches(job: Job, plans: Plans) -> Plans:
    """For micro_batch=auto: try on the device what isn't known yet, before anything else holds its memory.

    Returns the plans with the micro-batches that were found.
    """
    planned = dict(plans)
    for stage, plan in plans.items():
        if not is_auto(job, stage) or finished(job["root"], job["run"], stage):
            continue
        if not isinstance(plan, BatchPlan) or not tried(job, plan).open(plan.micro_batches):
            continue
        path = run_folder(job["root"], job["run"]) / "job.yaml"
        write_job(path, job)
        command = [sys.executable, "-m", TRIAL, str(path), stage]
        if code := supervise(command, environment=clean_environment(devices=1)):
            rows = plan.micro_batch
            say(f"{stage}: the trial of micro-batches ended with exit code {code}; going on with {rows} rows")
        planned[stage] = fresh_plan(job, stage)
    return planned


def run_in_process(job: Job, plan: Plan) -> Result:
    """Run a stage on this process's rank, the only one or one of an outer torchrun's."""
    from nanolit.jobs import worker  # not at the top: it imports torch, which orchestrating does without

    return worker.run(job, plan)


def write_plan(job: Job, plan: Plan, *, known: Plan | None = None) -> Path:
    """Write a stage's job.yaml and plan.json, show the plan, and return the folder.

    An earlier result is removed: its absence means failure. A model that is that of `known`, the plan of the
    stage before, isn't shown again.
    """
    folder = stage_folder(job["root"], job["run"], plan.stage)
    if not is_rank_zero():
        wait_for(folder / "plan.json")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").unlink(missing_ok=True)
        write_job(folder / "job.yaml", job)
        write_json(folder / "plan.json", as_json(plan))
        say(f"\n{plan_table(plan, known=known)}")
    return folder


def wait_for(path: Path, *, seconds: float = WAIT_SECONDS) -> None:
    """On the other ranks of an outer torchrun: until rank 0, which may be fetching, has written a file."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline:
            raise ValueError(
                f"rank 0 has not written {path} in {seconds:.0f} seconds; see its messages above"
            )
        time.sleep(0.05)


def check_root(job: Job) -> None:
    """ValueError unless the run's folder can be made and written."""
    folder = run_folder(job["root"], job["run"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("a"):
            pass
    except OSError as error:
        raise ValueError(unwritable(error, job["root"])) from error


def unwritable(error: OSError, root: str) -> str:
    reason = f"{error.strerror}: {error.filename}"
    return f"root={root} cannot be written ({reason}); give another root=… or set NANOLIT_HOME"


def check_stages(job: Job, plans: Plans) -> None:
    """ValueError for what makes a stage impossible, before any of them begins."""
    ranks = num_ranks(job)
    if under_torchrun() and int(os.environ["WORLD_SIZE"]) != ranks:
        world = os.environ["WORLD_SIZE"]
        raise ValueError(
            f"torchrun started {world} ranks, the job is for {ranks}; give cluster.devices={world}"
        )
    if job["phase"] == "identity" and not job["start_from"]:
        raise ValueError("phase=identity teaches an existing model; say which: start_from=RUN")
    for stage in job["stages"]:
        check_unchanged(job, stage)
    check_previous(job, job["stages"][0])
    if models := [stage for stage in job["stages"] if stage != "tokenizer"]:
        origin(job, models[0])
    if is_rank_zero() and not all(finished(job["root"], job["run"], stage) for stage in job["stages"]):
        check_sources(job, plans)


def check_unchanged(job: Job, stage: str) -> None:
    """ValueError with the difference, when the stage was begun with other settings that decide its result."""
    path = stage_folder(job["root"], job["run"], stage) / "job.yaml"
    if stage == "tokenizer" or not path.exists():
        return
    changes = difference(decisive_settings(read_job(path), stage), decisive_settings(job, stage))
    if changes:
        listed = ", ".join(f"{key} was {old!r}, now {new!r}" for key, (old, new) in changes.items())
        raise ValueError(
            f"run {job['run']} was begun with other settings: {listed}; give those again, or another run=NAME"
        )
    plan = path.with_name("plan.json")
    if stage == "base" and plan.exists() and not finished(job["root"], job["run"], stage):
        before, now = read_json(plan)["tokenizer"], tokenizer_folder(job).name
        if before != now:  # with equal settings: the text is another
            raise ValueError(
                f"run {job['run']} was begun with other text in data.path: its tokenizer is {before}, this "
                f"text's {now}; put that text back, or give another run=NAME"
            )


def check_previous(job: Job, stage: str) -> None:
    """ValueError with the command that makes it, when the model that the stage begins from is missing."""
    models = [one for one in job["recipe"]["stages"] if one != "tokenizer"]
    before = models[: models.index(stage)] if stage in models else []
    if not before or job["start_from"] or finished(job["root"], job["run"], before[-1]):
        return
    previous = next(one for one in before if not finished(job["root"], job["run"], one))
    others = [one for one in job["overrides"] if not one.startswith(("phase=", "stages=", "start_from="))]
    command = " ".join(["python -m nanolit.train", f"phase={previous}", *others])
    raise ValueError(
        f"{stage} needs the finished {previous} of run {job['run']} in {job['root']}; make it with: {command}"
    )


def score(result: Result) -> str:
    steps = f" at step {result['step']:,}" if "step" in result else ""
    return f"{steps}, {result['val_bpb']:.4f} bits per byte" if result.get("val_bpb") else steps


@contextmanager
def held_by_rank_zero() -> Iterator[list[int]]:
    """On the other ranks of an outer torchrun: nothing to hold."""
    yield []


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_rank_zero() -> bool:
    return not under_torchrun() or os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    if is_rank_zero():
        print(text, flush=True)


def main() -> int:
    """Run the job of a file; 0 when it is done, 130 when it was interrupted, else 1."""
    result = run(read_job(Path(sys.argv[1])))
    if len(sys.argv) > 2:
        write_json(Path(sys.argv[2]), result)
    if result["status"] != "done":
        print(f"{result['run']}: {result['status']}: {result.get('error', '')}", file=sys.stderr)
    return {"done": 0, "interrupted": 130}.get(result["status"], 1)


if __name__ == "__main__":
    sys.exit(main())
