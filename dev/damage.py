"""Damage every kind of file of a run in every way, and read it: `python dev/damage.py [every=N] [only=NAME]`.

A tiny run is made once; for each damage the commands that read the file work on a copy of it, each in a fork
of this process. None may end in a traceback or hang, and none may train other weights without a word. What
is printed at the end: the damages, the commands, and those that fell. every=10 tries each tenth.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib
import io
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanolit.config.compose import compose
from nanolit.config.stored import write_job

WORDS = [
    *("phase=base", "data=sample", "model.depth=2", "model.width=16", "model.heads=2", "model.context=32"),
    *("stage.tokenizer.vocab_size=300", "stage.tokenizer.max_chars=20000", "total_batch=256", "max_steps=8"),
    *("save_every=4", "stage.base.eval_tokens=128", "compile=false", "offline=true"),
]
BASE = Path("runs", "tiny", "base")
CHECKPOINT = BASE / "checkpoints" / "step_000004"
# The job of these words is composed once: Hydra would take most of the time
TRAIN = ("nanolit.jobs.execute", [*WORDS, "run=tiny"])
NEXT = ("nanolit.jobs.execute", [*WORDS, "run=next", "start_from=tiny/base"])
RUNS, REPORT = ("nanolit.runs", []), ("nanolit.report.__main__", ["run=tiny"])
CHAT = ("nanolit.chat.__main__", ["run=tiny", "max_tokens=4", "-p", "hello"])
EVALUATE = ("nanolit.evaluate", ["run=tiny"])
Command = tuple[str, list[str]]
# File → whether the run is unfinished, and the commands that read it
FILES: dict[Path, tuple[bool, list[Command]]] = {
    BASE / "job.yaml": (True, [TRAIN, RUNS, REPORT, EVALUATE]),
    BASE / "plan.json": (True, [TRAIN, RUNS, REPORT, EVALUATE]),
    BASE / "metrics.csv": (True, [TRAIN, RUNS, REPORT]),
    BASE / "samples.md": (True, [TRAIN, REPORT]),
    BASE / "result.json": (False, [TRAIN, NEXT, RUNS, REPORT]),
    CHECKPOINT / "manifest.json": (True, [TRAIN]),
    CHECKPOINT / "progress.json": (True, [TRAIN, RUNS]),
    CHECKPOINT / "data-00000-of-00001.json": (True, [TRAIN]),
    CHECKPOINT / "model.safetensors": (True, [TRAIN]),
    CHECKPOINT / "optimizer-00000-of-00001.safetensors": (True, [TRAIN]),
    BASE / "checkpoints" / "step_000008" / "model.safetensors": (False, [NEXT]),
    BASE / "checkpoints" / "step_000008" / "manifest.json": (False, [NEXT]),
    BASE / "release" / "gpt.json": (False, [NEXT, CHAT, EVALUATE]),
    BASE / "release" / "meta.json": (False, [NEXT, CHAT, EVALUATE]),
    BASE / "release" / "model.safetensors": (False, [NEXT, CHAT]),
    BASE / "release" / "tokenizer" / "tokenizer.json": (False, [NEXT, CHAT]),
    Path("tokenizers", "NAME", "tokenizer.json"): (True, [TRAIN]),
}
BYTES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda old: b"",
    "cut in half": lambda old: old[: len(old) // 2],
    "a byte more": lambda old: old + b"x",
    "zeros appended": lambda old: old + b"\0\0",
    "all zeros": lambda old: bytes(len(old)),
    "a bit flipped": lambda old: old[:-3] + bytes([old[-3] ^ 1]) + old[-2:],
    "not UTF-8": lambda old: b"\xff\xfe" + old,
    "a long line": lambda old: old + b"9" * 200_000 + b"\n",
    "first line gone": lambda old: old.partition(b"\n")[2],
    "a list": lambda old: b"[]",
    "null": lambda old: b"null",
    "a text": lambda old: b'"text"',
    "an empty object": lambda old: b"{}",
    "100,000 brackets": lambda old: b"[" * 100_000,
    "a number of 5,000 digits": lambda old: b'{"format": ' + b"1" * 5000 + b"}",
    "a tag of Python": lambda old: b"!!python/object/apply:os.system ['false']",
}
ODD = (None, "text", -1, [], {}, 1e300, True, "\x1b]0;title\x07")


@dataclass(frozen=True)
class Damage:
    """What is done to a file."""

    file: Path
    name: str
    apply: Callable[[Path], None]


def damages(root: Path, files: Iterable[Path] = tuple(FILES)) -> Iterator[Damage]:
    """Yield every damage of every kind of file."""
    for file in files:
        path = find(root, file)
        for name, change in BYTES.items():
            yield Damage(file, name, lambda path, change=change: write(path, change(path.read_bytes())))
        yield Damage(file, "gone", lambda path: path.unlink())
        yield Damage(file, "a folder", lambda path: instead(path, path.mkdir))
        yield Damage(file, "a pipe", lambda path: instead(path, lambda: os.mkfifo(path)))
        yield Damage(file, "a link to itself", lambda path: instead(path, lambda: path.symlink_to(path)))
        yield Damage(file, "not readable", lambda path: path.chmod(0))
        if path.suffix in (".json", ".yaml"):
            for index, key in enumerate(keys(load(path))):
                yield Damage(file, f"without {key}", lambda path, key=key: edit(path, key, delete=True))
                odd = ODD[index % len(ODD)]
                yield Damage(file, f"{key} {odd!r}", lambda path, key=key, odd=odd: edit(path, key, odd))


def find(root: Path, file: Path) -> Path:
    """Return the path below a root; the tokenizer's folder has a hash in its name."""
    return next(root.glob(str(file).replace("NAME", "*")))


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def instead(path: Path, make: Callable[[], None]) -> None:
    path.unlink()
    make()


