"""Functions that run on Modal. None submits an app: a container only calls functions of its own.

    orchestrate   a small CPU machine, for as long as the job takes: calls the other two and waits
    prepare       a CPU machine: checks the job, trains the tokenizer, downloads what the stages read
    train         the GPUs: one stage, from its last whole checkpoint

A payload is plain data: the resolved job, the ids of the functions, the volume's name, seconds. Errors that
the user can fix come back as {"status": "failed", "error": …}: the retry policy would run an exception again,
on GPUs.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import modal

from launch.calls import POLL_SECONDS, Calls, Payload, Result, claimed, commit, failed, volume_of
from launch.compile_cache import CompileCache
from launch.spending import RESERVE_SECONDS, Meter
from nanolit.config.schema import Job, StageName
from nanolit.jobs.execute import TOLD, fetch_data, make_tokenizer, training_plans
from nanolit.jobs.inputs import check_root, check_stages, finished
from nanolit.jobs.processes import supervise
from nanolit.machine.exit import GRACE_SECONDS
from nanolit.machine.paths import PACKAGE, read_json, run_folder, stage_folder, write_yaml
from nanolit.planning.plans import fresh_plans
from nanolit.report.folders import Stage

MOST_IDLE = 2  # time limits in a row without a step, after which more of them are a waste
LONGEST_MARGIN = 600.0  # seconds before the time limit that a stage is stopped, to write its checkpoint
LAST_SECONDS = 60.0  # of them, for the compiled kernels and the volume's last commit


def margin(timeout: float) -> float:
    """Return how many seconds before its time limit a function stops by itself."""
    return min(LONGEST_MARGIN, timeout / 4)


def orchestrate(payload: Payload) -> Result:
    """Run the job's stages in order; return the last result, or {"status": "continued", "call": id}.

    Every call is written to the volume before it is waited for: started again, this waits for the one that
    lives.
    """
    job, calls = payload["job"], Calls(payload)
    deadline = time.monotonic() + payload["timeout"] - margin(payload["timeout"])
    result = run_step(calls, "prepare", "tokenizer", deadline=deadline)
    for stage in job["stages"]:
        if result is None:
            return {"status": "continued", "run": job["run"], "call": calls.hand_over()}
        if result["status"] != "done":
            return result
        if stage != "tokenizer":
            done = None if calls.live("train", stage) else finished(job["root"], job["run"], stage)
            result = done or run_step(calls, "train", stage, deadline=deadline)
    return result or {"status": "continued", "run": job["run"], "call": calls.hand_over()}


def run_step(calls: Calls, function: str, stage: str, *, deadline: float) -> Result | None:
    """Return the result of one function for one stage, called again as often as it comes back unfinished."""
    while True:
        result = calls.wait(function, stage, deadline=deadline)
        if result is None or result["status"] != "unfinished":
            return result
        steps = calls.steps(stage)
        if len(steps) > MOST_IDLE and steps[-1] == steps[-1 - MOST_IDLE]:
            error = (
                f"{stage} completed no step within {calls.payload['timeout']:,} seconds, {MOST_IDLE} times; "
                "give a longer hydra.launcher.timeout (86,400 at most), or more or faster GPUs"
            )
            return {**result, "status": "failed", "error": error}


def prepare(payload: Payload, stage: str) -> Result:
    """Do everything that needs no GPU: check the job, train its tokenizer, download its data."""
    job = payload["job"]
    try:
        check_root(job)
        plans = fresh_plans(job)
        check_stages(job, plans)  # which builds every task, and so fetches its rows
        plans = training_plans(job, plans)
        fetch_data(job, plans)
        result: Result = {"status": "done", "run": job["run"], "stage": stage}
        return make_tokenizer(job, plans["tokenizer"]) if "tokenizer" in plans else result
    except (ValueError, OSError) as error:
        return failed(payload, stage, str(error))
    finally:
        commit(volume_of(payload))


def train(payload: Payload, stage: str) -> Result:
    """Train one stage on this machine's GPUs, from its last whole checkpoint.

    Before the time limit it stops with a checkpoint and is "unfinished". Preempted (a KeyboardInterrupt), it
    leaves a checkpoint and no output, so that Modal gives the same input to another machine.
    """
    job: Job = payload["job"]
    begun = time.monotonic()
    nodes = place_of_node(job)
    first = nodes.get("NANOLIT_NODE_RANK", "0") == "0"
    key = f"{payload['volume']}/{job['run']}/{stage}"
    if first and (other := claimed(key, environment=payload["environment"])):
        return {"status": "duplicate", "run": job["run"], "stage": stage, "call": other}
    meter = Meter(run_folder(job["root"], job["run"]))
    spare = margin(payload["timeout"])
    affordable = meter.seconds_left(job["max_cost"], payload["dollars_per_hour"])
    if affordable <= 0:
        return too_dear(payload, stage, meter)
    with tempfile.TemporaryDirectory() as folder:
        cache = CompileCache(job["root"], Path(folder) / "compiled", model=f"d{job['model']['depth']}")
        limit = payload["timeout"] - spare - (time.monotonic() - begun)
        seconds = min(limit, affordable)
        grace = max(GRACE_SECONDS, min(spare - LAST_SECONDS, affordable - seconds + RESERVE_SECONDS))
        with commits(payload, stage, *([meter, cache] if first else [])):
            environment = {**nodes, **cache.environment}
            result, late = stage_in_time(payload, stage, seconds, environment, grace=grace)
    if late and result["status"] != "done":
        if seconds < limit:
            return too_dear(payload, stage, meter)
        reached = Stage(stage, stage_folder(job["root"], job["run"], stage)).resumes_after
        return {"step": reached, **result, "status": "unfinished"}
    if first and result["status"] == "interrupted":  # another machine's ranks stop because the first's do
        raise KeyboardInterrupt
    return result


def stage_in_time(
    payload: Payload, stage: str, seconds: float, environment: dict[str, str], *, grace: float
) -> tuple[Result, bool]:
    """Run the job up to a stage in its own process; return its result, and if the time limit stopped it."""
    job: Job = payload["job"]
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    told = ",".join(["tokenizer", *payload["told"]])  # `prepare` has told of the tokenizer
    environment = {**os.environ, **environment, "PYTHONPATH": path, TOLD: told}
    until = job["stages"].index(cast(StageName, stage)) + 1
    late, code = False, 0
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "job.yaml", Path(folder) / "result.json"
        write_yaml(asked, cast(Job, {**job, "stages": job["stages"][:until]}))
        command = [sys.executable, "-m", "nanolit.jobs.execute", str(asked), str(answer)]
        try:
            code = supervise(command, environment=environment, seconds=seconds, grace=grace)
        except subprocess.TimeoutExpired:
            late = True
        if answer.exists():
            return read_json(answer), late
    error = f"{stage} ended with exit code {code} and without a result; see the log for the reason"
    return failed(payload, stage, error), late


def too_dear(payload: Payload, stage: str, meter: Meter) -> Result:
    """Return the failure of a stage that would pass max_cost."""
    job, rate = payload["job"], payload["dollars_per_hour"]
    return failed(
        payload,
        stage,
        f"{stage} stopped: its GPUs have cost about ${meter.seconds() / 3600 * rate:,.2f} of max_cost="
        f"{job['max_cost']:g}; the same command with a larger max_cost resumes from the last checkpoint",
    )


def look_around() -> dict[str, Any]:
    """Return what a container of this image has, for `python -m launch doctor`."""
    from nanolit.machine.device import tried_gpus
    from nanolit.tokenizer.training import _rustbpe

    extension = "built" if _rustbpe is not None else "missing"
    return {"python": sys.version.split()[0], "gpus": tried_gpus(), "extension": extension}


def place_of_node(job: Job) -> dict[str, str]:
    """Return, for a job on several machines, which of them this is and the address of the first; else {}."""
    if job["cluster"]["nodes"] == 1:
        return {}
    cluster = modal.Cluster.from_context()
    return {
        "NANOLIT_NODE_RANK": str(cluster.container_rank()),
        "NANOLIT_MASTER_ADDR": cluster.container_ips()[0],
    }


@contextlib.contextmanager
def commits(payload: Payload, stage: str, *kept: Meter | CompileCache) -> Iterator[None]:
    """Commit the volume whenever a checkpoint of the stage has another finished part, and at the end.

    What is `kept` is written to the volume then, too.
    """
    over, store, job = threading.Event(), volume_of(payload), payload["job"]
    folder = stage_folder(job["root"], job["run"], stage) / "checkpoints"

    def watch() -> None:
        seen: set[Path] = set()
        while not over.wait(POLL_SECONDS):
            found = set(folder.glob("step_*/*.json"))
            if found - seen:
                for record in kept:
                    record.keep()
                commit(store)
            seen = found
            for record in kept:
                record.tick()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for record in kept:
            record.keep()
        commit(store)
