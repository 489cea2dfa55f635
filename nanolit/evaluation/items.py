"""A model's answers to every item of a task, one JSON line each; scores.py makes scores of them.

A file begins with a header that says what the items are of. An interrupted evaluation resumes where its file
ends; a file with another header is begun anew. Rank 0 alone reads and writes, and all ranks have the items.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from nanolit.evaluation.scores import FORMAT, Item, Scored, lines_of, parsed, whole_item
from nanolit.machine.device import gathered, rank, world_size
from nanolit.machine.paths import file_hash, read_json, write_atomically

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")  # of transformers


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
        lines = lines_of(path) if path.is_file() else []
        if lines and parsed(lines[0]) == self.header:
            # What follows the last line break was cut by an interruption
            self.items = {item["index"]: item for item in map(whole_item, lines[1:-1]) if item}
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


def identity(folder: Path) -> dict[str, str]:
    """Return the hashes of the weights and the tokenizer in a folder, ours or transformers'.

    They are in the headers of item files: another model's items are not taken for this one's.
    """
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not weights:
        raise ValueError(f"{folder} holds no weights (*.safetensors or *.bin); save or copy them there")
    own, theirs = folder / "tokenizer" / "tokenizer.json", [folder / name for name in TOKENIZER_FILES]
    tokenizer = str(read_json(own).get("hash")) if own.is_file() else _digest(filter(Path.is_file, theirs))
    return {"weights": _digest(weights), "tokenizer": tokenizer}


def _digest(paths: Iterable[Path]) -> str:
    digests = [file_hash(path) for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def on_all_ranks(mine: list[Item]) -> list[Item]:
    """Return the items of every rank, by index. Collective."""
    return sorted((item for piece in gathered(mine) for item in piece), key=lambda item: item["index"])


def overlap(halves: Iterable[Iterator[None]]) -> None:
    """Run generators of one yield, each to its yield before the previous one runs to its end.

    What comes before the yield asks a GPU, which works while what comes behind it writes down older answers.
    """
    previous: Iterator[None] = iter(())
    for begun in halves:
        next(begun)
        next(previous, None)
        previous = begun
    next(previous, None)


def checksum_of(ids: Sequence[int] | np.ndarray) -> int:
    """Return nanochat's checksum of a prompt: the sum of place times id, modulo the last prime below 2^32."""
    places = np.arange(1, len(ids) + 1, dtype=np.uint64)
    return int((places * np.asarray(ids, dtype=np.uint64)).sum() % 4294967291)
