"""Child processes that leave nobody behind: what they inherit, and the end of whole process trees."""

import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

from nanolit.machine.exit import GRACE, GRACE_SECONDS, handlers_kept, ignore_ctrl_c, sigterm_interrupts
from nanolit.machine.system import available_cores

ANSWER_SECONDS = 5  # of a longer grace: what a command keeps for its own end, after that of its ranks
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK")


def clean_environment(*, devices: int) -> dict[str, str]:
    """Return our environment without an outer launcher's variables; each rank gets its share of the cores."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in RANK_VARIABLES and not key.startswith(("MASTER_", "TORCHELASTIC_"))
    }
    environment.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // devices)))
    return environment


def supervise(
    command: Sequence[str],
    *,
    environment: dict[str, str],
    seconds: float | None = None,
    grace: float = GRACE_SECONDS,
) -> int:
    """Run a command in its own process group and return its exit code.

    If we are interrupted, or after `seconds`, all its processes are stopped first; the latter raises
    subprocess.TimeoutExpired and gives them `grace` seconds.
    """
    if grace > GRACE_SECONDS:
        environment = {**environment, GRACE: str(grace - ANSWER_SECONDS)}
    with sigterm_interrupts():
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            stop([process], grace=grace)
            raise
        except BaseException:
            stop([process])
            raise


def stop(processes: Sequence[subprocess.Popen], *, grace: float | None = None) -> None:
    """SIGTERM, `grace` or GRACE_SECONDS for checkpoints, then SIGKILL to whatever is left of the trees."""
    trees: list[psutil.Process] = []
    deadline = time.monotonic() + (grace or GRACE_SECONDS)
    try:
        trees += [child for process in processes for child in descendants(process.pid)]
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(max(0.0, deadline - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        pass
    finally:
        with handlers_kept():
            ignore_ctrl_c()  # a third one would leave some of them behind
            for child in trees:
                with suppress(psutil.NoSuchProcess):
                    child.kill()  # psutil compares start times: never another process that got the same id
            for process in processes:
                process.kill()
                process.wait()


def descendants(pid: int) -> list[psutil.Process]:
    """Return the processes below `pid`, those in sessions of their own too, which no group signal reaches."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
