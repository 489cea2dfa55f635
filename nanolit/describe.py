"""Describe a dataset: documents, tokens, lengths (with a plot), and how much each packing drops.

    nanolit describe data=sample
    nanolit describe data=FOLDER documents=20000
    nanolit describe data=fineweb_edu shards=2     the first shards, downloaded if they are missing

Takes the settings of nanolit train too (data, data.path, model, recipe, root, offline, …). The last line is
JSON.
"""

import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nanolit.machine.arguments import read_some, setting
from nanolit.machine.exit import command
from nanolit.report.tables import markdown_table

if TYPE_CHECKING:
    import pyarrow as pa

    from nanolit.data.parquet import Corpus
    from nanolit.tokenizer.bpe import Tokenizer

LEARNED_FROM_CHARACTERS = 20_000_000
ROWS = 64  # of a step, whose lanes pack
QUANTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True)
class Settings:
    """The part of the dataset to read, and the tokenizer to count with."""

    documents: int = setting("number of documents to read from the training split", 50_000, least=1)
    shards: int = setting("number of shards to read from a hub dataset", 1, least=1)
    tokenizer: Path | None = setting(
        "tokenizer to count with (default: the job's, else one trained on the first documents)", None
    )


@command
def main(words: Sequence[str]) -> None:
    settings, overrides = read_some(Settings, words, about=__doc__)
    print(json.dumps(describe(settings, overrides)))


@dataclass(frozen=True)
class Counts:
    """Shards and documents of both splits; characters, bytes, tokens and lengths of what was read."""

    train_shards: int
    train_documents: int
    validation_shards: int
    validation_documents: int
    read_documents: int
    read_characters: int
    read_bytes: int
    read_tokens: int
    bytes_per_token: float
    length_quantiles: dict[str, int]
    read_documents_also_held_out: int


def describe(settings: Settings, overrides: list[str]) -> dict[str, object]:
    """Return the figures by name, after printing them as tables; the picture is below the root's data."""
    from nanolit.config.build import build
    from nanolit.config.compose import compose
    from nanolit.config.names import tokenizer_folder
    from nanolit.jobs.inputs import hub_forbidden
    from nanolit.machine.paths import dataset_folder, write_atomically

    job, documents = compose(overrides), settings.documents
    root, context, dataset = Path(job["root"]), job["model"]["context"], build(job["data"])
    with hub_forbidden() if job["offline"] else nullcontext():
        dataset.fetch(root, num_shards=settings.shards, offline=job["offline"])
        corpus = dataset.open_corpus(root, num_shards=settings.shards)
    tokenizer = tokenizer_of(
        settings.tokenizer or tokenizer_folder(job),
        corpus,
        vocab_size=job["stage"]["tokenizer"]["vocab_size"],
        given=settings.tokenizer is not None,
    )
    counted, lengths = counts(corpus, tokenizer, documents)
    print(counts_table(corpus.name, counted), flush=True)
    cropped = drops(corpus, tokenizer, documents, context=context)
    rows = [[packing, f"{fraction:.1%}"] for packing, fraction in cropped.items()]
    print(markdown_table(["packing", f"tokens dropped, rows of {context:,}"], rows))
    picture = dataset_folder(root, corpus.name) / "lengths.png"
    write_atomically(picture, draw_lengths(lengths, name=corpus.name, context=context))
    print(f"lengths of {len(lengths):,} documents: {picture}")
    return {
        "data": corpus.name,
        "tokenizer": tokenizer.hash[:8],
        **asdict(counted),
        "cropped_fraction": cropped,
        "longer_than_a_row_fraction": float((lengths > context + 1).mean()),
        "picture": str(picture),
    }


def tokenizer_of(folder: Path, corpus: "Corpus", *, vocab_size: int, given: bool) -> "Tokenizer":
    """Load the folder's tokenizer; where the job's is not made yet, learn one for these figures alone."""
    from nanolit.data.parquet import training_arrays
    from nanolit.tokenizer.bpe import FILE_NAME, Tokenizer

    if given or (folder / FILE_NAME).is_file():
        return Tokenizer.load(folder)
    print(
        f"{folder.name} does not exist yet; training a vocabulary of {vocab_size:,} for these figures",
        flush=True,
    )
    texts = training_arrays(corpus, max_characters=LEARNED_FROM_CHARACTERS)
    return Tokenizer.train(texts, vocab_size=vocab_size)


