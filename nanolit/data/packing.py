"""Documents to rows of equal length: best-fit-crop packing and the flat stream, every token accounted for.

A packer takes documents from `draw`, which gives the next ones (none: the data has ended), and gives rows.
Every token drawn is kept in a row, cropped, or still held: the three are counted. Pure: no files, no torch.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

Packing = Literal["bestfit", "flat"]
Document = tuple[int, np.ndarray]  # its number in the sequence (ascending), its tokens, BOS first
Draw = Callable[[], Sequence[Document]]


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
        # A copy: a view would keep the whole of a long document in memory.
        self._tokens[number] = tokens if len(tokens) <= self.capacity else tokens[: self.capacity].copy()

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


def make_packer(packing: Packing, *, capacity: int, buffer: int) -> BestFitPacker | FlatPacker:
    """The packer of that name; `buffer` documents are held by "bestfit" alone."""
    if packing == "bestfit":
        return BestFitPacker(capacity, buffer=buffer)
    if packing == "flat":
        return FlatPacker(capacity)
    raise ValueError(f"packing is {packing!r}; allowed are 'bestfit' and 'flat'")
