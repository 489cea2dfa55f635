"""The calls of one run's functions, as the orchestrator makes them; what is known of any call; claims."""

import time
from typing import Any, NotRequired

import modal
from typing_extensions import TypedDict

from nanolit.machine.paths import read_json, run_folder, write_json

Payload = dict[str, Any]
Result = dict[str, Any]
UNREACHABLE = (  # errors that say nothing about the call that was asked for
    modal.exception.ConnectionError,
    modal.exception.InternalError,
    modal.exception.ResourceExhaustedError,
    modal.exception.ServiceError,
)
CLAIMS = "nanolit-claims"
POLL_SECONDS = 2.0  # between two looks at what Modal could not tell, or at a checkpoint not yet committed
WAIT_SECONDS = 20.0  # of one request for a call's result


class Call(TypedDict):
    """The fields that are read of a call's record."""

    function: str
    stage: str
    state: str
    call: NotRequired[str]
    submission: NotRequired[str]
    at: NotRequired[float]
    ended: NotRequired[float]
    step: NotRequired[int | None]


class Kept(TypedDict, total=False):
    calls: list[Call]


class Calls:
    """The calls of one run, in calls.json on the volume."""

    def __init__(self, payload: Payload) -> None:
        self.payload = payload
        self.volume = volume_of(payload)
        job = payload["job"]
        self.path = run_folder(job["root"], job["run"]) / "calls.json"
        stored = read_json(self.path, Kept) if self.path.exists() else {}
        self.calls: list[dict[str, Any]] = stored.get("calls", [])

    def write(self) -> None:
        write_json(self.path, {"format": 1, "calls": self.calls})
        commit(self.volume)

    def wait(self, function: str, stage: str, *, deadline: float) -> Result | None:
        """Return the result of the call for a stage, begun if no live one exists; None at the deadline."""
        mine = (call for call in self.calls if call["submission"] == self.payload["submission"])
        if function == "prepare" and any((c["function"], c["state"]) == ("prepare", "done") for c in mine):
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
                result = failed(self.payload, stage, text)
                break
        if result["status"] == "duplicate":
            call["call"] = result["call"]
            self.write()
            return self.wait(function, stage, deadline=deadline)
        call.update(state=result["status"], ended=time.time(), step=result.get("step"))
        self.write()
        return result

    def live(self, function: str, stage: str) -> dict[str, Any] | None:
        """Return the recorded call to wait for: this submission's, or another's that still runs."""
        for call in reversed(self.calls):
            mine = call["submission"] == self.payload["submission"]
            if (call["function"], call["stage"], call["state"]) == (function, stage, "begun"):
                if mine or lives(call["call"]):
                    return call
                call["state"] = "lost"  # at an unknown time
        return None

    def steps(self, stage: str) -> list[int]:
        """Return the step that each of this submission's time limits of a stage reached, after a first 0."""
        mine = [call for call in self.calls if call["submission"] == self.payload["submission"]]
        return [0, *(c["step"] for c in mine if (c["stage"], c["state"]) == (stage, "unfinished"))]

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


def failed(payload: Payload, stage: str, error: str) -> Result:
    return {"status": "failed", "run": payload["job"]["run"], "stage": stage, "error": error}


def lives(call: str) -> bool:
    """Return True if a call is still queued or running, or if Modal can't be asked."""
    try:
        modal.FunctionCall.from_id(call).get(timeout=0)
    except (TimeoutError, *UNREACHABLE):
        return True
    except Exception:
        return False
    return False


def claimed(key: str, *, environment: str | None) -> str | None:
    """Return another call that has the stage and lives; without one, the stage is this call's from now on.

    Modal's server decides it. A file on the volume cannot: the last writer wins there, and a machine sees the
    other's file late. A claim is stored under the call that it follows, "" at first. Of two calls that both
    find the same one dead, the server lets one put its claim there.
    """
    claims = modal.Dict.from_name(CLAIMS, create_if_missing=True, environment_name=environment)
    me, before = modal.current_function_call_id(), ""
    while not claims.put(f"{key}:{before}", me, skip_if_exists=True):
        other = claims.get(f"{key}:{before}")
        if other == me:
            return None
        if other and lives(other):
            return other
        before = other or before
    return None


def volume_of(payload: Payload) -> modal.Volume:
    return modal.Volume.from_name(payload["volume"], environment_name=payload["environment"])


def commit(store: modal.Volume) -> None:
    """Commit the volume.

    With files open Modal cannot reload it and raises; our own commit has happened, so we only log the
    message.
    """
    try:
        store.commit()
    except RuntimeError as error:
        print(f"volume: {error}", flush=True)
