"""Compare two finished runs, and find files that a run left behind; for chaos.py."""

import csv
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from dev.chaos_child import PHASES

MEASURED = "second|time|wait|mfu|memory|gone"  # columns that differ between two runs of anything


def phase_reached(root: Path) -> str:
    """Return the phase that an unfinished run is in."""
    begun = [phase for phase in PHASES[2:] if (root / "runs/demo" / phase / "plan.json").exists()]
    return begun[-1] if begun else PHASES[(root / "tokenizers").exists()]


def newest_whole(root: Path, phase: str) -> int:
    manifests = root.glob(f"runs/demo/{phase}/checkpoints/step_*/manifest.json")
    return max((int(path.parent.name.removeprefix("step_")) for path in manifests), default=0)


def rows_of(root: Path, phase: str) -> list[dict[str, str]]:
    with (root / "runs/demo" / phase / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: row[key] for key in row if not re.search(MEASURED, key)} for row in rows]


def differences(
    root: Path, reference: Path, *, weights_only: bool = False, phases: Sequence[str] = PHASES[2:]
) -> list[str]:
    """Return the differences between two finished runs."""
    found = []
    for phase in phases:
        files = ["release/model.safetensors", "release/gpt.json", "release/tokenizer/tokenizer.json"]
        for file in files if weights_only else [*files, "samples.md"]:
            one, other = (folder / "runs/demo" / phase / file for folder in (root, reference))
            if not one.is_file() or sha256(one) != sha256(other):
                found.append(f"{phase}/{file} differs")
        if not weights_only and rows_of(root, phase) != rows_of(reference, phase):
            found.append(f"{phase}/metrics.csv differs")
    return found


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def left_overs(root: Path) -> list[str]:
    """Return the temporary and half-written files of a finished run."""
    steps = root.glob("runs/demo/*/checkpoints/step_*")
    half = [path for path in steps if not (path / "manifest.json").exists()]
    named = [path for path in root.rglob("*") if path.suffix == ".tmp" or ".release." in path.name]
    return [f"{path.relative_to(root)} was left behind" for path in [*half, *named]]
