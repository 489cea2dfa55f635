"""Child processes that leave nobody behind: what they inherit, and the end of whole process trees."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

GRACE_SECONDS = 25  # what a rank gets to write its checkpoint; Modal and SLURM kill after about 30
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK")


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def launched_rank() -> int:
    """Return the rank that torchrun gave: known before there is a process group."""
    return int(os.environ.get("RANK", "0")) if under_torchrun() else 0


def is_rank_zero() -> bool:
    return launched_rank() == 0


def clean_environment(*, devices: int) -> dict[str, str]:
    """Ours, without what an outer launcher said about ranks; each rank gets its share of the cores."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in RANK_VARIABLES and not key.startswith(("MASTER_", "TORCHELASTIC_"))
    }
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    return environment


def supervise(
    command: Sequence[str],
    *,
    environment: dict[str, str],
    keep_open: Sequence[int] = (),
    seconds: float | None = None,
) -> int:
    """Run a command in its own process group and give its exit code; interrupted, stop all of it first.

    `keep_open` are file descriptors (a lock) that the child holds as long as it lives. After `seconds` it is
    stopped, and subprocess.TimeoutExpired raised.
    """
    with sigterm_interrupts():
        process = subprocess.Popen(command, env=environment, start_new_session=True, pass_fds=keep_open)
        try:
            return process.wait(seconds)
        except BaseException:
            stop([process])
            raise


def stop(processes: Sequence[subprocess.Popen]) -> None:
    """SIGTERM, up to GRACE_SECONDS for checkpoints, then SIGKILL to whatever is left of the trees."""
    trees = [one for process in processes for one in descendants(process.pid)]
    for process in processes:
        process.terminate()
    try:
        for process in processes:
            process.wait(GRACE_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        pass
    finally:
        for pid, started in trees:
            if start_time(pid) == started is not None:
                os.kill(pid, signal.SIGKILL)
        for process in processes:
            process.kill()
            process.wait()


def descendants(pid: int) -> list[tuple[int, str | None]]:
    """Process ids below `pid` with their start times; torchrun gives ranks their own sessions. Linux only."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if fields := stat_fields(int(folder.name)):
            parents[int(folder.name)] = int(fields[1])
    found, front = [], {pid}
    while front:
        front = {child for child, parent in parents.items() if parent in front}
        found += [(child, start_time(child)) for child in front]
    return found


def start_time(pid: int) -> str | None:
    """When a process started, which together with its id names it for good; None when it is gone."""
    fields = stat_fields(pid)
    return fields[19] if fields and fields[0] != "Z" else None


def stat_fields(pid: int) -> list[str]:
    """/proc/PID/stat from the state on (proc(5)); empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM is a KeyboardInterrupt here, so that it reaches the same clean-up as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
