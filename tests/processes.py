"""Processes of tests: what one printed isn't lost when it hangs."""

import contextlib
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence

import psutil
import pytest

Texts = tuple[str, str]  # what a process printed, and its errors where they have a pipe of their own


def finish(process: subprocess.Popen[str], *, seconds: float) -> Texts:
    """Wait for a process to end, and return what it printed; the test fails if it takes longer."""
    return finish_all([process], seconds=seconds)[0]


def finish_all(processes: Sequence[subprocess.Popen[str]], *, seconds: float) -> list[Texts]:
    """Do the same for several; where one takes longer, those that still run print their stacks and end."""
    ended: list[Texts] = []
    try:
        for process in processes:
            ended.append(process.communicate(timeout=seconds))
    except subprocess.TimeoutExpired:
        left = processes[len(ended) :]
        for process in left:
            abort(process)
        ended += [process.communicate(timeout=20) for process in left]
        printed = "\n\n".join(text for texts in ended for text in texts if text)
        pytest.fail(f"still running after {seconds:g} seconds; what was printed:\n{printed}")
    return ended


def wait_until(condition: Callable[[], bool], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} seconds in vain"
        time.sleep(0.05)


def abort(process: subprocess.Popen[str]) -> None:
    """End a process and all that it started; PYTHONFAULTHANDLER (conftest.py) prints their stacks first."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in family:  # one by one, or their lines would mix
            for number in (signal.SIGABRT, signal.SIGKILL):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.send_signal(number)
                psutil.wait_procs([one], timeout=5)


def free_ports(number: int) -> int:
    """Return the first of several ports that nothing takes by itself: systems give those from 32,768 up.

    A port that a connection has left stays taken for a minute.
    """
    while True:
        first = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + number):
                stack.enter_context(socket.create_server(("localhost", port)))
            return first
