"""Small corpora on disk, and nanochat's tiny tokenizer (vocabulary 1,024), for the tests of this folder."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from nanolit.data.parquet import Corpus
from nanolit.data.stream import Step
from nanolit.tokenizer.nanochat import read_tokenizer

FIXTURES = Path(__file__).parent.parent / "fixtures" / "nanochat_2026"
TOKENIZER = read_tokenizer(FIXTURES / "tokenizer")


def write_texts(path: Path, texts: list, *, group: int = 8, column: str = "text", type_=None) -> Path:
    """A parquet file with one column, in row groups of `group` rows."""
    pq.write_table(pa.table({column: pa.array(texts, type=type_)}), path, row_group_size=group)
    return path


def texts(count: int, *, label: str = "document") -> list[str]:
    """Different texts of very different lengths, one in nine longer than a small row."""
    return [f"{label} {n}:" + " to and fro" * (n * 7 % 11 + 40 * (n % 9 == 0)) for n in range(count)]


def make_corpus(folder: Path, *, documents: int = 200, held_out: int = 30) -> Corpus:
    """Two files to train on and one held out; 25 row groups of up to eight documents at 200."""
    every = texts(documents)
    return Corpus(
        name="small",
        text_column="text",
        train_files=(
            write_texts(folder / "a.parquet", every[: documents // 3]),
            write_texts(folder / "b.parquet", every[documents // 3 :]),
        ),
        validation_files=(write_texts(folder / "val.parquet", texts(held_out, label="held out")),),
    )


def row_hashes(step: Step) -> list[str]:
    """A hash of every row, in order: over all ranks, in rank order, the same at any number of ranks."""
    rows = [
        torch.cat([ids_T, targets_T[-1:]])
        for ids_BT, targets_BT in step.micro_batches
        for ids_T, targets_T in zip(ids_BT, targets_BT, strict=True)
    ]
    return [hashlib.blake2b(row.numpy().tobytes(), digest_size=8).hexdigest() for row in rows]
