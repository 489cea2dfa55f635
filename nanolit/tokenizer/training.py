"""Train a byte-level BPE, in Rust if installed, otherwise with the readable Python twin."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from nanolit.machine.system import available_cores, load_extension
from nanolit.tokenizer import twin

if TYPE_CHECKING:
    import pyarrow as pa

_rustbpe = load_extension()  # None: the Python twin trains

# The twin takes about a minute for this many characters; Rust takes half a second.
TWIN_MAX_CHARACTERS = 20_000_000
# Different words, kept in memory, about 200 bytes each; 88 MB of Wikipedia, books and news have 0.47 million.
MAX_WORDS = 50_000_000
TELL_EVERY_SECONDS = 2.0
PIECE_BYTES = 4 << 20  # of an arrow array that are counted before Ctrl-C is looked for again

Buffers = tuple[np.ndarray, np.ndarray]


def learn(
    texts: "Iterable[str | pa.Array]",
    *,
    pattern: str,
    num_tokens: int,
    threads: int | None = None,
    max_words: int = MAX_WORDS,
    tell: Callable[[str], None] | None = None,
) -> list[bytes]:
    """Learn tokens in rank order, the 256 bytes first; fewer than `num_tokens` if there are no more pairs.

    `threads` None means one for each core. Arrow arrays reach Rust without becoming Python objects.
    `tell` is handed lines about the progress. Ctrl-C works within a second.
    """
    if _rustbpe is None:
        return twin.train(_few(_strings(texts)), pattern=pattern, num_tokens=num_tokens)
    return _rustbpe.train(
        _buffers(texts),
        pattern=pattern,
        num_tokens=num_tokens,
        threads=threads or available_cores(),
        max_words=max_words,
        progress=Progress(tell) if tell else None,
    )


class Progress:
    """Turn the trainer's reports into lines for people: words counted, merges made, time left.

    One line when all is counted, and one every two seconds before and after that.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._told = time.monotonic()
        self._before: tuple[float, int] | None = None  # when, and how many merges there were

    def __call__(self, doing: str, done: int, all: int) -> None:
        if doing == "counted":
            return self._tell(f"counted {done / 1e6:,.1f} MB: {all:,} distinct words")
        now = time.monotonic()
        left = ""
        if doing == "merge":
            if self._before and done > self._before[1]:
                seconds = (all - done) * (now - self._before[0]) / (done - self._before[1])
                left = f", at most {seconds:,.0f} s left"  # each merge is quicker than those before it
            self._before = (now, done)
        if now - self._told < TELL_EVERY_SECONDS:
            return
        self._told = now
        if doing == "count":
            self._tell(f"counting: {done / 1e6:,.0f} MB, {all:,} distinct words so far")
        else:
            self._tell(f"made {done:,} of {all:,} merges{left}")


def _buffers(texts: "Iterable[str | pa.Array]") -> Iterator[str | Buffers]:
    for index, item in enumerate(texts):
        if hasattr(item, "buffers"):
            yield from _pieces(*as_buffers(item, index))
        else:
            yield item


def _pieces(bounds: np.ndarray, text: np.ndarray) -> Iterator[Buffers]:
    """Yield the same texts, a few MB at a time."""
    start, last = 0, len(bounds) - 1
    while start < last:
        end = max(int(np.searchsorted(bounds, bounds[start] + PIECE_BYTES, side="right")) - 1, start + 1)
        yield bounds[start : end + 1] - bounds[start], text[bounds[start] : bounds[end]]
        start = end


def as_buffers(array: "pa.Array", index: int = 0) -> Buffers:
    """Return offsets and UTF-8 of an arrow array of strings, without copying the text."""
    import pyarrow as pa

    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        raise ValueError(
            f"text {index} is an arrow array of {array.type}; the tokenizer trains on strings: "
            "choose a column of text"
        )
    if array.null_count:
        row = array.is_null().index(True).as_py()
        raise ValueError(f"text {index} is an arrow array whose row {row} has no text; leave out such rows")
    array = array.cast(pa.large_string())
    _, offsets, content = array.buffers()
    if not len(array):
        return np.zeros(1, np.int64), np.zeros(0, np.uint8)
    bounds = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    content = np.frombuffer(content or b"", np.uint8)[bounds[0] : bounds[-1]]  # of a slice, only its part
    return bounds - bounds[0], content


def _strings(texts: "Iterable[str | pa.Array]") -> Iterator[str]:
    for item in texts:
        if hasattr(item, "to_pylist"):
            yield from item.to_pylist()  # type: ignore[union-attr]
        else:
            yield item  # type: ignore[misc]


def _few(texts: Iterable[str]) -> Iterator[str]:
    """Yield `texts` for the twin, with a warning; ValueError beyond what it handles in about a minute."""
    remedy = "install Rust 1.85 or newer (https://rustup.rs), then install NanoLit again"
    warnings.warn(
        "NanoLit was installed without its Rust extension: training the tokenizer in Python, slowly; "
        + remedy,
        RuntimeWarning,
        stacklevel=3,
    )
    num_characters = 0
    for text in texts:
        num_characters += len(text) if isinstance(text, str) else 0
        if num_characters > TWIN_MAX_CHARACTERS:
            raise ValueError(
                f"the text has more than {TWIN_MAX_CHARACTERS:,} characters, the limit for training a "
                f"tokenizer without the Rust extension; {remedy}, or train on less text"
            )
        yield text
