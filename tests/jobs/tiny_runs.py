"""Runs small enough for tests: a corpus of a few documents, a model of two layers, a few steps."""

import csv
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

WORDS = [
    "the",
    "a",
    "of",
    "and",
    "to",
    "in",
    "was",
    "he",
    "it",
    "sea",
    "stone",
    "river",
    "light",
    "old",
    "house",
]
STEPS = 24


def write_corpus(folder: Path) -> Path:
    """Sixteen row groups of four documents to train on, so that so few steps are more than two epochs."""
    folder.mkdir()
    source = random.Random(0)
    for name, groups in (("train.parquet", 16), ("val.parquet", 2)):
        texts = [" ".join(source.choices(WORDS, k=source.randint(20, 90))) for _ in range(4 * groups)]
        pq.write_table(pa.table({"text": texts}), folder / name, row_group_size=4)
    return folder


def overrides(corpus: Path, root: Path, *more: str) -> list[str]:
    """What is typed for a tiny run: 16 rows of 32 tokens a step, in micro-batches of 4."""
    return [
        "phase=base",
        "model.depth=2",
        "model.width=32",
        "model.heads=2",
        "model.context=32",
        "stage.tokenizer.vocab_size=300",
        "data=local",
        f"data.path={corpus}",
        "total_batch=512",
        "micro_batch=4",
        f"max_steps={STEPS}",
        "stage.base.eval_tokens=128",
        "run=tiny",
        f"root={root}",
        *more,
    ]


def train(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m nanolit.train` as a person starts it."""
    return subprocess.run(
        [sys.executable, "-m", "nanolit.train", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def losses(root: Path, run: str = "tiny") -> dict[int, str]:
    """Step → the loss as written, to the last digit."""
    with (root / "runs" / run / "base" / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): row["loss"] for row in csv.DictReader(file) if row["loss"]}


def keep_only_checkpoint(source: Path, target: Path, step: int) -> None:
    """A copy of a root in which the run had just written the checkpoint of `step` when it was killed."""
    shutil.copytree(source, target)
    stage = target / "runs" / "tiny" / "base"
    (stage / "result.json").unlink(missing_ok=True)
    for folder in (stage / "checkpoints").iterdir():
        if folder.name != f"step_{step:06d}":
            shutil.rmtree(folder)
