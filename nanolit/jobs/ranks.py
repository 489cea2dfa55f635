"""The ranks of a stage on this machine: started, watched, and ended together.

They meet at a store of rank 0's that listens at one address alone: 127.0.0.1, or the first machine's that the
user gave. torchrun would listen on every interface, and its agent unpickles what it finds in its store.
"""

import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nanolit.config.schema import Job, StageName
from nanolit.jobs.processes import clean_environment, stop
from nanolit.machine.exit import grace, sigterm_interrupts
from nanolit.machine.paths import Json, stage_folder, write_json
from nanolit.machine.system import code_version
from nanolit.machine.terminal import say
from nanolit.planning.plans import Plan
from nanolit.report.folders import Stage, read_result

MASTER_PORT = 29_500  # of several machines; torchrun's own default. Each stage takes the next one
HIGHEST_PORT = 65_500  # so that there are ports for every stage
WORKER = "nanolit.jobs.worker"
WAIT_SECONDS = 3_600  # of one machine for another: the first may train a tokenizer before it begins
LEFT = 75  # exit code of a rank that ends because another is gone: sysexits' "try again later"
POLL_SECONDS = 0.1
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


@dataclass(frozen=True)
class Node:
    """Which of a job's machines this is, and where the first of them listens."""

    rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 0  # any that is free

    def of_stage(self, job: Job, stage: StageName) -> "Node":
        """Return this machine with the stage's own port, so that none finds the store of the stage before."""
        port = self.master_port and self.master_port + job["recipe"]["stages"].index(stage)
        return replace(self, master_port=port)


def this_node(*, nodes: int) -> Node:
    """Return which of several machines this is; ValueError where what started the job doesn't say."""
    rank, master_addr = os.environ.get("NANOLIT_NODE_RANK", ""), os.environ.get("NANOLIT_MASTER_ADDR", "")
    if not rank.isdecimal() or int(rank) >= nodes or not master_addr:
        raise ValueError(
            f"cluster.nodes={nodes} and NANOLIT_NODE_RANK={rank or '(not set)'}: run this command on each "
            f"machine, with NANOLIT_NODE_RANK=0 to {nodes - 1} and NANOLIT_MASTER_ADDR=ADDRESS-OF-THE-FIRST"
        )
    port = os.environ.get("NANOLIT_MASTER_PORT", str(MASTER_PORT))
    if not (port.isdecimal() and 0 < int(port) < HIGHEST_PORT):
        raise ValueError(f"NANOLIT_MASTER_PORT={port} must be a whole number from 1 to {HIGHEST_PORT - 1:,}")
    return Node(int(rank), master_addr, int(port))


def run_ranks(job: Job, plan: Plan, folder: Path, *, node: Node, keep_open: Sequence[int] = ()) -> Json:
    """Run this machine's ranks of a stage; `folder` holds its job.yaml and plan.json.

    `keep_open` are file descriptors (a lock) that every rank holds as long as it lives.
    """
    stage, failure, interrupted = plan.stage, "", False
    try:
        with sigterm_interrupts():
            failure = run_together(
                [sys.executable, "-u", "-m", WORKER, str(folder)],  # its lines come as they are printed
                devices=job["cluster"]["devices"],
                nodes=job["cluster"]["nodes"],
                node=node.of_stage(job, stage),
                keep_open=keep_open,
            )
    except KeyboardInterrupt:
        interrupted = True
    resumption = Stage(stage, stage_folder(job["root"], job["run"], stage)).resumption
    path = stage_folder(job["root"], job["run"], stage) / "result.json"
    if result := read_result(path):
        # Rank 0 knows only that it lost another; where none failed by itself, its reason is the best there is
        if failure and result.get("left") and f"with code {LEFT}" not in failure:
            result["error"] = f"{failure}; {resumption}"
            write_json(path, result)
        return {**result, "asked_to_stop": True} if interrupted else result
    if interrupted:
        error = f"{stage} was stopped in the middle of a step; {resumption}"
        return {"status": "interrupted", "run": job["run"], "stage": stage, "error": error}
    if node.rank and not failure:
        return {"status": "done", "run": job["run"], "stage": stage}
    error = (
        f"stage {stage} ended without a result ({failure or 'all ranks ended'}); see the lines above; "
        f"{resumption}"
    )
    return {"status": "failed", "run": job["run"], "stage": stage, "error": error}


