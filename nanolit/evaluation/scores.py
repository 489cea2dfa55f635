"""Scores with error bars, and the items on disk that give them. Without torch: reports read them too."""

import json
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from nanolit.machine.paths import DamagedFile, check_content, read_text

FORMAT = 1
Item = dict[str, Any]  # a `Kept`, and the task's own keys


class ValRows(TypedDict):
    """The rows that bits per byte are of: only figures of the same rows compare."""

    tokens: int
    rows: int
    checksum: str


class Gradients(TypedDict):
    """The step from which the gradients were right, and what was wrong before."""

    right_from: int
    before: NotRequired[str]


class Kept(TypedDict):
    """The fields that are read of every item."""

    index: int
    prompt: int  # a checksum
    right: bool
    replies: NotRequired[list[str]]
    extracted: NotRequired[list[Any]]
    losses: NotRequired[list[float | None] | dict[str, float | None]]


@dataclass(frozen=True)
class Scored:
    """The share of items that are right, with the standard error of a sample of that size."""

    task: str
    num_items: int
    accuracy: float
    baseline: float  # what guessing gets right

    @property
    def error(self) -> float:
        # Of Laplace's estimate: a score of 0 or 1 is not certain
        share = (self.accuracy * self.num_items + 1) / (self.num_items + 2)
        return math.sqrt(share * (1 - share) / self.num_items)

    @property
    def centered(self) -> float:
        """0 for guessing, 1 for all right."""
        return (self.accuracy - self.baseline) / (1 - self.baseline)

    @property
    def centered_error(self) -> float:
        return self.error / (1 - self.baseline)


def mean_centered(scores: Iterable[Scored]) -> tuple[float, float]:
    """Return the mean above guessing and its standard error."""
    scores = list(scores)
    mean = sum(score.centered for score in scores) / len(scores)
    return mean, math.sqrt(sum(score.centered_error**2 for score in scores)) / len(scores)


def item_files(folder: Path) -> dict[str, Path]:
    """Return the items in a stage's evaluation folder by task: of the chat tasks, and of CORE's."""
    return {path.stem: path for path in sorted([*folder.glob("*.jsonl"), *folder.glob("core/*.jsonl")])}


def read_items(path: Path) -> tuple[Item, list[Item]]:
    """Return the header and the items of a file; ValueError where it is none of ours."""
    first, *lines = lines_of(path)
    header = parsed(first)
    if header is None or header.get("format") != FORMAT:
        raise ValueError(f"{path} doesn't start with a header of format {FORMAT}; evaluate again")
    items = [whole_item(line) for line in lines if line]
    if damaged := items[:-1].count(None):  # the last line may have been cut by an interruption
        warnings.warn(f"{path}: {damaged:,} damaged lines are left out; evaluate again", stacklevel=2)
    return header, [item for item in items if item]


def paired_difference(one: Iterable[Item], other: Iterable[Item]) -> tuple[float, float, int]:
    """Return the difference of two models' accuracies on the items both have, its error, and their number.

    Positive where the second is better. Pairing takes out what is hard for both.
    """
    first = {(item["index"], item["prompt"]): item["right"] for item in one}
    pairs = [
        other_item["right"] - first[key]
        for other_item in other
        if (key := (other_item["index"], other_item["prompt"])) in first
    ]
    if len(pairs) < 2:
        raise ValueError(f"the two have {len(pairs)} items in common; evaluate both on the same items")
    mean = sum(pairs) / len(pairs)
    variance = sum((pair - mean) ** 2 for pair in pairs) / (len(pairs) - 1)
    return mean, math.sqrt(variance / len(pairs)), len(pairs)


def lines_of(path: Path) -> list[str]:
    """Return the lines; one that was cut within a character is no whole item in any case."""
    return read_text(path, remedy="delete it and evaluate again", errors="replace").split("\n")


def whole_item(line: str) -> Item | None:
    """Return the item of a line, or None where the line was cut or damaged."""
    item = parsed(line)
    try:
        check_content(item or {}, Kept, Path(), remedy="")
    except DamagedFile:
        return None
    return item


def parsed(line: str) -> Item | None:
    """Return the object of a line, or None."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
