"""Documents to rows of equal length: best-fit-crop packing and the flat stream, every token accounted for.

A packer takes documents from `draw`, which gives the next ones (none: the data has ended), and gives rows.
Every token drawn is kept in a row, cropped, or still held: the three are counted. Pure: no files, no torch.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np

from nanolit.tokenizer.extension import load_extension

_rustbpe = load_extension()  # None: the Python packer serves

Packing = Literal["bestfit", "flat"]
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
        """Those from `start` to before `stop`, without a copy."""
        return Documents(self.numbers[start:stop], self.tokens, self.offsets[start : stop + 1])


Draw = Callable[[], Documents | Sequence[Document]]


class Packer(Protocol):
    """What makes rows of documents, and counts every token drawn: kept, cropped, or held."""

    @property
    def num_kept(self) -> int: ...

    @property
    def num_cropped(self) -> int: ...

    @property
    def num_held(self) -> int: ...

    def pack(self, draw: Draw) -> np.ndarray | None: ...

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: Mapping, documents: Mapping[int, np.ndarray]) -> None: ...


class BestFitPacker:
    """Rows that begin with a document: the longest held document that fits, else the shortest, cropped.

    The rule of nanochat (2026), ties included: of equal lengths the one drawn first. Costs O(log n)
    comparisons a document where nanochat scans the buffer. Holds at most `capacity` tokens of each of
    `buffer` documents (more where one draw gives several): the rest of a longer one can never be placed.
    """

    def __init__(self, capacity: int, *, buffer: int) -> None:
        self.capacity = capacity
        self.buffer = buffer
        self.num_kept = self.num_cropped = 0
        self._keys: list[tuple[int, int]] = []  # (length, number), ascending
        self._tokens: dict[int, np.ndarray] = {}

    def pack(self, draw: Draw) -> np.ndarray | None:
        """The next row of `capacity` tokens; None once the documents don't fill another."""
        pieces, room, num_cropped = [], self.capacity, 0
        while room:
            while len(self._keys) < self.buffer and (documents := draw()):
                for number, tokens in documents:
                    self._hold(number, tokens)
            if not self._keys:
                self.num_cropped += self.capacity - room + num_cropped
                return None
            length, number = self._keys.pop(self._choose(room))
            piece = self._tokens.pop(number)[:room]
            pieces.append(piece)
            room -= len(piece)
            num_cropped += length - len(piece)
        self.num_kept += self.capacity
        self.num_cropped += num_cropped
        return np.concatenate(pieces)

    def _choose(self, room: int) -> int:
        """The place of the longest held document of at most `room` tokens, else of the shortest."""
        after = bisect_right(self._keys, (room + 1,))
        return bisect_left(self._keys, (self._keys[after - 1][0],)) if after else 0

    def _hold(self, number: int, tokens: np.ndarray) -> None:
        key = (len(tokens), number)
        self._keys.insert(bisect_left(self._keys, key), key)
        # A copy: a view would keep all that was encoded with it in memory.
        self._tokens[number] = tokens[: self.capacity].copy()

    @property
    def num_held(self) -> int:
        """Tokens drawn that are neither kept nor cropped yet."""
        return sum(length for length, _ in self._keys)

    def state(self) -> dict:
        """What `load_state` needs, as JSON: the held documents by number."""
        numbers = [number for _, number in self._keys]
        return {"documents": numbers, "num_kept": self.num_kept, "num_cropped": self.num_cropped}

    def load_state(self, state: Mapping, documents: Mapping[int, np.ndarray]) -> None:
        """Continue from `state`; `documents` gives the tokens of every number in state["documents"]."""
        self.num_kept, self.num_cropped = state["num_kept"], state["num_cropped"]
        self._keys, self._tokens = [], {}
        for number in state["documents"]:
            self._hold(number, documents[number])


