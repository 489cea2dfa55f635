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
    """This rank's endless steps of `rows` rows in all, and its share of the held-out rows.

    Those of packing "bestfit_split" are best-fit rows, so that its bits per byte compare with best fit's.
    """
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
        packing="bestfit" if packing == "bestfit_split" else packing,
        num_tokens=validation_tokens,
        rank=rank,
        world=world,
    )
    return stream, validation


def training_texts(
    corpus: Corpus, *, max_characters: int, max_document_characters: int = 10_000
) -> Iterator[str]:
    """The training split's documents one by one, cut as `training_arrays` cuts them."""
    limits = {"max_characters": max_characters, "max_document_characters": max_document_characters}
    for texts in training_arrays(corpus, **limits):
        yield from texts.to_pylist()


def validation_texts(corpus: Corpus) -> Iterator[str]:
    """The held-out documents, in the files' order."""
    for shard in corpus.validation_shards:
        for group in range(len(shard.group_sizes)):
            yield from read_texts(shard, group).to_pylist()
