"""No damage of a file of ours ends in more than a line: the short form of dev/damage.py, without training."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dev.damage import BASE, CHECKPOINT, FILES, damages, find
from dev.damages import Damage
from nanolit import runs
from nanolit.callbacks import checkpoint
from nanolit.callbacks.throughput import history
from nanolit.config.stored import read_job
from nanolit.model.release import load_release
from nanolit.planning.plans import read_plan
from nanolit.report.card import write_report
from nanolit.report.folders import Run, Stage
from nanolit.tokenizer.bpe import Tokenizer
from tests.privileges import without_privileges

FORMAT_1 = Path(__file__).parent / "fixtures" / "run_format_1"
THERE = [file for file in FILES if list(FORMAT_1.glob(str(file).replace("NAME", "*")))]
FOUND = [*damages(FORMAT_1, THERE)]


def read_stage(root: Path) -> object:
    """Everything that a report asks of a stage."""
    stage = Stage("base", root / BASE)
    return stage.plan, stage.metrics, stage.columns, stage.step, stage.num_steps, Run(root / BASE.parent).job


READERS: dict[str, Callable[[Path], Any]] = {
    "job.yaml": lambda root: (read_job(root / BASE / "job.yaml"), read_stage(root)),
    "plan.json": lambda root: (read_plan(root / BASE), read_stage(root)),
    "result.json": read_stage,
    "metrics.csv": lambda root: (history(root / BASE / "metrics.csv", 8, log_every=1), read_stage(root)),
    "samples.md": lambda root: write_report(root, "tiny"),
    "progress.json": lambda root: (checkpoint.is_whole(root / CHECKPOINT), read_stage(root)),
    "tokenizer.json": lambda root: (
        Tokenizer.load(root / BASE / "release" / "tokenizer"),
        Tokenizer.load(next((root / "tokenizers").iterdir())),
        load_release(root / BASE / "release", device="cpu"),
    ),
    "gpt.json": lambda root: load_release(root / BASE / "release", device="cpu"),
    "meta.json": lambda root: load_release(root / BASE / "release", device="cpu"),
}


def is_judged(root: Path, damage: Damage) -> None:
    """A checkpoint is whole or it is not; a release is loaded or refused."""
    if checkpoint.is_whole(root / CHECKPOINT):
        found = checkpoint.Checkpoint(root / CHECKPOINT)
        found.positions(), dict(found.model_state())
    if "release" in damage.file.parts:
        load_release(root / BASE / "release", device="cpu")


def what_is_told(work: Callable[[], Any]) -> str:
    """Return what a command would print after `error: `; no other exception may come."""
    try:
        work()
    except (ValueError, OSError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("damage", FOUND[::13], ids=lambda one: f"{one.file.name} {one.name}")
def test_a_damaged_file_is_read_or_refused_in_one_line(damage: Damage, tmp_path: Path) -> None:
    root = Path(shutil.copytree(FORMAT_1, tmp_path / "root"))
    damage.apply(find(root, damage.file))
    reader = READERS.get(damage.file.name, lambda root: is_judged(root, damage))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        told = without_privileges(lambda: what_is_told(lambda: reader(root)))
        assert "\n" not in told
        listed: list[str] = []
        told = without_privileges(lambda: what_is_told(lambda: listed.append(runs.list_runs(root, now=0.0))))
        assert "\n" not in told
        assert not damage.file.suffix or "tiny" in listed[0]