def run_together(
    command: Sequence[str], *, devices: int, nodes: int, node: Node, keep_open: Sequence[int] = ()
) -> str:
    """Run a command on every device; when one fails, stop the others. Return which failed and how, or ""."""
    parent, ours = os.pipe()  # a rank that reads its end knows that this process is gone
    store = listen(node) if node.rank == 0 else None
    port = store.getsockname()[1] if store else node.master_port
    ranks: list[subprocess.Popen] = []
    code = code_version()
    try:
        for local_rank in range(devices):
            environment = clean_environment(devices=devices) | {
                "RANK": str(node.rank * devices + local_rank),
                "LOCAL_RANK": str(local_rank),
                "WORLD_SIZE": str(nodes * devices),
                "LOCAL_WORLD_SIZE": str(devices),
                "GROUP_RANK": str(node.rank),
                "MASTER_ADDR": node.master_addr,
                "MASTER_PORT": str(port),
                "TORCHELASTIC_RUN_ID": "nanolit",  # by which Lightning knows that ranks are started already
                "NANOLIT_PARENT": str(parent),
                "NANOLIT_CODE": code,  # asked of git once, not by every rank
            }
            if nodes == 1:
                environment |= {"GLOO_SOCKET_IFNAME": LOOPBACK, "NCCL_SOCKET_IFNAME": LOOPBACK}
            inherited = [*keep_open, parent]
            if store and local_rank == 0:
                environment["NANOLIT_STORE"] = str(store.fileno())
                inherited.append(store.fileno())
            ranks.append(
                subprocess.Popen(command, env=environment, start_new_session=True, pass_fds=inherited)
            )
        return wait(ranks, first=node.rank * devices)
    except BaseException:
        stop(ranks, grace=grace())
        raise
    finally:
        os.close(parent)
        os.close(ours)
        if store:
            store.close()


def check_ports(job: Job, node: Node) -> None:
    """Find out whether the stages' ports can be had before any work is done; ValueError if not."""
    if not node.master_port:
        return
    for stage in job["stages"]:
        with bound(node.of_stage(job, stage)) as store:
            address = store.getsockname()[0]
    if ipaddress.ip_address(address).is_loopback:  # on Debian that is what a machine's own name means to it
        say(f"NANOLIT_MASTER_ADDR={node.master_addr} is {address}, which no other machine can reach")


def listen(node: Node) -> socket.socket:
    """Return a socket that listens at the node's address only."""
    store = bound(node)
    store.listen(1024)
    return store


def bound(node: Node) -> socket.socket:
    store = socket.socket(socket.AF_INET6 if ":" in node.master_addr else socket.AF_INET)
    store.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the last start may linger
    try:
        store.bind((node.master_addr, node.master_port))
    except OSError as error:
        store.close()
        raise ValueError(
            f"ranks can't meet at {node.master_addr}:{node.master_port} ({error.strerror or error}); give "
            "the first machine's own address as NANOLIT_MASTER_ADDR, and a free port as NANOLIT_MASTER_PORT"
        ) from error
    return store


def wait(ranks: Sequence[subprocess.Popen], *, first: int = 0) -> str:
    """Wait for all ranks; when one fails, stop the others and say which and how, else return ""."""
    while True:
        codes = [rank.poll() for rank in ranks]
        if any(codes):
            break
        if None not in codes:
            return ""
        time.sleep(POLL_SECONDS)
    if not any(code and code != LEFT for code in codes):
        time.sleep(1)  # those that left because another was gone may be seen before that one
        codes = [rank.poll() for rank in ranks]
    failure = first_of(codes, first=first)
    print(failure, file=sys.stderr, flush=True)
    stop([rank for rank, code in zip(ranks, codes, strict=True) if code is None])
    return failure


def first_of(codes: Sequence[int | None], *, first: int = 0) -> str:
    """Say which rank began it; those that left because another was gone only followed."""
    place = min(
        (place for place, code in enumerate(codes) if code), key=lambda place: (codes[place] == LEFT, place)
    )
    code = codes[place]
    assert code
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return f"rank {first + place} {how}, the first to end"
