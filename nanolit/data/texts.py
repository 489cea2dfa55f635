"""A corpus's training text as arrow arrays, for training a tokenizer without Python strings; no torch."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from nanolit.data.parquet import Corpus, read_texts

if TYPE_CHECKING:
    import pyarrow as pa


def training_arrays(
    corpus: Corpus, *, max_characters: int, max_document_characters: int = 10_000
) -> "Iterator[pa.LargeStringArray]":
    """Yield the training split's documents, in the files' order, for training a tokenizer.

    Each is cut at `max_document_characters` (10,000 in nanochat), and all together at `max_characters`. An
    array for each row group: no document becomes a Python object.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    left = max_characters
    for shard in corpus.train_shards:
        for group in range(len(shard.group_sizes)):
            texts = _cut(read_texts(shard, group), max_document_characters)
            # not to_numpy, which imports pandas: a second or more, and a Ctrl-C in it is lost
            ends = np.cumsum(np.from_dlpack(pc.call_function("utf8_length", [texts])))
            num_whole = int(np.searchsorted(ends, left, side="right"))
            if num_whole < len(texts):
                left -= int(ends[num_whole - 1]) if num_whole else 0
                last = _cut(texts[num_whole : num_whole + 1], left)
                yield pa.concat_arrays([texts[:num_whole], last])
                return
            yield texts
            left -= int(ends[-1]) if len(ends) else 0
            if left <= 0:
                return


def _cut(texts: "pa.LargeStringArray", num_characters: int) -> "pa.LargeStringArray":
    """Return the first `num_characters` of each text."""
    import pyarrow.compute as pc

    return pc.call_function("utf8_slice_codeunits", [texts], pc.SliceOptions(0, num_characters))
