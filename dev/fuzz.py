"""Feed strange inputs to every reader and command: files, texts, chats, words, requests, sums, programs.

    python dev/fuzz.py                              a minute: 800 inputs
    python dev/fuzz.py inputs=8000                  twenty minutes on two shared cores
    python dev/fuzz.py kinds=chats number=17        run only this input, and show it with its outcome

Seed, kind and number determine an input. Each is fed to the real reader, in a process for its kind, and must
be accepted, or refused in one line, as a command would print it. Counts as a failure: any other exception,
several lines, control characters in the output, a hang, a crash, or damaged input accepted as intact, where
that can be checked. The last line is JSON; the exit code is 1 if anything failed.
"""

import contextlib
import io
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import psutil
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "launch"), str(ROOT / "tests" / "data")]
os.environ |= {
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "NO_PROXY": "*",
}
from dev.fuzz_files import FILES, Kind, Opener  # noqa: E402
from dev.fuzz_inputs import INPUTS  # noqa: E402
from dev.fuzz_words import WORDS  # noqa: E402
from nanolit.machine.arguments import choose, read, setting  # noqa: E402
from nanolit.machine.exit import command  # noqa: E402
from nanolit.machine.terminal import printable  # noqa: E402
from nanolit.report.tables import markdown_table  # noqa: E402

OPENERS: dict[str, Opener] = FILES | WORDS
KINDS = {name: (share, OPENERS[name]) for name, share in INPUTS["shares"].items()}
HANG_SECONDS = 20.0  # of the processor's time
WAIT_SECONDS = 120.0  # for an input that uses none
MEMORY = 6 << 30  # bytes beyond what the process has


@dataclass(frozen=True, kw_only=True)
class Settings:
    inputs: int = setting("number of inputs over all kinds", 800, least=1)
    seed: int = setting("random seed", 1)
    kinds: tuple[str, ...] = setting("run only these kinds", (), value="KIND")
    number: int | None = setting("run and show only this input of each kind", None, least=0)


@dataclass(frozen=True)
class Result:
    """The outcome of an input: "accepted", "refused" or "failed"."""

    number: int
    outcome: str
    about: str = ""
    seconds: float = 0.0


def source(seed: int, kind: str, number: int) -> Random:
    return Random(f"{seed} {kind} {number}")


def judged(kind: Kind, new: Any) -> tuple[str, str]:
    """Feed an input as a command would; return the outcome, and the fault or the output."""
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)

    def main(_: Sequence[str]) -> int:
        code = kind.feed(new)
        return code if isinstance(code, int) else 0

    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = command(main)([])
    except SystemExit as error:
        code = error.code
    except BaseException as error:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if "/nanolit/" in frame.filename]
        places = " ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in own[-3:])
        return "failed", f"{type(error).__name__}: {str(error)[:300]} at {places}"
    said = output.buffer.getvalue().decode()
    _, error, after = said.rpartition("error: ") if code == 2 else ("", "error: ", "")
    wrong = {
        f"exit code {code}": code not in (0, 1, 2, 130),
        "a traceback": "Traceback (most recent call last)" in said,
        "control characters": said != printable(said),
        "no error line": not error,
        "several lines": after.count("\n") > 1 or any(mark in after for mark in "\u2028\x85"),
    }
    if reasons := [reason for reason, holds in wrong.items() if holds]:
        return "failed", f"{', '.join(reasons)}: {said[-400:]!r}"
    return ("refused", after.strip()) if code else ("accepted", said[-200:])


def work(name: str, numbers: Sequence[int], settings: Settings, folder: Path, results: int) -> None:
    """Feed the inputs of these numbers, as the rest of this process's life."""
    warnings.simplefilter("always")
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    kind = KINDS[name][1](folder)
    for number in numbers:
        new, begun = kind.make(source(settings.seed, name, number)), time.process_time()
        if settings.number is not None:
            print(f"{name} {number}: {new!r:.3000}", flush=True)
        outcome, about = judged(kind, new)
        result = [number, outcome, about, time.process_time() - begun]
        os.write(results, json.dumps(result).encode() + b"\n")


def results_of(name: str, numbers: Sequence[int], settings: Settings) -> Iterator[Result]:
    """Yield the result of each input; a process that hangs or ends is replaced."""
    while numbers:
        with tempfile.TemporaryDirectory() as folder:
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                code = 70
                try:
                    os.setsid()
                    work(name, numbers, settings, Path(folder), writing)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                os._exit(code)
            os.close(writing)
            done = 0
            try:
                for result in watched(pid, reading):
                    done += 1
                    yield result
            finally:
                os.close(reading)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
            numbers = numbers[done:]
            if numbers:
                yield Result(
                    numbers[0], "failed", f"hung, or ended with exit code {os.waitstatus_to_exitcode(status)}"
                )
                numbers = numbers[1:]


def watched(pid: int, reading: int) -> Iterator[Result]:
    """Yield results until the process ends, or has none for too long."""
    process, buffer = psutil.Process(pid), b""
    begun, used = time.monotonic(), 0.0
    while time.monotonic() - begun < WAIT_SECONDS and seconds_of(process) - used < HANG_SECONDS:
        if not select.select([reading], [], [], 1.0)[0]:
            continue
        piece = os.read(reading, 1 << 16)
        if not piece:
            return
        *lines, buffer = (buffer + piece).split(b"\n")
        yield from (Result(*json.loads(line)) for line in lines)
        begun, used = time.monotonic(), seconds_of(process)


def seconds_of(process: psutil.Process) -> float:
    try:
        return sum(process.cpu_times()[:2])
    except psutil.NoSuchProcess:
        return 0.0


def shares(settings: Settings) -> dict[str, Sequence[int]]:
    """Return the numbers of each kind's inputs."""
    chosen = [choose(name, KINDS, kind="kind") for name in settings.kinds] or [*KINDS]
    if settings.number is not None:
        return {name: [settings.number] for name in chosen}
    total = sum(share for share, _ in KINDS.values())
    return {name: range(-(-KINDS[name][0] * settings.inputs // total)) for name in chosen}


@command
def main(words: Sequence[str]) -> int:
    settings = read(Settings, words, about=__doc__)
    os.environ |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    torch.set_num_threads(1)
    rows, failures, counts = [], [], Counter()
    for name, numbers in shares(settings).items():
        seen, slowest = Counter(), 0.0
        for result in results_of(name, numbers, settings):
            seen[result.outcome] += 1
            slowest = max(slowest, result.seconds)
            if result.outcome == "failed" or settings.number is not None:
                print(f"{name} {result.number}: {result.outcome}: {printable(result.about)}", flush=True)
            if result.outcome == "failed":
                failures.append(f"kinds={name} number={result.number} seed={settings.seed}")
        counts += seen
        outcomes = [f"{seen[outcome]:,}" for outcome in ("accepted", "refused", "failed")]
        rows.append([name, f"{seen.total():,}", *outcomes, f"{slowest:.2f}"])
        print(" · ".join(rows[-1]), file=sys.stderr, flush=True)
    print(markdown_table(["Kind", "Inputs", "Accepted", "Refused", "Failed", "Slowest, CPU s"], rows))
    print(json.dumps({"seed": settings.seed, "inputs": counts.total(), **counts, "failures": failures}))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
