"""Base pretraining's data from a corpus: the tokenizer's training text, the stream, the validation rows."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from nanolit.data.packing import Packing
from nanolit.data.shards import Corpus, read_texts
from nanolit.data.stream import PretrainStream
from nanolit.data.validation import ValidationRows
from nanolit.tokenizer.bpe import Tokenizer

if TYPE_CHECKING:
    import pyarrow as pa


def make_pretraining(
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    context: int,
    rows: int,
    micro_batch: int,
    seed: int,
    packing: Packing,
    validation_tokens: int | None,
    rank: int = 0,
    world: int = 1,
) -> tuple[PretrainStream, ValidationRows]:
    """This rank's endless steps of `rows` rows in all, and its share of the held-out rows."""
    stream = PretrainStream(
        corpus,
        tokenizer,
        context=context,
        rows=rows,
        micro_batch=micro_batch,
        seed=seed,
        packing=packing,
        rank=rank,
        world=world,
    )
    validation = ValidationRows(
        corpus,
        tokenizer,
        context=context,
        micro_batch=micro_batch,
        packing=packing,
        num_tokens=validation_tokens,
        rank=rank,
        world=world,
    )
    return stream, validation


def training_arrays(
    corpus: Corpus, *, max_characters: int, max_document_characters: int = 10_000
) -> "Iterator[pa.LargeStringArray]":
    """The training split's documents, in the files' order, for training a tokenizer; never a held-out one.

    Each is cut at `max_document_characters` (10,000 in nanochat), and all together at `max_characters`. An
    array for each row group: no document becomes a Python object.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    left = max_characters
    for shard in corpus.train_shards:
        for group in range(len(shard.group_sizes)):
            texts = read_texts(shard, group).cast(pa.large_string())
            texts = pc.utf8_slice_codeunits(texts, 0, stop=max_document_characters)
            ends = np.cumsum(pc.utf8_length(texts).to_numpy())
            num_whole = int(np.searchsorted(ends, left, side="right"))
            if num_whole < len(texts):
                left -= int(ends[num_whole - 1]) if num_whole else 0
                last = pc.utf8_slice_codeunits(texts[num_whole : num_whole + 1], 0, stop=left)
                yield pa.concat_arrays([texts[:num_whole], last])
                return
            yield texts
            left -= int(ends[-1]) if len(ends) else 0
            if left <= 0:
                return


def training_texts(
    corpus: Corpus, *, max_characters: int, max_document_characters: int = 10_000
) -> Iterator[str]:
    """The same documents, one by one."""
    limits = {"max_characters": max_characters, "max_document_characters": max_document_characters}
    for texts in training_arrays(corpus, **limits):
        yield from texts.to_pylist()
