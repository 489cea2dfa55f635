"""Train a tiny model for many steps, and check that memory, files, threads and logs don't keep growing.

    python dev/soak.py                  20,000 steps: about ten minutes on one core
    python dev/soak.py steps=2000       a minute

Runs the real `nanolit.train phase=base` with evaluations, samples and checkpoints, and watches it from
outside. The first fifth of the steps is left out. In the rest, memory may grow by at most a kilobyte per
step, and the second half may have hardly more open files, threads and logged bytes per step than the first.
The last line is JSON; the exit code is 1 if something grew.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from nanolit.machine.arguments import read, setting  # noqa: E402
from nanolit.machine.exit import command  # noqa: E402
from nanolit.machine.paths import read_table, stage_folder  # noqa: E402

WORDS = (
    *("phase=base", "data=sample", "run=soak", "model.depth=2", "model.width=32", "model.heads=2"),
    *("model.context=32", "total_batch=128", "stage.tokenizer.vocab_size=512"),
    *("stage.tokenizer.max_chars=200000", "compile=false", "offline=true", "stage.base.eval_tokens=256"),
)
EVERY_SECONDS = 0.5
MOST_BYTES_A_STEP = 1024  # of memory: 20 MB in 20,000 steps, which the allocator's own noise may reach
SPARE = 2  # descriptors and threads that are open for a moment, while a checkpoint is written


@dataclass(frozen=True, kw_only=True)
class Settings:
    steps: int = setting("optimizer steps", 20_000, least=1000)
    at: Path | None = setting("working folder (default: a temporary one)", None)


@dataclass(frozen=True)
class Sample:
    """Resources the process held, and bytes it had written, when it had finished a step."""

    step: int
    memory: int
    files: int
    threads: int
    log: int
    metrics: int
    samples: int


@command
def main(words: Sequence[str]) -> int:
    settings = read(Settings, words, about=__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        folder = settings.at or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        samples = watched(folder, settings.steps)
        grown = growth([sample for sample in samples if sample.step > settings.steps / 5])
        pace = settings.steps / (time.monotonic() - begun)
    wrong = [name for name, (found, allowed) in grown.items() if found > allowed]
    figures = {name: round(found, 2) for name, (found, _) in grown.items()}
    print(f"grew: {', '.join(wrong) or 'nothing'}; {len(samples):,} samples, {pace:.0f} steps per second")
    print(json.dumps({"steps": settings.steps, **figures, "grew": wrong}))
    return 1 if wrong else 0


def watched(folder: Path, steps: int) -> list[Sample]:
    """Train, and return a sample for every step at which one was taken."""
    every = steps // 40
    words = [*WORDS, f"root={folder}", f"max_steps={steps}", f"eval_every={every}"]
    words += [f"sample_every={every}", f"save_every={every}"]
    stage, log, samples = stage_folder(folder, "soak", "base"), folder / "log.txt", []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    with log.open("w") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "nanolit.train", *words],
            stdout=output, stderr=subprocess.STDOUT, env=environment,
        )  # fmt: skip
        try:
            while child.poll() is None:
                time.sleep(EVERY_SECONDS)
                if (sample := taken(psutil.Process(child.pid), stage, log)) is not None:
                    if not samples or sample.step // every > samples[-1].step // every:
                        print(json.dumps(asdict(sample)), flush=True)
                    samples.append(sample)
        finally:
            child.kill()
            child.wait()
    if child.returncode != 0 or len(samples) < 10:
        raise ValueError(f"training ended with exit code {child.returncode}:\n{log.read_text()[-3000:]}")
    return samples


def taken(process: psutil.Process, stage: Path, log: Path) -> Sample | None:
    """Return a sample; None before the first logged step, and when the process has just ended."""
    metrics = stage / "metrics.csv"
    try:
        rows = [row for row in read_table(metrics)[1] if row.get("loss")]
        return Sample(
            step=int(rows[-1]["step"]),
            memory=process.memory_info().rss,
            files=process.num_fds(),
            threads=process.num_threads(),
            log=log.stat().st_size,
            metrics=metrics.stat().st_size,
            samples=(stage / "samples.md").stat().st_size,
        )
    except (OSError, IndexError, psutil.Error):
        return None


def growth(samples: list[Sample]) -> dict[str, tuple[float, float]]:
    """Return the measured and the allowed value of each quantity."""
    steps, middle = [sample.step for sample in samples], len(samples) // 2
    memory = statistics.linear_regression(steps, [sample.memory for sample in samples]).slope
    found = {"memory, bytes per step": (memory, float(MOST_BYTES_A_STEP))}
    for name in ("files", "threads"):
        counts = [getattr(sample, name) for sample in samples]
        found[name] = (statistics.median(counts[middle:]), statistics.median(counts[:middle]) + SPARE)
    for name in ("log", "metrics", "samples"):
        first, second = (
            (getattr(part[-1], name) - getattr(part[0], name)) / (part[-1].step - part[0].step)
            for part in (samples[: middle + 1], samples[middle:])
        )
        found[f"{name}, bytes per step"] = (second, 1.2 * first + 1)
    return found


if __name__ == "__main__":
    sys.exit(main())
