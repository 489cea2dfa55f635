"""Read and check parquet files of text, by row group or text by text."""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from nanolit.machine.terminal import one_line

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Shard:
    """An opened parquet file: the documents in each of its row groups, and the bytes of their text.

    `nulls` are the rows without text, as far as the file counts them.
    """

    path: Path
    text_column: str
    group_sizes: tuple[int, ...]
    group_bytes: tuple[int, ...] = ()
    nulls: int = 0


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The parquet files of a dataset, to train on and held out, and the column of their text."""

    name: str
    text_column: str
    train_files: tuple[Path, ...]
    validation_files: tuple[Path, ...]
    times: tuple[float, ...] = ()  # how often an epoch has each train file; (): once
    summary: str = ""  # of own text: what was read, passed over and split
    content: str = ""  # a hash of the texts, where it is known
    held_out_fraction: float = 0.0  # of own text; 0: names say what is held out

    @cached_property
    def train_shards(self) -> list[Shard]:
        return [open_shard(path, self.text_column) for path in self.train_files]

    @cached_property
    def validation_shards(self) -> list[Shard]:
        return [open_shard(path, self.text_column) for path in self.validation_files]

    def train_groups(self) -> list[tuple[Shard, int]]:
        """Return an epoch's row groups: for `times` of 2.5, a file's come two and three times in turn."""
        groups: list[tuple[Shard, int]] = []
        before = turn = 0.0
        for shard, times in zip(self.train_shards, self.times or [1.0] * len(self.train_shards), strict=True):
            turn = 0.0 if times != before else turn
            before = times
            for group, size in enumerate(shard.group_sizes):
                count = math.floor(turn + times + 1e-9) - math.floor(turn + 1e-9)
                groups += [(shard, group)] * (count if size else 0)
                turn += times
        return groups

    def validation_groups(self) -> list[tuple[Shard, int]]:
        """Return the held-out row groups, in the files' order; of several sources, one of each in turn."""
        by_shard = [[(shard, n) for n in range(len(shard.group_sizes))] for shard in self.validation_shards]
        turns = zip_longest(*by_shard) if self.times else by_shard
        return [group for groups in turns for group in groups if group is not None]

    @cached_property
    def fingerprint(self) -> str:
        """Hash what a position in the data depends on (sha256, hex): train files and their row groups."""
        groups: list = [[shard.path.name, *shard.group_sizes] for shard in self.train_shards]
        depends = [self.text_column, groups, *([self.times, self.content] if self.content else [])]
        return hashlib.sha256(json.dumps(depends).encode()).hexdigest()


def open_shard(path: Path, text_column: str) -> Shard:
    """Open a parquet file; ValueError unless it is whole and has such a column of text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{path} is not a complete parquet file ({one_line(error)}); download or write it again"
        ) from error
    if schema.names.count(text_column) != 1 or not is_text(schema.field(text_column).type):
        refuse_column(path, schema, text_column)
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    column = next(n for n in range(metadata.num_columns) if metadata.schema.column(n).path == text_column)
    chunks = [group.column(column) for group in groups]
    return Shard(
        path=path,
        text_column=text_column,
        group_sizes=tuple(group.num_rows for group in groups),
        group_bytes=tuple(chunk.total_uncompressed_size for chunk in chunks),
        nulls=sum(chunk.statistics.null_count or 0 for chunk in chunks if chunk.statistics),
    )


def refuse_column(path: Path, schema: "pa.Schema", text_column: str) -> NoReturn:
    """ValueError says what the column is instead of one column of strings."""
    if text_column not in schema.names:
        raise ValueError(
            f"{path} has no column {text_column!r}; it has {', '.join(schema.names)}: choose one with "
            "data.text_column"
        )
    if schema.names.count(text_column) > 1:
        raise ValueError(f"{path} has several columns named {text_column!r}; write it again with one")
    type_ = schema.field(text_column).type
    raise ValueError(f"{path}: column {text_column!r} holds {type_}, not strings; write it again as strings")


def is_text(type_: "pa.DataType") -> bool:
    """Tell whether a column of this type holds strings: plain, large, views (polars) or a dictionary."""
    import pyarrow as pa

    kinds = (pa.string(), pa.large_string(), pa.string_view())
    return (type_.value_type if pa.types.is_dictionary(type_) else type_) in kinds


def read_texts(shard: Shard, group: int) -> "pa.LargeStringArray":
    """Return the texts of one row group without a null, all valid UTF-8."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(shard.path, page_checksum_verification=True) as file:
            column = file.read_row_group(group, columns=[shard.text_column]).column(0)
        # Large before they are joined: the offsets of a plain string array end at 2 GB
        texts = column.cast(pa.large_string()).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{shard.path}: row group {group} cannot be read ({one_line(error)}); download or write the file "
            "again"
        ) from error
    try:
        texts.validate(full=True)
    except pa.ArrowException:
        refuse_text(shard, group, texts)
    if texts.null_count:
        refuse_text(shard, group, texts)
    return texts


def refuse_text(shard: Shard, group: int, texts: "pa.Array") -> NoReturn:
    """ValueError names the first row without a text, else the first whose text is not UTF-8."""
    import pyarrow.compute as pc

    before = sum(shard.group_sizes[:group])
    if texts.null_count:
        row = before + pc.index(texts.is_null(), True).as_py()
        raise ValueError(
            f"{shard.path}: row {row} has no text in column {shard.text_column!r}; remove such rows"
        )
    row = before + _first_invalid(texts)
    raise ValueError(f"{shard.path}: the text of row {row} is not UTF-8; write it again as UTF-8") from None


def _first_invalid(texts: "pa.Array") -> int:
    for index in range(len(texts)):
        try:
            texts[index].as_py()
        except UnicodeDecodeError:
            return index
    raise AssertionError("arrow found a fault in the texts other than their encoding")


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
