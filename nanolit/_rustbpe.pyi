"""The Rust extension (rustbpe/): byte-level BPE, trained and applied at full speed."""

from collections.abc import Callable, Iterable

import numpy as np

def train(
    texts: Iterable[str | tuple[np.ndarray, np.ndarray]],
    *,
    pattern: str,
    num_tokens: int,
    threads: int,
    max_words: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[bytes]:
    """Tokens in rank order, the 256 bytes first; fewer than `num_tokens` if the texts hold no more pairs.

    A text is a str, or (offsets int64, UTF-8 uint8) of many. About twice a second `progress` is called with
    ("count", bytes, distinct words), once with ("counted", …) when all are, then with ("merge", merges made,
    merges asked for). ValueError beyond `max_words` distinct words.
    """

class Encoder:
    """Text to ids, exactly tiktoken's; any number of threads may use it at once."""

    def __init__(self, tokens: list[bytes], *, pattern: str, wide: bool) -> None:
        """`tokens` in rank order, the bytes 0 to 255 first; a batch's ids take 4 bytes if `wide`, else 2."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text; UnicodeEncodeError where it holds half a surrogate pair."""

    def encode_flat(
        self, texts: list[str] | tuple[np.ndarray, np.ndarray], *, first: int | None, threads: int
    ) -> tuple[bytearray, bytearray]:
        """The ids of all texts as bytes, each text's after `first` if it is an id; 64-bit offsets.

        `texts` are strings, or (offsets int64, UTF-8 uint8) of many.
        """

class BestFit:
    """nanolit.data.packing.BestFitPacker's rows."""

    num_kept: int
    num_cropped: int
    num_held: int

    def __init__(self, capacity: int, *, buffer: int, width: int, smallest_rest: int | None = None) -> None:
        """Rows of `capacity` tokens of `width` bytes, chosen from at least `buffer` documents."""

    def hold(
        self, numbers: list[int], tokens: np.ndarray, offsets: np.ndarray, starts: list[int] | None
    ) -> None:
        """Documents: their tokens one after another as bytes, where each begins, and goes on, in tokens."""

    def pack(self, ended: bool) -> bytearray | None:
        """The next row; None where documents have to be held first or, once they have ended, none is full."""

    def numbers(self) -> list[int]:
        """The numbers of the held documents, the shortest first."""

    def starts(self) -> list[int]:
        """How many tokens of each of them rows have already."""

    def set_counts(self, num_kept: int, num_cropped: int) -> None:
        """Count kept and cropped tokens on from these."""
