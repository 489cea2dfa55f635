"""What runs on Modal. Nothing here submits an app: a container only calls functions of its own.

    orchestrate   a small CPU machine, for as long as the job takes: calls the other two and waits
    prepare       a CPU machine: checks the job, trains the tokenizer, downloads what the stages read
    train         the GPUs: one stage, from its last whole checkpoint

A payload is plain data: the resolved job, the ids of the functions, the volume's name, seconds. What a person
can put right comes back as {"status": "failed", "error": …}: an exception would be run again by the retry
policy, on GPUs.
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

from nanolit.config.schema import Job, StageName
from nanolit.config.stored import write_job
from nanolit.jobs.execute import fetch_data, make_tokenizer, training_plans
from nanolit.jobs.inputs import check_root, check_stages, finished
from nanolit.jobs.processes import supervise
from nanolit.machine.paths import PACKAGE, read_json, run_folder, stage_folder, write_json
from nanolit.planning.plans import fresh_plans

Payload = dict[str, Any]
Result = dict[str, Any]
UNREACHABLE = (  # errors that say nothing about the call that was asked for
    modal.exception.ConnectionError,
    modal.exception.InternalError,
    modal.exception.ResourceExhaustedError,
    modal.exception.ServiceError,
)
POLL_SECONDS = 2.0  # between two looks for a checkpoint that is not committed
WAIT_SECONDS = 20.0  # of one request for a call's result
MOST_IDLE = 2  # time limits in a row without a step, after which more of them are a waste
LONGEST_MARGIN = 600.0  # seconds before the time limit that a stage is stopped, to write its checkpoint


def margin(timeout: float) -> float:
    """Seconds before a function's time limit when it stops by itself."""
    return min(LONGEST_MARGIN, timeout / 4)


def orchestrate(payload: Payload) -> Result:
    """Run the job's stages in order; the last one's result, or {"status": "continued", "call": id}.

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


def run_step(calls: "Calls", function: str, stage: str, *, deadline: float) -> Result | None:
    """The result of one function for one stage, called as often as it comes back unfinished."""
    step, idle = None, 0
    while True:
        result = calls.wait(function, stage, deadline=deadline)
        if result is None or result["status"] != "unfinished":
            return result
        idle = idle + 1 if result.get("step") in (None, step) else 0
        step = result.get("step", step)
        if idle == MOST_IDLE:
            limit = f"{calls.payload['timeout']:,} seconds"
            error = f"{stage} made no step within {limit}, {idle} times; give a longer hydra.launcher.timeout"
            return {**result, "status": "failed", "error": error}


class Calls:
    """The calls of one run, in calls.json on the volume."""

    def __init__(self, payload: Payload) -> None:
        self.payload = payload
        self.volume = modal.Volume.from_name(payload["volume"])
        job = payload["job"]
        self.path = run_folder(job["root"], job["run"]) / "calls.json"
        self.calls: list[dict[str, Any]] = read_json(self.path)["calls"] if self.path.exists() else []

    def write(self) -> None:
        write_json(self.path, {"format": 1, "calls": self.calls})
        commit(self.volume)

    def wait(self, function: str, stage: str, *, deadline: float) -> Result | None:
        """The result of the call for a stage, begun if there is none that lives; None at the deadline."""
        if function == "prepare" and self.was_done(function):
            return {"status": "done", "run": self.payload["job"]["run"], "stage": stage}
        call = self.live(function, stage) or self.begin(function, stage)
        while True:
            try:
                left = deadline - time.monotonic()
                result = modal.FunctionCall.from_id(call["call"]).get(timeout=min(WAIT_SECONDS, max(left, 0)))
                break
            except TimeoutError:
                if left <= 0:
                    return None
            except UNREACHABLE:
                time.sleep(POLL_SECONDS)
            except Exception as error:
                text = f"{stage}: Modal ended call {call['call']}: {type(error).__name__}: {error}"
                run = self.payload["job"]["run"]
                result = {"status": "failed", "run": run, "stage": stage, "error": text}
                break
        if result["status"] == "duplicate":
            call["call"] = result["call"]
            self.write()
            return self.wait(function, stage, deadline=deadline)
        call.update(state=result["status"], ended=time.time())
        self.write()
        return result

    def was_done(self, function: str) -> bool:
        wanted = (function, self.payload["submission"], "done")
        return any((one["function"], one["submission"], one["state"]) == wanted for one in self.calls)

    def live(self, function: str, stage: str) -> dict[str, Any] | None:
        """The recorded call that is to be waited for: this submission's, or another's that still runs."""
        for call in reversed(self.calls):
            mine = call["submission"] == self.payload["submission"]
            if (call["function"], call["stage"], call["state"]) == (function, stage, "begun"):
                if mine or lives(call["call"]):
                    return call
                call["state"] = "lost"  # nobody knows when
        return None

    def begin(self, function: str, stage: str) -> dict[str, Any]:
        handle = modal.Function.from_id(self.payload["functions"][function])
        spawned = handle.spawn(self.payload, stage)
        call = {"function": function, "stage": stage, "call": spawned.object_id, "state": "begun"}
        self.calls.append({**call, "submission": self.payload["submission"], "at": time.time()})
        self.write()
        return self.calls[-1]

    def hand_over(self) -> str:
        """Begin this orchestrator again before its time limit; the new one waits for the call that lives."""
        handle = modal.Function.from_id(self.payload["functions"]["orchestrate"])
        return handle.spawn(self.payload).object_id


def lives(call: str) -> bool:
    """Whether a call is still queued or running; also when Modal can't be asked."""
    try:
        modal.FunctionCall.from_id(call).get(timeout=0)
    except (TimeoutError, *UNREACHABLE):
        return True
    except Exception:
        return False
    return False


