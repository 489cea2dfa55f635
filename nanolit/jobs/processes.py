"""Child processes that leave nobody behind: torchrun for one stage, and the end of whole process trees."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

GRACE_SECONDS = 25  # what a rank gets to write its checkpoint; Modal and SLURM kill after about 30
MASTER_PORT = 29_500  # torchrun's own default
WAIT_SECONDS = 3_600  # of one machine for another: the first may train a tokenizer before it begins
LEFT = 75  # exit code of a rank that ends because another is gone: sysexits' "try again later"
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK")


@dataclass(frozen=True)
class Node:
    """Which of a job's machines this is, and where the first of them listens."""

    rank: int = 0
    master_addr: str = "localhost"
    master_port: int = MASTER_PORT


def this_node(*, nodes: int) -> Node:
    """Return this node's rank and the first one's address, from NANOLIT_NODE_RANK and NANOLIT_MASTER_ADDR.

    ValueError if several nodes are asked for and those are not set.
    """
    if nodes == 1:
        return Node()
    rank, master_addr = os.environ.get("NANOLIT_NODE_RANK", ""), os.environ.get("NANOLIT_MASTER_ADDR", "")
    if not rank.isdigit() or int(rank) >= nodes or not master_addr:
        raise ValueError(
            f"cluster.nodes={nodes} and NANOLIT_NODE_RANK={rank or '(not set)'}: give this command on each "
            f"machine, with NANOLIT_NODE_RANK=0 to {nodes - 1} and NANOLIT_MASTER_ADDR=ADDRESS-OF-THE-FIRST"
        )
    return Node(int(rank), master_addr, int(os.environ.get("NANOLIT_MASTER_PORT", MASTER_PORT)))


def torchrun(
    module: str, arguments: Sequence[str], *, devices: int, nodes: int = 1, node: Node | None = None
) -> list[str]:
    """The command that starts `python -m module` on every device of this machine, one of `nodes`."""
    where = ["--standalone"]
    if nodes > 1 and node:
        where = [f"--nnodes={nodes}", f"--node-rank={node.rank}"]
        where += [f"--master-addr={node.master_addr}", f"--master-port={node.master_port}"]
        where += [f"--rdzv-conf=timeout={WAIT_SECONDS}"]
    launcher = [sys.executable, "-m", "nanolit.jobs.ranks", *where, f"--nproc-per-node={devices}"]
    return [*launcher, "-m", module, *arguments]


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
    trees = [child for process in processes for child in descendants(process.pid)]
    for process in processes:
        process.terminate()
    try:
        for process in processes:
            process.wait(GRACE_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        pass
    finally:
        for child in trees:
            with suppress(psutil.NoSuchProcess):
                child.kill()  # psutil compares start times: never another process that got the same id
        for process in processes:
            process.kill()
            process.wait()


def descendants(pid: int) -> list[psutil.Process]:
    """Return the processes below `pid`; torchrun gives ranks their own sessions, so that no signal to a group
    reaches them."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
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
