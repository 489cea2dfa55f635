"""The documents of one lane as an endless, seeded sequence: a number names a document in every epoch.

A position in the data is then one number, and a held document another; nothing of the text is stored. Row
groups are read one at a time.
"""

from collections.abc import Sequence

import numpy as np

from nanolit.data.shards import Shard, read_texts
from nanolit.machine.device import derived_seed


class DocumentSequence:
    """A lane's share of the row groups; each epoch has all its documents, in an order of its own.

    The order is shuffled by row groups and within them, keyed by (seed, lane, epoch): a row group is read
    once an epoch. Number n is document n mod `num_documents` of epoch n // `num_documents`.
    """

    def __init__(self, groups: Sequence[tuple[Shard, int]], *, lane: int, lanes: int, seed: int) -> None:
        self._groups = deal(groups, lanes)[lane]
        self._sizes = np.array([shard.group_sizes[group] for shard, group in self._groups])
        self._key = (seed, lane)
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None
        self._open: tuple[tuple[int, int], list[str] | object, np.ndarray] | None = None
        self.num_documents = int(self._sizes.sum())

    def texts(self, numbers: Sequence[int]) -> list[str]:
        """The texts of these documents; ascending numbers read each row group once."""
        texts: list[str] = []
        start = 0
        places = [self._place(number) for number in numbers]
        while start < len(places):
            stop = start
            while stop < len(places) and places[stop][:2] == places[start][:2]:
                stop += 1
            texts += self._read(*places[start][:2], rows=[row for _, _, row in places[start:stop]])
            start = stop
        return texts

    def _place(self, number: int) -> tuple[int, int, int]:
        """(epoch, row group, place within the row group's order)."""
        epoch, within = divmod(number, self.num_documents)
        if self._epoch is None or self._epoch[0] != epoch:
            order = _permutation(len(self._groups), *self._key, epoch)
            self._epoch = (epoch, order, np.cumsum(self._sizes[order]))
        _, order, ends = self._epoch
        turn = int(np.searchsorted(ends, within, side="right"))
        return epoch, int(order[turn]), within - int(ends[turn - 1] if turn else 0)

    def _read(self, epoch: int, group: int, *, rows: list[int]) -> list[str]:
        if self._open is None or self._open[0] != (epoch, group):
            texts = read_texts(*self._groups[group])
            self._open = ((epoch, group), texts, _permutation(len(texts), *self._key, epoch, group))
        _, texts, order = self._open
        return texts.take(order[rows]).to_pylist()  # type: ignore[union-attr]


def deal(groups: Sequence[tuple[Shard, int]], lanes: int) -> list[list[tuple[Shard, int]]]:
    """The row groups of every lane: the largest first, each to the lane that has the fewest documents yet.

    All lanes give equally many rows, so a lane with few documents would repeat them while others have not
    been read once. Dealt in turn, the short last groups of the shards can all fall to the same lanes.
    """
    sizes = [shard.group_sizes[group] for shard, group in groups]
    shares: list[list[int]] = [[] for _ in range(lanes)]
    documents = [0] * lanes
    for index in sorted(range(len(groups)), key=lambda one: -sizes[one]):
        lane = documents.index(min(documents))
        shares[lane].append(index)
        documents[lane] += sizes[index]
    return [[groups[index] for index in sorted(share)] for share in shares]


def _permutation(size: int, seed: int, *keys: int) -> np.ndarray:
    """A permutation that depends on the arguments alone; RandomState's stream is frozen in every numpy."""
    generator = np.random.RandomState(derived_seed(seed, "document order", *keys) % (1 << 32))
    return generator.permutation(size)