def counts(corpus: "Corpus", tokenizer: "Tokenizer", most: int) -> tuple[Counts, np.ndarray]:
    """Read at most `most` training documents; return counts, and lengths in tokens."""
    import pyarrow.compute as pc

    held_out = {hash(text) for array in arrays(corpus.validation_shards) for text in array.to_pylist()}
    num_characters = num_bytes = repeated = 0
    lengths = []
    for array in arrays(corpus.train_shards, most=most):
        num_characters += int(np.from_dlpack(pc.call_function("utf8_length", [array])).sum())
        num_bytes += int(np.from_dlpack(pc.call_function("binary_length", [array])).sum())
        repeated += sum(hash(text) in held_out for text in array.to_pylist())
        lengths.append(np.diff(tokenizer.encode_flat(array, bos=True)[1]))
    if not lengths:
        raise ValueError(f"data={corpus.name} has no documents to train on; give files with text")
    every = np.concatenate(lengths)
    train, validation = corpus.train_shards, corpus.validation_shards
    counted = Counts(
        train_shards=len(train),
        train_documents=sum(sum(shard.group_sizes) for shard in train),
        validation_shards=len(validation),
        validation_documents=sum(sum(shard.group_sizes) for shard in validation),
        read_documents=len(every),
        read_characters=num_characters,
        read_bytes=num_bytes,
        read_tokens=int(every.sum()),
        bytes_per_token=num_bytes / int(every.sum()),
        length_quantiles={str(q): int(np.percentile(every, q, method="lower")) for q in QUANTILES},
        read_documents_also_held_out=repeated,
    )
    return counted, every


def arrays(shards: list, *, most: int | None = None) -> "Iterator[pa.Array]":
    """Yield the texts of each row group, up to `most` documents in all."""
    from nanolit.data.parquet import read_texts

    left = most
    for shard in shards:
        for group in range(len(shard.group_sizes)):
            if left == 0:
                return
            texts = read_texts(shard, group)[:left]
            left = None if left is None else left - len(texts)
            yield texts


def drops(corpus: "Corpus", tokenizer: "Tokenizer", documents: int, *, context: int) -> dict[str, float]:
    """Return the share of tokens that each packing crops in training's own stream, over `documents`."""
    from typing import get_args

    from nanolit.data.packing import Packing
    from nanolit.data.stream import PretrainStream

    share = min(1.0, documents / sum(sum(shard.group_sizes) for shard in corpus.train_shards))
    found = {}
    for packing in get_args(Packing):
        stream = PretrainStream(
            corpus, tokenizer, context=context, rows=ROWS, micro_batch=ROWS, seed=1, packing=packing
        )
        found[packing] = next(step.cropped_fraction for step in stream if step.epoch >= share)
    return found


def counts_table(data: str, counted: Counts) -> str:
    splits = [
        ["train", f"{counted.train_shards:,}", f"{counted.train_documents:,}"],
        ["validation", f"{counted.validation_shards:,}", f"{counted.validation_documents:,}"],
    ]
    read = [
        ["documents read", f"{counted.read_documents:,}"],
        ["characters", f"{counted.read_characters:,}"],
        ["bytes", f"{counted.read_bytes:,}"],
        ["tokens", f"{counted.read_tokens:,}"],
        ["bytes per token", f"{counted.bytes_per_token:.2f}"],
        *([f"{q}th percentile", f"{n:,} tokens"] for q, n in counted.length_quantiles.items()),
        ["exact duplicates of held-out documents", f"{counted.read_documents_also_held_out:,} documents"],
    ]
    table = markdown_table([data, "shards", "documents"], splits)
    return f"{table}\n{markdown_table(['of the training split', ''], read)}"


def draw_lengths(lengths: np.ndarray, *, name: str, context: int) -> bytes:
    """Draw a PNG: documents by their length in tokens, and where a row ends."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.hist(lengths, bins=np.geomspace(1, max(2, lengths.max()), 60).tolist(), color="#1f5fa8")
    axes.axvline(context, color="#d1495b", label=f"a row: {context:,}")
    axes.set_xscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    median = int(np.median(lengths))
    axes.set_title(
        f"{name}: half of the documents have at most {median:,} tokens", loc="left", fontweight="bold"
    )
    axes.set_xlabel("tokens of a document")
    axes.set_ylabel("documents")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
