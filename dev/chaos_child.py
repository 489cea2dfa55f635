"""Run the commands of a tiny run in forked children of a warm process, and strike them; for chaos.py.

Forking pays for the imports of torch and Lightning once, not at every kill; two ranks are real processes.
"""

import ctypes
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

PHASES = ("download", "tokenizer", "base", "mid", "sft", "rl")
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.truncate", "os.chmod")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
LIMIT_SECONDS = 300  # of one command on a busy machine; longer is a hang
STRUCK = "\n(struck)\n"
RANK_WORDS = ("phase=base", "cluster.devices=2", "stage.base.max_steps=300", "stage.base.save_every=10")
GONE_SECONDS = 30  # within which nothing of a run that lost its parent may run on
NEW_NAMESPACES = 0x10000000 | 0x00020000  # of users and of mounts
MODULES = ("nanolit.train", "nanolit.jobs.execute", "nanolit.jobs.worker", "nanolit.report.card", "datasets")


@dataclass(frozen=True)
class Blow:
    """A blow to the child in `phase` or later: `signal`, after `number` events of the kind `where`."""

    phase: str
    where: str  # what is counted: file operations (all, or in a checkpoint or release), calls, 0.1 s
    number: int
    signal: int = signal.SIGKILL


@dataclass(frozen=True)
class End:
    """The end of a command; a negative code is a signal, None a hang."""

    code: int | None
    text: str


def phase_of(path: str) -> int:
    """Return the index of the phase that a changed file belongs to; -1 for those of none."""
    places = {"download": "/data/fineweb_edu/", "tokenizer": "/tokenizers/"}
    found = [index for index, phase in enumerate(PHASES) if places.get(phase, f"/demo/{phase}/") in path]
    return max(found, default=-1)


def arm(blow: Blow, root: Path) -> None:
    """Make this process suffer the blow."""
    due, left = PHASES.index(blow.phase), [blow.number]
    reached = threading.Event()

    def strike() -> None:
        os.write(2, STRUCK.encode())
        os.kill(os.getpid(), blow.signal)

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            strike()

    def hook(event: str, arguments: tuple) -> None:
        if event not in CHANGES and not (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        ):
            return
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
        if path.startswith(str(root)) and phase_of(path) >= due:
            reached.set()
            if blow.where == "file" or blow.where in path:
                count()

    def later() -> None:
        reached.wait()
        time.sleep(blow.number / 10)
        strike()

    if blow.where == "time":
        threading.Thread(target=later, daemon=True).start()
    if blow.where == "evaluation":
        count_calls(count, reached)
    sys.addaudithook(hook)


def count_calls(count: Callable[[], None], reached: threading.Event) -> None:
    """Count the model's calls without gradients: evaluations, samples and rollouts."""
    import torch

    from nanolit.model.gpt import GPT

    plain: Any = GPT.forward

    def forward(*arguments: Any, **keywords: Any) -> Any:
        if reached.is_set() and not torch.is_grad_enabled():
            count()
        return plain(*arguments, **keywords)

    GPT.forward = forward


def warm() -> None:
    """Import what every child needs; start no thread of torch here, which a fork would lose."""
    for module in MODULES:
        importlib.import_module(module)
    import torch

    torch.set_num_threads(1)


def run_child(words: Sequence[str], root: Path, *, log: Path, blow: Blow | None = None) -> End:
    """Run `nanolit.train` with these words in a child and wait for its end."""
    return forked(lambda: train(words, root, blow), log=log)


def train(words: Sequence[str], root: Path, blow: Blow | None) -> int:
    from nanolit.train import main

    if blow:
        arm(blow, root)
    sys.argv = ["nanolit.train", *words, f"root={root}"]
    return main()


def become(work: Callable[[], int], output: int) -> None:
    """Do the work as the rest of this process's life."""
    code = 70
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # so does nohup
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - for the rest of its life
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        code = work()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)


def forked(work: Callable[[], int], *, log: Path, seconds: float = LIMIT_SECONDS) -> End:
    """Do the work in a child whose output goes to `log`, and wait for its end."""
    with log.open("w") as file:
        pid = os.fork()
        if pid == 0:
            os.setsid()
            become(work, file.fileno())
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return End(os.waitstatus_to_exitcode(status), log.read_text(errors="replace"))
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return End(None, log.read_text(errors="replace"))
        time.sleep(0.02)


def run_on_full_disk(words: Sequence[str], root: Path, *, log: Path, size: str) -> tuple[End, End] | None:
    """Run twice on a disk of `size` of its own: too small, then large enough; the run is copied to `root`.

    None where the system lends no such disk.
    """
    trial = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if trial.returncode:
        return None
    disk, mount = root.with_name("disk"), ctypes.CDLL(None, use_errno=True).mount
    disk.mkdir(exist_ok=True)

    def work() -> int:
        user = os.getuid(), os.getgid()
        assert ctypes.CDLL(None).unshare(NEW_NAMESPACES) == 0
        Path("/proc/self/setgroups").write_text("deny")
        for kind, own in zip(("uid_map", "gid_map"), user, strict=True):
            Path("/proc/self", kind).write_text(f"0 {own} 1")
        at, remount = str(disk).encode(), 32
        assert mount(b"tmpfs", at, b"tmpfs", 0, f"size={size}".encode()) == 0
        small = run_child(words, disk / "r", log=log.with_suffix(".small"))
        assert mount(b"tmpfs", at, b"tmpfs", remount, b"size=400m") == 0
        large = run_child(words, disk / "r", log=log.with_suffix(".large"))
        subprocess.run(["cp", "-r", str(disk / "r"), str(root)], check=True)
        print(small.code, large.code)
        return 0

    codes = forked(work, log=log).text.split()
    texts = [log.with_suffix(suffix).read_text(errors="replace") for suffix in (".small", ".large")]
    small, large = (End(int(code), text) for code, text in zip(codes, texts, strict=True))
    return small, large


def strike(
    words: Sequence[str], root: Path, *, log: Path, victim: str | None, after: float
) -> tuple[End, int]:
    """Run two ranks, and kill one or the parent `after` seconds of training; None: let them end.

    Return how it ended, and how many of its processes run on.
    """
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "nanolit.train", *words, f"root={root}"],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
        )
    parent, family = psutil.Process(process.pid), []
    if victim:
        until = time.monotonic() + LIMIT_SECONDS
        while process.poll() is None and "  step " not in log.read_text() and time.monotonic() < until:
            time.sleep(0.2)
        time.sleep(after)
        if process.poll() is None:
            family = parent.children(recursive=True)
            ranks = [child for child in family if "nanolit.jobs.worker" in " ".join(child.cmdline())]
            (parent if victim == "parent" else ranks[-1]).kill()
    try:
        code = process.wait(LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        family = parent.children(recursive=True)
        process.kill()
        code = None
    _, left = psutil.wait_procs(family, timeout=GONE_SECONDS)
    for child in left:
        child.kill()
    return End(code, log.read_text(errors="replace")), len(left)