def prepare(payload: Payload, stage: str) -> Result:
    """Everything that needs no GPU: the checks of the job, its tokenizer, its downloads."""
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
        return {"status": "failed", "run": job["run"], "stage": stage, "error": str(error)}
    finally:
        commit(modal.Volume.from_name(payload["volume"]))


def train(payload: Payload, stage: str) -> Result:
    """One stage on this machine's GPUs, from its last whole checkpoint.

    Before the time limit it stops with a checkpoint and is "unfinished". Preempted (a KeyboardInterrupt), it
    leaves a checkpoint and no output, so that Modal gives the same input to another machine.
    """
    job: Job = payload["job"]
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **place_of_node(job), "PYTHONPATH": path}
    first = environment.get("NANOLIT_NODE_RANK", "0") == "0"
    if first and (other := claimed(payload, stage)):
        return {"status": "duplicate", "run": job["run"], "stage": stage, "call": other}
    until = job["stages"].index(cast(StageName, stage)) + 1
    job = cast(Job, {**job, "stages": job["stages"][:until]})
    limit, late, code = payload["timeout"] - margin(payload["timeout"]), False, 0
    checkpoints = stage_folder(job["root"], job["run"], stage) / "checkpoints"
    with tempfile.TemporaryDirectory() as folder, commits(payload["volume"], checkpoints):
        asked, answer = Path(folder) / "job.yaml", Path(folder) / "result.json"
        write_job(asked, job)
        command = [sys.executable, "-m", "nanolit.jobs.execute", str(asked), str(answer)]
        try:
            code = supervise(command, environment=environment, seconds=limit)
        except subprocess.TimeoutExpired:
            late = True
        error = f"{stage} ended with exit code {code} and without a result; its reason is in the log"
        result: Result = {"status": "failed", "run": job["run"], "stage": stage, "error": error}
        if answer.exists():
            result = read_json(answer)
    if late and result["status"] != "done":
        return {**result, "status": "unfinished"}
    if result["status"] == "interrupted":
        raise KeyboardInterrupt
    return result


def look_around() -> dict[str, Any]:
    """What a container of this image has: for `python -m launch doctor`."""
    from nanolit.machine.device import tried_gpus
    from nanolit.tokenizer.training import _rustbpe

    extension = "built" if _rustbpe is not None else "missing"
    return {"python": sys.version.split()[0], "gpus": tried_gpus(), "extension": extension}


def place_of_node(job: Job) -> dict[str, str]:
    """For a job on several machines: which of them this is, and the address of the first."""
    if job["cluster"]["nodes"] == 1:
        return {}
    cluster = modal.Cluster.from_context()
    return {
        "NANOLIT_NODE_RANK": str(cluster.container_rank()),
        "NANOLIT_MASTER_ADDR": cluster.container_ips()[0],
    }


def claimed(payload: Payload, stage: str) -> str | None:
    """Another call that is at this stage and lives; without one, the stage is this call's from now on."""
    job = payload["job"]
    path = stage_folder(job["root"], job["run"], stage) / "claim.json"
    me = modal.current_function_call_id()
    if path.exists() and (other := read_json(path)["call"]) != me and lives(other):
        return other
    write_json(path, {"call": me})
    commit(modal.Volume.from_name(payload["volume"]))
    return None


def commit(store: modal.Volume) -> None:
    """Commit; what Modal can't do while files are open is only to show us the commits of others."""
    try:
        store.commit()
    except RuntimeError as error:
        print(f"volume: {error}", flush=True)


@contextlib.contextmanager
def commits(volume: str, folder: Path) -> Iterator[None]:
    """Commit the volume whenever a checkpoint in `folder` has another finished part, and at the end."""
    over, store = threading.Event(), modal.Volume.from_name(volume)

    def watch() -> None:
        seen: set[Path] = set()
        while not over.wait(POLL_SECONDS):
            found = set(folder.glob("step_*/*.json"))
            if found - seen:
                commit(store)
            seen = found

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        commit(store)
