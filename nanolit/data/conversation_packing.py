"""Conversations to rows (pure): which slices of which conversations a row holds. Nothing is cropped.

A row has `capacity` = context + 1 tokens: its inputs are all but the last, its targets all but the first.
"""

import bisect
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

Packing = Literal["bestfit", "single", "flat"]
Slice = tuple[int, int, int]  # conversation, first token, end
Row = list[Slice]
BUFFER = 100  # conversations to choose from, as in nanochat


def pack(
    lengths: Sequence[int] | np.ndarray, order: np.ndarray, *, capacity: int, packing: Packing
) -> list[Row]:
    """Return the rows of the conversations in `order`, each of `lengths[conversation]` tokens."""
    if packing == "bestfit":
        return pack_bestfit(lengths, order, capacity=capacity)
    if packing == "single":
        return [[(int(number), 0, int(lengths[number]))] for number in order]
    if packing == "flat":
        return pack_flat(lengths, order, capacity=capacity)
    raise ValueError(f"packing is {packing!r}; allowed: bestfit, single, flat")


def pack_bestfit(
    lengths: Sequence[int] | np.ndarray, order: Iterable[int], *, capacity: int, buffer: int = BUFFER
) -> list[Row]:
    """Fill row after row with the longest conversation of the buffer that still fits; what is left is
    padding.

    Every conversation is placed once and whole; the longest may be of `capacity`. O(n · buffer) at worst, by
    insertion into a sorted list; 0.8M conversations take seconds.
    """
    coming = iter(order)
    waiting: list[
        tuple[int, int, int]
    ] = []  # (length, minus arrival, conversation): of equals the first goes first
    num_arrived = 0
    rows: list[Row] = []
    while True:
        row: Row = []
        space = capacity
        while True:
            while len(waiting) < buffer and (number := next(coming, None)) is not None:
                assert lengths[number] <= capacity, "cut conversations to the capacity first"
                bisect.insort(waiting, (int(lengths[number]), -num_arrived, int(number)))
                num_arrived += 1
            fitting = bisect.bisect_right(waiting, (space, 1, 0))
            if fitting == 0:
                break
            length, _, number = waiting.pop(fitting - 1)
            row.append((number, 0, length))
            space -= length
        if not row:
            return rows
        rows.append(row)


def pack_flat(lengths: Sequence[int] | np.ndarray, order: np.ndarray, *, capacity: int) -> list[Row]:
    """All tokens end to end. A row begins with the last token of the one before, so that each is a target
    once."""
    ends = np.cumsum(np.asarray(lengths)[order])
    total = int(ends[-1])
    rows: list[Row] = []
    for start in range(0, max(total - 1, 1), capacity - 1):
        stop = min(start + capacity, total)
        row: Row = []
        turn = int(np.searchsorted(ends, start, side="right"))
        while start < stop:
            number = int(order[turn])
            begin = int(ends[turn]) - int(lengths[number])
            end = min(stop, int(ends[turn]))
            row.append((number, start - begin, end - begin))
            start, turn = end, turn + 1
        rows.append(row)
    return rows
