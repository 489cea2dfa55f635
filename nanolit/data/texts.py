"""A corpus's texts, to train and compare tokenizers: as arrow arrays or as strings; no torch."""

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


def training_texts(
    corpus: Corpus, *, max_characters: int, max_document_characters: int = 10_000
) -> Iterator[str]:
    """Yield the training split's documents, cut as `training_arrays` cuts them."""
    # 10,000 characters a document at most, as nanochat, so that no long book decides the vocabulary
    limits = {"max_characters": max_characters, "max_document_characters": max_document_characters}
    for texts in training_arrays(corpus, **limits):
        yield from texts.to_pylist()


def validation_texts(corpus: Corpus) -> Iterator[str]:
    """Yield the held-out documents, in the files' order."""
    for shard, group in corpus.validation_groups():
        yield from read_texts(shard, group).to_pylist()
