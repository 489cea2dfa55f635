"""Base pretraining's data from a corpus: the tokenizer's training text, the stream, the validation rows."""

from collections.abc import Iterator

from nanolit.data.cache import TokenCache
from nanolit.data.packing import Packing
from nanolit.data.shards import Corpus, read_texts
from nanolit.data.stream import PretrainStream
from nanolit.data.texts import training_arrays
from nanolit.data.validation import ValidationRows
from nanolit.tokenizer.bpe import Tokenizer


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
    """Return this rank's endless steps, of `rows` rows over all ranks, and its share of the held-out rows."""
    # Tokens encoded once and kept on disk, if data.cache asks for it: 245 → 24 ms of processor time a million
    # tokens. Off by default, as tokenizing keeps up with training anyway (LOG.md, 2026-11-23).
    cache = corpus.cache_folder and TokenCache(corpus.cache_folder, corpus.train_shards, tokenizer)
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
        cache=cache or None,
    )
    validation = ValidationRows(
        corpus,
        tokenizer,
        context=context,
        micro_batch=micro_batch,
        # Bits per byte depend on the rows, so a split packing is measured on best fit's, to compare with it.
        # The same d8 read 1.2197 on 468 rows and 1.2111 on 640 of one file (LOG.md, 2026-11-30).
        packing="bestfit" if packing == "bestfit_split" else packing,
        num_tokens=validation_tokens,
        rank=rank,
        world=world,
    )
    return stream, validation


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
    for shard in corpus.validation_shards:
        for group in range(len(shard.group_sizes)):
            yield from read_texts(shard, group).to_pylist()