def load(path: Path) -> Any:
    if path.suffix == ".json":
        return json.loads(path.read_text())  # YAML takes 1e-10 for a text
    import yaml

    return yaml.safe_load(path.read_text())


def keys(content: dict[str, Any]) -> list[str]:
    """Return the keys and those one level below, dotted."""
    inner = {key: value for key, value in content.items() if isinstance(value, dict)}
    return [*content, *(f"{key}.{name}" for key, value in inner.items() for name in list(value)[:4])]


def edit(path: Path, key: str, value: object = None, *, delete: bool = False) -> None:
    """Set or remove one key, as a valid file of its kind."""
    content = load(path)
    first, _, second = key.partition(".")
    parent, name = (content[first], second) if second and first in content else (content, key)
    if delete:
        del parent[name]
    else:
        parent[name] = value
    path.write_text(json.dumps(content))  # which is YAML too


def drop_privileges() -> None:
    """Hold root to the permissions of files, by giving up two capabilities."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        libc.capget(header, data)
        data[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.capset(header, data)


def call(command: Command, root: Path, *, seconds: float = 120) -> tuple[int | None, str]:
    """Run a command in a fork; return its exit code, None where it hung, and what it printed."""
    module, words = command
    log, job = root / "log.txt", None
    if command in (TRAIN, NEXT):
        job = root / "job.yaml"
        content: Any = {**composed(tuple(words)), "root": str(root)}
        write_job(job, content)
        words = [str(job)]
    pid = os.fork()
    if pid == 0:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        drop_privileges()
        code = 70
        try:
            sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), write_through=True)
            sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), write_through=True)
            sys.argv = [module, *words] if job else [module, *words, f"root={root}"]
            code = importlib.import_module(module).main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        os._exit(code or 0)
    deadline = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None, log.read_text(errors="replace")
        time.sleep(0.02)


@functools.cache
def composed(words: tuple[str, ...]) -> Any:
    return compose(list(words))


def weights(root: Path, run: str) -> str:
    path = root / "runs" / run / "base" / "release" / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def said(output: str) -> set[str]:
    """Return the lines of an output without their numbers and paths: what differs was said."""
    lines = [re.sub(r"/\S+|[\d.,]+", "", line).strip() for line in output.splitlines()]
    return {line for line in lines if line and not line.startswith("step")}


def prepare(folder: Path) -> tuple[Path, Path, dict[str, tuple[set[str], str]]]:
    """Make a finished and an unfinished run, and what the commands say and train when nothing is damaged."""
    finished, unfinished = folder / "finished", folder / "unfinished"
    finished.mkdir()
    code, output = call(TRAIN, finished, seconds=600)
    assert code == 0, output
    shutil.copytree(finished, unfinished)
    shutil.rmtree(unfinished / BASE / "release")
    shutil.rmtree(unfinished / BASE / "checkpoints" / "step_000008")
    (unfinished / BASE / "result.json").unlink()
    oracle = {}
    for command, root, run in ((TRAIN, unfinished, "tiny"), (NEXT, finished, "next")):
        copy = Path(shutil.copytree(root, folder / run))
        code, output = call(command, copy)
        assert code == 0, output
        oracle[run] = said(output), weights(copy, run)
    return finished, unfinished, oracle


def judge(command: Command, root: Path, oracle: dict[str, tuple[set[str], str]]) -> str:
    """Return what is wrong with a command on a damaged root, "" if nothing is."""
    code, output = call(command, root)
    if code is None:
        return "hung"
    if "Traceback (most recent call last)" in output:
        return "traceback: " + output.strip().splitlines()[-1][:150]
    if code not in (0, 1, 2):
        return f"exit code {code}: {output[-150:]}"
    if "\x1b]" in output:
        return "control characters reached the terminal"
    if code and len([line for line in output.splitlines() if line.startswith("error:")]) > 1:
        return "more than one line of error"
    if command in (TRAIN, NEXT) and code == 0:
        run = "next" if command == NEXT else "tiny"
        usual, right = oracle[run]
        if weights(root, run) != right and not said(output) - usual:
            return "trained other weights without a word"
    return ""


def warm_up() -> None:
    """Import what the commands import, once before the forks: it is most of their time."""
    modules = ("nanolit.jobs.worker", "nanolit.chat.terminal", "matplotlib.pyplot")
    for module in (*modules, *(module for _, reading in FILES.values() for module, _ in reading)):
        importlib.import_module(module)


def main(words: list[str]) -> int:
    options = dict(word.split("=", 1) for word in words)
    warm_up()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        finished, unfinished, oracle = prepare(folder)
        chosen = [one for one in damages(finished) if options.get("only", "") in str(one.file)]
        chosen = chosen[:: int(options.get("every", "1"))]
        commands, fallen = 0, []
        for damage in chosen:
            is_unfinished, reading = FILES[damage.file]
            for command in reading:
                root = Path(shutil.copytree(unfinished if is_unfinished else finished, folder / "damaged"))
                with contextlib.suppress(OSError):
                    damage.apply(find(root, damage.file))
                wrong = judge(command, root, oracle)
                commands += 1
                if wrong:
                    fallen.append(f"{damage.file}: {damage.name}: {command[0]}: {wrong}")
                    print(fallen[-1], flush=True)
                shutil.rmtree(root)
        print(f"{len(chosen)} damages, {commands} commands, {len(fallen)} fell")
        return 1 if fallen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
