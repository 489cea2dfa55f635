"""A resolved job to its result: every stage in order. A local run, a sweep, a container: all call `run`.

`python -m nanolit.jobs.execute job.yaml [result.json]` does the same for a job on disk.
"""

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from nanolit.config.build import build
from nanolit.config.schema import Job
from nanolit.config.stored import read_job
from nanolit.jobs.inputs import check_root, check_settings, check_sources, finished, hub_forbidden
from nanolit.jobs.processes import clean_environment, supervise
from nanolit.jobs.ranks import WAIT_SECONDS, Node, check_ports, run_ranks, this_node
from nanolit.machine.exit import open_streams, sigterm_interrupts
from nanolit.machine.locks import held
from nanolit.machine.paths import (
    Json,
    core_folder,
    remove_leftovers,
    run_folder,
    stage_folder,
    tokenizers_folder,
    write_json,
    write_yaml,
)
from nanolit.machine.system import launched_rank, under_torchrun
from nanolit.machine.terminal import one_line, say
from nanolit.planning.costs import num_ranks
from nanolit.planning.micro_batch import tried
from nanolit.planning.plans import (
    BasePlan,
    FinetunePlan,
    Plan,
    Planned,
    Plans,
    TokenizerPlan,
    as_json,
    fresh_plan,
    fresh_plans,
    keep_stored,
)
from nanolit.planning.show import outline, plan_table
from nanolit.planning.sizes import is_auto
from nanolit.report.card import write_report
from nanolit.report.closing import closing, shown
from nanolit.report.folders import Stage
from nanolit.tasks.bundle import check_bundle, open_bundle

TRIAL = "nanolit.jobs.trial"
TOLD = "NANOLIT_TOLD"  # stages that were shown where this output goes, a comma between (launch/remote.py)
Result = Json  # of a stage or a job: its status, and what it reached or why it failed


def run(job: Job, plans: Plans | None = None, *, confirm: Callable[[Planned], None] | None = None) -> Result:
    """Run the stages in order and return the last result, or that of the first stage that isn't done.

    Errors the user can fix are returned, never raised: {"status": "failed", "error": …}. `plans` are those
    of the job's stages, if they have been derived already; `confirm` may stop the job once its plan is shown,
    before anything is fetched.
    """
    try:
        nodes = job["cluster"]["nodes"]
        node = Node() if nodes == 1 or under_torchrun() else this_node(nodes=nodes)
        if node.rank:
            return follow(job, node)
        check_root(job)
        check_ports(job, node)
        lock = run_folder(job["root"], job["run"]) / ".lock"
        # An outer torchrun's other ranks share the run with rank 0, which holds it
        ours = nullcontext([]) if launched_rank() else held(lock, busy=f"run {job['run']} is in use")
        with hub_forbidden() if job["offline"] else nullcontext(), ours as keep_open:
            plans = plans or fresh_plans(job)
            check_settings(job, plans)
            training = training_plans(job, plans)
            announce(job, training)
            if confirm:
                confirm([(job, plans)])
            if any(plan.chats for plan in plans.values()):
                check_sources(job, plans)
            if job["cluster"]["gpu"] != "cpu" and not under_torchrun():
                training |= try_micro_batches(job, plans)
            return run_stages(job, training, node, keep_open)
    except (ValueError, OSError) as error:
        return {"status": "failed", "run": job["run"], "error": one_line(error)}


def announce(job: Job, plans: Plans) -> None:
    """Show what is still to do, and how long it takes."""
    if waiting := unfinished(job, plans):
        if not {plan.stage for plan in waiting} <= told():
            say(outline(job["run"], waiting, done={plan.stage: steps_done(job, plan) for plan in waiting}))
    else:
        folder = shlex.quote(shown(run_folder(job["root"], job["run"])))
        say(f"{job['run']} is already finished. To start over, delete {folder}")


def steps_done(job: Job, plan: Plan) -> int:
    """Return the step after which a start of this stage begins."""
    return Stage(plan.stage, stage_folder(job["root"], job["run"], plan.stage)).resumes_after


def told() -> set[str]:
    """Return the stages whose plan the reader of this output has seen already."""
    return set(os.environ.get(TOLD, "").split(","))