class RustBestFitPacker:
    """`BestFitPacker`, its oracle, in Rust: the same rows, counts and state at a hundredth of the cost."""

    def __init__(self, capacity: int, *, buffer: int, dtype: type[np.generic]) -> None:
        assert _rustbpe is not None
        self.dtype = np.dtype(dtype)
        self._core = _rustbpe.BestFit(capacity, buffer=buffer, width=self.dtype.itemsize)

    def pack(self, draw: Draw) -> np.ndarray | None:
        """The next row of `capacity` tokens; None once the documents don't fill another."""
        while (row := self._core.pack(False)) is None:
            documents = draw()
            if not len(documents):
                row = self._core.pack(True)
                break
            self._hold(documents if isinstance(documents, Documents) else Documents.of(documents))
        return None if row is None else np.frombuffer(row, self.dtype)

    def _hold(self, documents: Documents) -> None:
        assert documents.tokens.dtype == self.dtype, documents.tokens.dtype
        start, stop = documents.offsets[0], documents.offsets[-1]
        tokens = documents.tokens[start:stop].view(np.uint8)
        self._core.hold(list(documents.numbers), tokens, documents.offsets - start)

    @property
    def num_kept(self) -> int:
        return self._core.num_kept

    @property
    def num_cropped(self) -> int:
        return self._core.num_cropped

    @property
    def num_held(self) -> int:
        """Tokens drawn that are neither kept nor cropped yet."""
        return self._core.num_held

    def state(self) -> dict:
        """What `load_state` needs, as JSON: the held documents by number."""
        return {
            "documents": self._core.numbers(),
            "num_kept": self._core.num_kept,
            "num_cropped": self._core.num_cropped,
        }

    def load_state(self, state: Mapping, documents: Mapping[int, np.ndarray]) -> None:
        """Continue a new packer from `state`; `documents` gives the tokens of every number in it."""
        assert not self._core.numbers()
        self._core.set_counts(state["num_kept"], state["num_cropped"])
        if state["documents"]:
            self._hold(Documents.of([(number, documents[number]) for number in state["documents"]]))


class FlatPacker:
    """One continuous stream of documents, cut into rows wherever they end: nothing is cropped.

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
        """The next row of `capacity` tokens; None once the documents don't fill another."""
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
                self._offset += len(piece) - 1
        self.num_kept += self.capacity - self._overlap
        self._overlap = 1
        return np.concatenate(pieces)

    @property
    def num_held(self) -> int:
        """Tokens drawn that are neither kept nor cropped yet."""
        return sum(len(tokens) for _, tokens in self._held) - self._offset - self._overlap

    def state(self) -> dict:
        """What `load_state` needs, as JSON: the held documents by number, and the place in the first."""
        numbers = [number for number, _ in self._held]
        counts = {"num_kept": self.num_kept, "num_cropped": self.num_cropped}
        return {"documents": numbers, "offset": self._offset, "overlap": self._overlap, **counts}

    def load_state(self, state: Mapping, documents: Mapping[int, np.ndarray]) -> None:
        """Continue from `state`; `documents` gives the tokens of every number in state["documents"]."""
        self.num_kept, self.num_cropped = state["num_kept"], state["num_cropped"]
        self._held = [(number, documents[number]) for number in state["documents"]]
        self._offset, self._overlap = state["offset"], state["overlap"]


def make_packer(packing: Packing, *, capacity: int, buffer: int, dtype: type[np.generic]) -> Packer:
    """The packer of that name, for tokens of this type; `buffer` documents are held by "bestfit" alone."""
    if packing == "bestfit" and _rustbpe is not None:
        return RustBestFitPacker(capacity, buffer=buffer, dtype=dtype)
    if packing == "bestfit":
        return BestFitPacker(capacity, buffer=buffer)
    if packing == "flat":
        return FlatPacker(capacity)
    raise ValueError(f"packing is {packing!r}; allowed are 'bestfit' and 'flat'")
