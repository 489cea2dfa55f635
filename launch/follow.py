"""A submission to its result: the logs of its app, the run's name before each line, and the last answer."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import modal

from launch.calls import UNREACHABLE, lives
from launch.submit import Submission

Say = Callable[[str], None]


def follow(submission: Submission, *, logs: bool, say: Say = print) -> dict[str, Any]:
    """Wait for the job's result, however many orchestrators it takes; the job itself does not need this."""
    if logs:
        thread = threading.Thread(target=stream, args=(submission,), kwargs={"say": say}, daemon=True)
        thread.start()
    try:
        result = wait(submission)
    except UNREACHABLE:
        raise
    except Exception as error:
        result = {"status": "failed", "error": f"Modal ended the job: {type(error).__name__}: {error}"}
    if logs:
        thread.join(timeout=5)
    return {"run": submission["run"], **result, "app": submission["app"]}


def answers(submission: Submission, *, timeout: float | None = None) -> Iterator[dict[str, Any]]:
    """Yield the result of each orchestrator: all but the last have handed over to the next.

    TimeoutError when one of them takes longer than `timeout` seconds.
    """
    result = submission
    while result is submission or result["status"] == "continued":
        result = modal.FunctionCall.from_id(result["call"]).get(timeout=timeout)
        yield result


def wait(submission: Submission, *, timeout: float | None = None) -> dict[str, Any]:
    """Return the last orchestrator's result; TimeoutError as in `answers`."""
    *_, result = answers(submission, timeout=timeout)
    return result


def newest_call(submission: Submission) -> str:
    """Return the orchestrator that the others handed over to."""
    call = submission["call"]
    with contextlib.suppress(Exception):  # it is still running, or Modal has no answer
        for result in answers(submission, timeout=0):
            call = result["call"] if result["status"] == "continued" else call
    return call


def running(submission: Submission) -> bool:
    return lives(newest_call(submission))


def stream(submission: Submission, *, say: Say = print) -> None:
    """Print every line of the app's logs until it is over."""
    rest = ""
    with contextlib.suppress(modal.exception.Error):
        for entry in modal.App.lookup(submission["app"]).logs.stream():
            *lines, rest = (rest + entry.message).split("\n")
            for line in lines:
                say(f"[{submission['run']}] {line.rstrip()}")
    if rest:
        say(f"[{submission['run']}] {rest}")
