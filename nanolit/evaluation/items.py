"""What a model made of every item of a task, one JSON line each, and the scores and error bars from them.

A file begins with a header that says what the items are of. An interrupted evaluation resumes where its file
ends; a file with another header is begun anew. Rank 0 alone reads and writes, and all ranks have the items.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from nanolit.machine.device import rank, world_size
from nanolit.machine.paths import write_atomically

FORMAT = 1
Item = dict[str, Any]  # index, prompt (a checksum), right, and what the task has besides


@dataclass(frozen=True)
class Scored:
    """The share of items that are right, with the standard error of a draw of so many."""

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
    mean = sum(one.centered for one in scores) / len(scores)
    return mean, math.sqrt(sum(one.centered_error**2 for one in scores)) / len(scores)


class ItemFile:
    """The items of one task on disk. Without a path they are kept in memory alone.

    Collective: every rank must make one and add the same items.
    """

    def __init__(self, path: Path | None = None, header: Mapping[str, Any] | None = None) -> None:
        self.path, self.header = path if rank() == 0 else None, {"format": FORMAT, **(header or {})}
        self.items: dict[int, Item] = {}
        if self.path is not None:
            self._open(self.path)
        if world_size() > 1:
            held = [self.items]
            dist.broadcast_object_list(held, src=0)
            (self.items,) = held

    def _open(self, path: Path) -> None:
        lines = _lines(path) if path.is_file() else []
        if lines and _parsed(lines[0]) == self.header:
            # What follows the last line break was cut by an interruption
            self.items = {item["index"]: item for item in map(_item, lines[1:-1]) if item}
        # Written anew, so that a line that was cut is gone and the next one begins where a line begins
        kept = [self.header, *self.items.values()]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))

    def add(self, items: Iterable[Item]) -> None:
        """Keep more items, on disk before this returns."""
        new = list(items)
        self.items |= {item["index"]: item for item in new}
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(item) + "\n" for item in new))

    def scored(self, task: str, indices: Iterable[int], *, baseline: float) -> Scored:
        """Return the score over these items, all of which must be there."""
        right = [self.items[index]["right"] for index in indices]
        return Scored(task, len(right), sum(right) / len(right), baseline)


def on_all_ranks(mine: list[Item]) -> list[Item]:
    """Return the items of every rank, by index. Collective."""
    pieces: list[Any] = [mine]
    if world_size() > 1:
        pieces = [None] * world_size()
        dist.all_gather_object(pieces, mine)
    return sorted((item for piece in pieces for item in piece), key=lambda item: item["index"])


def checksum_of(ids: Sequence[int] | np.ndarray) -> int:
    """Return nanochat's checksum of a prompt: the sum of place times id, modulo the last prime below 2^32."""
    places = np.arange(1, len(ids) + 1, dtype=np.uint64)
    return int((places * np.asarray(ids, dtype=np.uint64)).sum() % 4294967291)


def read_items(path: Path) -> tuple[Item, list[Item]]:
    """Return the header and the items of a file; ValueError where it is none of ours."""
    first, *lines = _lines(path)
    header = _parsed(first)
    if header is None or header.get("format") != FORMAT:
        raise ValueError(f"{path} doesn't begin with a header of format {FORMAT}; evaluate again")
    return header, [item for item in map(_item, lines) if item]


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


def _lines(path: Path) -> list[str]:
    """Return the lines; one that was cut within a character is no whole item in any case."""
    return path.read_text(encoding="utf-8", errors="replace").split("\n")


def _item(line: str) -> Item | None:
    """Return a whole item, or None."""
    item = _parsed(line)
    kinds = {"index": int, "prompt": int, "right": bool}
    whole = item is not None and all(type(item.get(key)) is kind for key, kind in kinds.items())
    return item if whole else None


def _parsed(line: str) -> Item | None:
    try:
        parsed = json.loads(line)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None