def unfinished(job: Job, plans: Plans) -> list[Plan]:
    """Return the plans of what is still to run."""
    return [
        plan
        for stage, plan in plans.items()
        if not (is_made(job, plan) if stage == "tokenizer" else finished(job["root"], job["run"], stage))
    ]


def follow(job: Job, node: Node) -> Result:
    """Run this machine's ranks of every stage, and nothing else: it is not the first of several machines.

    The first machine makes the inputs and keeps the records; the others' ranks wait for its store.
    """
    result: Result = {"status": "done", "run": job["run"]}
    with tempfile.TemporaryDirectory() as folder:
        for stage in job["stages"]:
            if stage == "tokenizer" or finished(job["root"], job["run"], stage):
                continue
            plan = keep_stored(job, fresh_plan(job, stage))
            first = node.of_stage(job, stage)
            say(
                f"{stage}: machine {node.rank} waits for the first at {first.master_addr}:{first.master_port}"
            )
            result = run_ranks(job, plan, hand_over(job, plan, Path(folder)), node=node)
            if result["status"] != "done" or result.get("asked_to_stop"):
                break
    return {**result, "node": node.rank}


def try_micro_batches(job: Job, plans: Plans) -> dict[str, Plan]:
    """Return the plans of stages with micro_batch=auto after trying what isn't known yet on the device.

    Nothing else may hold the device's memory, so this comes first.
    """
    found: dict[str, Plan] = {}
    for plan in unfinished(job, plans):
        if not isinstance(plan, BasePlan | FinetunePlan) or not is_auto(job, plan.stage):
            continue
        if not tried(job, plan.gpt, equal_rows=plan.equal_rows).open(plan.micro_batches):
            continue
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", TRIAL, str(hand_over(job, plan, Path(folder)))]
            if code := supervise(command, environment=clean_environment(devices=1)):
                ended = f"{plan.stage}: the micro-batch trial ended with exit code {code}"
                say(f"{ended}; continuing with {plan.micro_batch} rows")
        found[plan.stage] = keep_stored(job, fresh_plan(job, plan.stage))
    return found


def training_plans(job: Job, plans: Plans) -> dict[str, Plan]:
    """Return the plans that training uses: a stored one wins over today's.

    The tokenizer's comes first where it is still to be trained, for a base with new weights.
    """
    first = job["stages"][0]
    made = is_made(job, plans[first]) or finished(job["root"], job["run"], first)
    if first == "base" and not job["start_from"] and not made:
        plans = {"tokenizer": fresh_plan(job, "tokenizer"), **plans}
    return {stage: keep_stored(job, plan) for stage, plan in plans.items()}


def run_stages(job: Job, plans: Plans, node: Node, keep_open: list[int]) -> Result:
    """Run the stages of `plans` in order, up to the first that isn't done; finished ones aren't run again.

    On one device a stage runs in this process; on several, jobs/ranks.py starts a process for each.
    """
    try:
        fetch_data(job, plans)
    except KeyboardInterrupt:
        error = "stopped while downloading data; the same command resumes there"
        return {"status": "interrupted", "run": job["run"], "error": error}
    result: Result = {}
    stages, before = list(plans.values()), None
    for plan, following in zip(stages, [*stages[1:], None], strict=True):
        if isinstance(plan, TokenizerPlan):
            result = make_tokenizer(job, plan)
        elif made := finished(job["root"], job["run"], plan.stage):
            say(f"{plan.stage}: already finished{score(made)}")
            result = {**made, "asked_to_stop": False}
        else:
            folder = write_plan(job, plan, known=before)
            if num_ranks(job) > 1 and not under_torchrun():
                result = run_ranks(job, plan, folder, node=node, keep_open=keep_open)
            else:
                result = run_in_process(job, plan)
        if result["status"] != "done":
            return result
        if result.get("asked_to_stop") and following:
            stopped = f"stopped after {plan.stage} finished"
            error = f"{stopped}; the same command continues with {following.stage}"
            return {**result, "status": "interrupted", "error": error}
        before = plan
    if launched_rank() == 0:
        root, name = Path(job["root"]), job["run"]
        say(f"\n{closing(root, name, write_report(root, name))}")
    return result


