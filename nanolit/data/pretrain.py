"""Base pretraining's data from a corpus: the tokenizer's training text, the stream, the validation rows."""

from collections.abc import Iterator

from nanolit.data.packing import Packing
from nanolit.data.shards import Corpus, read_texts
from nanolit.data.stream import PretrainStream
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


def training_texts(
    corpus: Corpus, *, max_characters: int, max_document_characters: int = 10_000
) -> Iterator[str]:
    """The training split's documents, in the files' order, for training a tokenizer; never a held-out one.

    Each is cut at `max_document_characters` (10,000 in nanochat), and all together at `max_characters`.
    """
    left = max_characters
    for shard in corpus.train_shards:
        for group in range(len(shard.group_sizes)):
            for text in read_texts(shard, group).to_pylist():
                text = text[: min(max_document_characters, left)]
                left -= len(text)
                yield text
                if left <= 0:
                    return
