"""Runs Python that a model wrote, and tells whether its function passes tests that it never sees.

Walls, outermost first: own namespaces (no network, no view of other processes, all descendants die together),
Linux's Landlock (reads the standard library, writes nothing, starts nothing), seccomp (no system calls but
those of computing, reading and printing), resource limits, an empty environment and working folder, a fresh
interpreter without site-packages, and an audit hook that ends it at the first attempt to write, connect, or
start a process. confine.py and runner.py raise them; `walls` tells which of them this system has.
The tests run in a second such process that gets values alone from the first: a program can deceive neither
by `__eq__` nor by frames, traces, threads or exits.
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFINE = Path(__file__).with_name("confine.py")
PASSED = 42  # the judge's exit code when every test held
PRINTED_BYTES = 16 << 20  # what a program may print: at the limit print raises, so that a right one fails
UNSHARE = ("unshare", "--user", "--map-current-user", "--net", "--pid", "--ipc", "--uts", "--fork")
UNSHARE = (*UNSHARE, "--kill-child")


@dataclass(frozen=True)
class Outcome:
    """`passed`: every test held. `output`: what the program and then the tests printed, errors included, cut
    at the bound."""

    passed: bool
    output: str
    timed_out: bool = False


def judge_python(
    program: str,
    *,
    entry_point: str,
    test: str,
    prompt: str = "",
    timeout_seconds: float = 5.0,
    memory_bytes: int = 256 << 20,
    output_bytes: int = 64 << 10,
) -> Outcome:
    """Run `program` in one confined process, and in another `prompt`, `test` and `check(its function)`.

    `test` defines `check`. Arguments and results are copied and are plain: None, numbers, text, bytes, lists,
    tuples, dicts, sets, iterators. The limits of time and memory are nanochat's, for HumanEval.
    """
    job = {"entry_point": entry_point, "timeout": timeout_seconds}
    job |= {"memory": memory_bytes, "printed": PRINTED_BYTES}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        output = stack.enter_context(tempfile.TemporaryFile())
        request_read, request_write = os.pipe()
        answer_read, answer_write = os.pipe()
        pipes = [request_read, request_write, answer_read, answer_write]
        try:
            answering = {"program": program, "pipes": [(request_read, "r"), (answer_write, "w")]}
            stack.callback(_end, _start(job | answering, folder, output))
            tests = {"prompt": prompt, "test": test, "passed": PASSED}
            tests |= {"pipes": [(request_write, "w"), (answer_read, "r")]}
            judge = _start(job | tests, folder, output)
            stack.callback(_end, judge)
        finally:
            for pipe in pipes:
                os.close(pipe)
        timed_out = False
        try:
            judge.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
        passed = judge.returncode == PASSED
        output.seek(0)
        printed = output.read(output_bytes).decode(errors="replace")
    return Outcome(passed, printed, timed_out)


def _start(job: dict[str, Any], folder: str, output: Any) -> subprocess.Popen[bytes]:
    """Start a confined interpreter; it reads the job as its standard input, and keeps only its pipes."""
    with tempfile.TemporaryFile() as stdin:
        stdin.write(json.dumps(job).encode())
        stdin.seek(0)
        return subprocess.Popen(
            [*_namespaces(), sys.executable, "-I", "-S", str(CONFINE), *walls()],
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={"PATH": os.defpath, "LANG": "C.UTF-8"},
            pass_fds=[file for file, _ in job["pipes"]],
            start_new_session=True,
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process, its session, and (through the pid namespace) whatever left that session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@functools.cache
def walls() -> tuple[str, ...]:
    """Return the walls that stand on this system, outermost first; tried once, in about 0.05 s."""
    command = [*_namespaces(), sys.executable, "-I", "-S", str(CONFINE)]
    trial = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    namespaces = ("namespaces",) if _namespaces() else ()
    return (*namespaces, *trial.stdout.split(), "limits", "hook")


def is_weak() -> bool:
    """Tell whether nothing but Python's own hook keeps a program from the user's files and the network."""
    return not {"namespaces", "Landlock"} & {*walls()}


@functools.cache
def _namespaces() -> Sequence[str]:
    """Return the command that gives a process its own namespaces; [] where the system doesn't allow it."""
    if shutil.which("unshare") is None:
        return ()
    trial = subprocess.run([*UNSHARE, "true"], capture_output=True, timeout=10, check=False)
    return UNSHARE if trial.returncode == 0 else ()
