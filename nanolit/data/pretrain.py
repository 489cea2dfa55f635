"""Base pretraining's data from a corpus: the tokenizer's training text, the stream, the validation rows."""

from collections.abc import Iterator
from typing import Any

from nanolit.data.cache import TokenCache
from nanolit.data.packing import Packing
from nanolit.data.parquet import Corpus, read_texts
from nanolit.data.stream import PretrainStream
from nanolit.data.texts import training_arrays
from nanolit.data.validation import ValidationRows
from nanolit.tokenizer.bpe import Tokenizer


def training_stream(corpus: Corpus, tokenizer: Tokenizer, **settings: Any) -> PretrainStream:
    """Return this rank's endless steps; `settings` are PretrainStream's. The corpus' token cache is used."""
    # Tokens encoded once and kept on disk, if data.cache asks for it: 245 → 24 ms of processor time a million
    # tokens. Off by default, as tokenizing keeps up with training anyway (LOG.md, 2026-11-23).
    cache = corpus.cache_folder and TokenCache(corpus.cache_folder, corpus.train_shards, tokenizer)
    return PretrainStream(corpus, tokenizer, cache=cache or None, **settings)


def validation_rows(
    corpus: Corpus, tokenizer: Tokenizer, *, packing: Packing, **settings: Any
) -> ValidationRows:
    """Return this rank's share of the held-out rows; `settings` are ValidationRows'.

    Both best fits have the same rows, so that their bits per byte compare: cropped ones, but split ones of
    copies of own text, whose pieces may be much longer than a row.
    """
    # Bits per byte depend on the rows: one d8 read 1.2197 on 468 rows and 1.2111 on 640 of one file (LOG.md)
    if packing != "flat":
        packing = "bestfit_split" if corpus.content else "bestfit"
    return ValidationRows(corpus, tokenizer, packing=packing, **settings)


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