def fetch_data(job: Job, plans: Plans) -> None:
    """Download what the remaining stages read, shards and CORE's questions, once for all of them."""
    reading = [plan for plan in unfinished(job, plans) if isinstance(plan, TokenizerPlan | BasePlan)]
    if not reading:
        return
    if not (dataset := build(job["data"])).is_shipped:
        num_shards = max(plan.shards for plan in reading)
        with sigterm_interrupts():
            dataset.fetch(Path(job["root"]), num_shards=num_shards, offline=job["offline"])
    if any(isinstance(plan, BasePlan) and plan.core_every for plan in reading):
        folder = core_folder(job["root"])
        with sigterm_interrupts(), held(folder / ".lock", wait=True):
            check_bundle(open_bundle(folder, offline=job["offline"]))


def is_made(job: Job, plan: Plan) -> bool:
    """Return True if the plan's tokenizer is there; with phase=tokenizer its stage runs all the same."""
    path = tokenizers_folder(job["root"]) / plan.tokenizer / "tokenizer.json"
    return path.exists() and job["phase"] != "tokenizer"


def make_tokenizer(job: Job, plan: Plan) -> Result:
    """Train the job's tokenizer, unless a run with the same data and settings has already done so."""
    folder = tokenizers_folder(job["root"]) / plan.tokenizer
    made = {"status": "done", "stage": "tokenizer", "run": job["run"], "tokenizer": folder.name}
    if launched_rank():
        wait_for(folder / "tokenizer.json", seconds=WAIT_SECONDS)
        return made
    busy = folder.with_name(f".{folder.name}.lock")
    with held(busy, wait=True):
        if is_made(job, plan):
            if plan.stage not in told():
                say(f"tokenizer: {folder.name} already exists")
            return made
        remove_leftovers(folder)
        write_plan(job, plan)
        return run_in_process(job, plan)


def wait_for(path: Path, *, seconds: float = WAIT_SECONDS) -> None:
    """Wait, on another rank of an outer torchrun, for a file of rank 0, which may still be downloading."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline:
            raise ValueError(
                f"rank 0 did not write {path} within {seconds:.0f} seconds; see its messages above"
            )
        time.sleep(0.05)


def write_plan(job: Job, plan: Plan, *, known: Plan | None = None) -> Path:
    """Write a stage's job.yaml and plan.json, show the plan, and return the folder.

    An earlier result is removed, since its absence means failure, and so are a killed start's half-written
    files. A model that `known`, the plan of the stage before, has too isn't shown again.
    """
    folder = stage_folder(job["root"], job["run"], plan.stage)
    if launched_rank():
        wait_for(folder / "plan.json")
    else:
        for place in (folder.parent, folder):
            remove_leftovers(place)
        (folder / "result.json").unlink(missing_ok=True)
        hand_over(job, plan, folder)
        if plan.stage not in told():
            say(f"\n{plan_table(plan, known=known, done=steps_done(job, plan))}")
    return folder


def hand_over(job: Job, plan: Plan, folder: Path) -> Path:
    """Write what another process needs of a stage, job.yaml and plan.json, and return the folder."""
    content = as_json(plan)
    write_yaml(folder / "job.yaml", job)
    write_json(folder / "plan.json", content)
    return folder


def run_in_process(job: Job, plan: Plan) -> Result:
    """Run a stage on this process's rank, the only one or one of an outer torchrun's."""
    from nanolit.jobs import worker  # not at the top: it imports torch, which orchestrating does without

    return worker.run(job, plan)


def score(result: Result) -> str:
    steps = f" at step {result['step']:,}" if "step" in result else ""
    return f"{steps}, {result['val_bpb']:.4f} bits per byte" if result.get("val_bpb") else steps


def main() -> int:
    """Run the job of a file; 0 when it is done, 130 when it was interrupted, else 1."""
    open_streams()
    result = run(read_job(Path(sys.argv[1])))
    if len(sys.argv) > 2:
        write_json(Path(sys.argv[2]), result)
    if result["status"] != "done":
        print(f"{result['run']}: {result['status']}: {result.get('error', '')}", file=sys.stderr)
    return {"done": 0, "interrupted": 130}.get(result["status"], 1)


if __name__ == "__main__":
    sys.exit(main())
