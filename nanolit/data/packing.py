"""Pack documents into rows of equal length, best fit (cropped or split) or flat; account for every token.

A packer takes documents from `draw`, which gives the next ones (none: the data has ended), and makes rows.
Every token drawn is kept in a row, cropped, or still held: the three are counted. Pure: no files, no torch.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np

from nanolit.machine.system import load_extension

_rustbpe = load_extension()  # None: the Python packer serves

# bestfit (modern): every row begins with a BOS, so each token sees its document from the start, as it will at
# test time. Of a FineWeb corpus at T = 2,048 it crops 34.6% of tokens, plain cropping 39.4%, and 22.9% are
# beyond any row; fine as long as there is plenty of text (nanochat, 2026-01-13). flat (classic) crops nothing
# but begins rows in mid-document. bestfit_split crops 1.5%: better where text is scarce, d2 by 0.039 bits per
# byte at 2.9 against 1.7 epochs, worse by 0.016 where it isn't (LOG.md, 2026-11-23).
Packing = Literal["bestfit", "bestfit_split", "flat"]
# The shortest rest of a split document that is held again, as a part of a row: at T = 2,048 an eighth drops
# 2.2% of the tokens, a sixteenth 1.5% and a thirty-second 0.3%, for 0.47, 0.54 and 0.75 rests a row (LOG.md).
SMALLEST_REST_FRACTION = 1 / 16
Document = tuple[int, np.ndarray]  # its number in the sequence (ascending), its tokens, BOS first


@dataclass(frozen=True)
class Documents:
    """Documents without a Python object for each: all tokens in a row, and one more offset than numbers."""

    numbers: Sequence[int]
    tokens: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, documents: Sequence[Document]) -> "Documents":
        offsets = np.cumsum([0, *(len(tokens) for _, tokens in documents)], dtype=np.int64)
        return cls(
            [number for number, _ in documents], np.concatenate([tokens for _, tokens in documents]), offsets
        )

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Document]:
        for number, (start, stop) in zip(self.numbers, pairwise(self.offsets.tolist()), strict=True):
            yield number, self.tokens[start:stop]

    def part(self, start: int, stop: int) -> "Documents":
        """Return the documents from `start` up to `stop`, without a copy."""
        return Documents(self.numbers[start:stop], self.tokens, self.offsets[start : stop + 1])


Draw = Callable[[], Documents | Sequence[Document]]


class BestFitPacker:
    """Fill rows by the longest held document that fits, or else crop the shortest to what is left.

    The rule of nanochat (2026), ties included: of equal lengths the one drawn first. Costs O(log n)
    comparisons a document where nanochat scans the buffer. Holds at most `capacity` tokens of each of
    `buffer` documents (more where one draw gives several): the rest of a longer one can never be placed.

    With `smallest_rest` documents are split rather than cropped: the rest of a cut one is held again, behind
    its BOS once more, unless it has fewer tokens. The longest held document then opens every row, and none
    is drawn while one is longer than a row. After Ding et al. 2024 (https://arxiv.org/abs/2404.10830), who
    cut documents into rows first and pad what is left; here every row is full.
    """

    def __init__(self, capacity: int, *, buffer: int, smallest_rest: int | None = None) -> None:
        assert smallest_rest is None or capacity > 1  # a BOS alone would never come to the rest
        self.capacity = capacity
        self.buffer = buffer
        self.smallest_rest = smallest_rest
        self.num_kept = self.num_cropped = 0
        self._keys: list[tuple[int, int]] = []  # (length, number), ascending
        self._held: dict[int, tuple[np.ndarray, int]] = {}  # tokens, and how many of them rows have already

    def pack(self, draw: Draw) -> np.ndarray | None:
        """Return the next row of `capacity` tokens; None once the documents don't fill another."""
        pieces, room, num_cropped, num_repeated = [], self.capacity, 0, 0
        while room:
            # Refill after every document, not after every row: the fuller the buffer, the better the fit
            while self._wants() and (documents := draw()):
                for number, tokens in documents:
                    self._hold(number, tokens)
            if not self._keys:
                self.num_cropped += self.capacity - room - num_repeated + num_cropped
                return None
            # A document takes all of its tokens, or what still fits. One that was split before begins with
            # its BOS again, as every piece of a row does.
            length, number = self._keys.pop(self._choose(room))
            tokens, start = self._held.pop(number)
            bos = min(start, 1)
            stop = start + room - bos
            pieces += [tokens[:bos], tokens[start:stop]]
            num_repeated += bos
            rest, room = max(0, length - room), max(0, room - length)
            if rest and self.smallest_rest is not None and rest >= self.smallest_rest:
                self._hold(number, tokens, start=stop)
            else:
                num_cropped += rest
        self.num_kept += self.capacity - num_repeated
        self.num_cropped += num_cropped
        return np.concatenate(pieces)

    def _wants(self) -> bool:
        """Tell whether to draw documents."""
        long = self.smallest_rest is not None and bool(self._keys) and self._keys[-1][0] > self.capacity
        return len(self._keys) < self.buffer and not long

    def _choose(self, room: int) -> int:
        """Return the index of the longest held document of at most `room` tokens, or else of the shortest."""
        # Cropping the shortest, not one at random, loses the fewest tokens
        whole_row = self.smallest_rest is not None and room == self.capacity
        after = len(self._keys) if whole_row else bisect_right(self._keys, (room + 1,))
        return bisect_left(self._keys, (self._keys[after - 1][0],)) if after else 0

    def _hold(self, number: int, tokens: np.ndarray, *, start: int = 0) -> None:
        """Hold a document's tokens from `start`, behind its BOS."""
        key = (len(tokens) - start + min(start, 1), number)
        self._keys.insert(bisect_left(self._keys, key), key)
        if not start:  # A copy: a view would keep all that was encoded with it in memory.
            tokens = (tokens if self.smallest_rest is not None else tokens[: self.capacity]).copy()
        self._held[number] = (tokens, start)

    @property
    def num_held(self) -> int:
        """Count the tokens drawn that are neither kept nor cropped yet."""
        return sum(length for length, _ in self._keys) - sum(start > 0 for _, start in self._held.values())

    def state(self) -> dict:
        """Return the state as JSON: the held documents by number, and where split ones go on."""
        numbers = [number for _, number in self._keys]
        starts = {"starts": [self._held[number][1] for number in numbers]}
        return {
            "documents": numbers,
            **(starts if self.smallest_rest is not None else {}),
            "num_kept": self.num_kept,
            "num_cropped": self.num_cropped,
        }

    def load_state(self, state: Mapping, documents: Mapping[int, np.ndarray]) -> None:
        """Continue from `state`; `documents` has the tokens of every number in state["documents"]."""
        self.num_kept, self.num_cropped = state["num_kept"], state["num_cropped"]
        self._keys, self._held = [], {}
        for number, start in zip(state["documents"], _starts(state), strict=True):
            self._hold(number, documents[number], start=start)


def _starts(state: Mapping) -> list[int]:
    """Return how many tokens of each held document are in rows already."""
    return state.get("starts") or [0] * len(state["documents"])


class RustBestFitPacker:
    """`BestFitPacker`, its oracle, in Rust: the same rows, counts and state at a hundredth of the cost."""

    # Tokens stay in Rust until a row is full; packing is 3% of the loader's time (LOG.md, 2026-11-23)

    def __init__(
        self, capacity: int, *, buffer: int, dtype: type[np.generic], smallest_rest: int | None = None
    ) -> None:
        assert _rustbpe is not None
        self.dtype = np.dtype(dtype)
        self.smallest_rest = smallest_rest
        width = self.dtype.itemsize
        self._core = _rustbpe.BestFit(capacity, buffer=buffer, width=width, smallest_rest=smallest_rest)

    def pack(self, draw: Draw) -> np.ndarray | None:
        """Return the next row of `capacity` tokens; None once the documents don't fill another."""
        while (row := self._core.pack(False)) is None:
            documents = draw()
            if not len(documents):
                row = self._core.pack(True)
                break
            self._hold(documents if isinstance(documents, Documents) else Documents.of(documents))
        return None if row is None else np.frombuffer(row, self.dtype)

    def _hold(self, documents: Documents, *, starts: list[int] | None = None) -> None:
        assert documents.tokens.dtype == self.dtype, documents.tokens.dtype
        start, stop = documents.offsets[0], documents.offsets[-1]
        tokens = documents.tokens[start:stop].view(np.uint8)
        self._core.hold(list(documents.numbers), tokens, documents.offsets - start, starts)

    @property
    def num_kept(self) -> int:
        return self._core.num_kept

    @property
    def num_cropped(self) -> int:
        return self._core.num_cropped

    @property
    def num_held(self) -> int:
        """Count the tokens drawn that are neither kept nor cropped yet."""
        return self._core.num_held

    def state(self) -> dict:
        """Return the state as JSON: the held documents by number, and where split ones go on."""
        return {
            "documents": self._core.numbers(),
            **({"starts": self._core.starts()} if self.smallest_rest is not None else {}),
            "num_kept": self._core.num_kept,
            "num_cropped": self._core.num_cropped,
        }

    def load_state(self, state: Mapping, documents: Mapping[int, np.ndarray]) -> None:
        """Continue a new packer from `state`; `documents` gives the tokens of every number in it."""
        assert not self._core.numbers()
        self._core.set_counts(state["num_kept"], state["num_cropped"])
        if state["documents"]:
            held = Documents.of([(number, documents[number]) for number in state["documents"]])
            self._hold(held, starts=_starts(state))


class FlatPacker:
    """Join all documents and cut the stream into rows wherever they end: nothing is cropped.

    Rows overlap by a token, as nanochat's (2025) do: the last of a row, a target there, is the first input of
    the next. nanochat drops that overlap between two batches; here no token is ever skipped as an input.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.num_kept = self.num_cropped = 0
        self._held: list[Document] = []
        self._offset = 0  # within the first held document
        self._overlap = 0  # tokens at `offset` that the previous row already holds

    def pack(self, draw: Draw) -> np.ndarray | None:
        """Return the next row of `capacity` tokens; None once the documents don't fill another."""
        pieces, room = [], self.capacity
        while room:
            if not self._held:
                self._held.extend(draw())
            if not self._held:
                self.num_cropped += self.capacity - room - self._overlap
                self._overlap = 0
                return None
            tokens = self._held[0][1]
            piece = tokens[self._offset : self._offset + room]
            pieces.append(piece)
            room -= len(piece)
            if room:
                del self._held[0]
                self._offset = 0
            else:
                # The last token was only a target so far, and becomes the next row's first input
                self._offset += len(piece) - 1
        self.num_kept += self.capacity - self._overlap
        self._overlap = 1
        return np.concatenate(pieces)

    @property
    def num_held(self) -> int:
        """Count the tokens drawn that are neither kept nor cropped yet."""
        return sum(len(tokens) for _, tokens in self._held) - self._offset - self._overlap

    def state(self) -> dict:
        """Return the state as JSON: the held documents by number, and the place in the first."""
        numbers = [number for number, _ in self._held]
        counts = {"num_kept": self.num_kept, "num_cropped": self.num_cropped}
        return {"documents": numbers, "offset": self._offset, "overlap": self._overlap, **counts}

    def load_state(self, state: Mapping, documents: Mapping[int, np.ndarray]) -> None:
        """Continue from `state`; `documents` gives the tokens of every number in state["documents"]."""
        self.num_kept, self.num_cropped = state["num_kept"], state["num_cropped"]
        self._held = [(number, documents[number]) for number in state["documents"]]
        self._offset, self._overlap = state["offset"], state["overlap"]


Packer = BestFitPacker | RustBestFitPacker | FlatPacker


def make_packer(packing: Packing, *, capacity: int, buffer: int, dtype: type[np.generic]) -> Packer:
    """Return the packer of that name, for tokens of this type; all but "flat" hold `buffer` documents."""
    if packing == "flat":
        return FlatPacker(capacity)
    if packing not in get_args(Packing):
        raise ValueError(f"packing is {packing!r}; allowed are {', '.join(get_args(Packing))}")
    split = packing == "bestfit_split"
    smallest_rest = max(1, int(capacity * SMALLEST_REST_FRACTION)) if split else None
    if _rustbpe is None:
        return BestFitPacker(capacity, buffer=buffer, smallest_rest=smallest_rest)
    return RustBestFitPacker(capacity, buffer=buffer, dtype=dtype, smallest_rest=smallest_rest)
