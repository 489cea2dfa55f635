"""The documents of one lane as an endless, seeded sequence, indexed by one number across epochs.

A position in the data is then one number, and so is a held document; no text is stored. Row
groups are read one at a time, as text or, from a cache, as tokens.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from nanolit.data.cache import TokenCache
from nanolit.data.parquet import Shard, read_texts
from nanolit.machine.device import derived_seed

if TYPE_CHECKING:
    import pyarrow as pa


class DocumentSequence:
    """A lane's share of the row groups; each epoch has all its documents, in an order of its own.

    The order is shuffled by row groups and within them, keyed by (seed, lane, epoch): a row group is read
    once an epoch. Number n is document n mod `num_documents` of epoch n // `num_documents`.
    """

    # Shuffling all documents would mix better and read a row group of about 1,000 for each of them; corpora
    # of the hub are shuffled already

    def __init__(self, groups: Sequence[tuple[Shard, int]], *, lane: int, seed: int) -> None:
        self._groups = groups  # the lane's, as stream.deal gives them
        self._sizes = np.array([shard.group_sizes[group] for shard, group in self._groups])
        self._seed, self._lane = seed, lane
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None
        # What was used last, since numbers mostly ascend: the epoch's order of row groups, the row group that
        # is open as text, and the one whose tokens are
        self._open: tuple[tuple[int, int], pa.Array, np.ndarray] | None = None
        self._cached: tuple[tuple[int, int], np.ndarray, np.ndarray, np.ndarray] | None = None
        self.num_documents = int(self._sizes.sum())

    def texts(self, numbers: Sequence[int]) -> "pa.Array":
        """Return the texts of these documents, large strings; ascending numbers read each row group once."""
        import pyarrow as pa

        parts = [self._read(*part) for part in self._parts(numbers)]
        return parts[0] if len(parts) == 1 else pa.concat_arrays(parts)

    def tokens(self, numbers: Sequence[int], cache: TokenCache) -> list[np.ndarray]:
        """Return the tokens of these documents, views of their row group's."""
        found = []
        for epoch, group, rows in self._parts(numbers):
            if self._cached is None or self._cached[0] != (epoch, group):
                order = self._order(int(self._sizes[group]), epoch, group)
                self._cached = ((epoch, group), *cache.tokens(*self._groups[group]), order)
            _, tokens, offsets, order = self._cached
            found += [tokens[offsets[n] : offsets[n + 1]] for n in order[list(rows)]]
        return found

    def _parts(self, numbers: Sequence[int]) -> Iterator[tuple[int, int, Sequence[int]]]:
        """Yield (epoch, row group, places within its order) for each stretch of numbers in one row group."""
        # Held documents are any numbers, read again after a resume; all others come as a range
        if not isinstance(numbers, range):
            for place, same in groupby(map(self._place, numbers), key=lambda place: place[:2]):
                yield *place, [row for _, _, row in same]
            return
        start = numbers.start
        while start < numbers.stop:  # a stretch costs as much as a number
            epoch, group, row = self._place(start)
            stop = min(numbers.stop, start + int(self._sizes[group]) - row)
            yield epoch, group, range(row, row + stop - start)
            start = stop

    def _place(self, number: int) -> tuple[int, int, int]:
        """Return (epoch, row group, place within the row group's order)."""
        epoch, within = divmod(number, self.num_documents)
        if self._epoch is None or self._epoch[0] != epoch:
            order = self._order(len(self._groups), epoch)
            self._epoch = (epoch, order, np.cumsum(self._sizes[order]))
        _, order, ends = self._epoch
        turn = int(np.searchsorted(ends, within, side="right"))
        return epoch, int(order[turn]), within - int(ends[turn - 1] if turn else 0)

    def _read(self, epoch: int, group: int, rows: Sequence[int]) -> "pa.Array":
        if self._open is None or self._open[0] != (epoch, group):
            texts = read_texts(*self._groups[group])
            self._open = ((epoch, group), texts, self._order(len(texts), epoch, group))
        _, texts, order = self._open
        return texts.take(order[rows.start : rows.stop] if isinstance(rows, range) else order[rows])

    def _order(self, size: int, *keys: int) -> np.ndarray:
        return permutation(size, self._seed, "document order", self._lane, *keys)


def permutation(size: int, seed: int, purpose: str, *keys: int) -> np.ndarray:
    """Return a permutation that depends on the arguments alone."""
    # RandomState, not default_rng: its stream is frozen in every version of numpy
    generator = np.random.RandomState(derived_seed(seed, purpose, *keys) % (1 << 32))
    return generator.permutation(size)
