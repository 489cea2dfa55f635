"""Parquet files of texts: opened and checked as shards, read a row group at a time."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Shard:
    """An opened parquet file: the documents in each of its row groups, and the bytes of their text."""

    path: Path
    text_column: str
    group_sizes: tuple[int, ...]
    group_bytes: tuple[int, ...] = ()


def open_shard(path: Path, text_column: str) -> Shard:
    """Open a parquet file; ValueError unless it is whole and has such a column of text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{path} is not a whole parquet file ({_line(error)}); fetch or write it again"
        ) from error
    if text_column not in schema.names:
        raise ValueError(
            f"{path} has no column {text_column!r}; it has {', '.join(schema.names)}: choose one with "
            "data.text_column"
        )
    if schema.names.count(text_column) > 1:
        raise ValueError(
            f"{path} has {text_column!r} as the name of several columns; write it again with one"
        )
    type_ = schema.field(text_column).type
    if not is_text(type_):
        raise ValueError(
            f"{path}: column {text_column!r} holds {type_}, not strings; write it again as strings"
        )
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    column = next(n for n in range(metadata.num_columns) if metadata.schema.column(n).path == text_column)
    return Shard(
        path=path,
        text_column=text_column,
        group_sizes=tuple(group.num_rows for group in groups),
        group_bytes=tuple(group.column(column).total_uncompressed_size for group in groups),
    )


def is_text(type_: "pa.DataType") -> bool:
    """Tell whether a column of this type holds strings: plain, large, views (polars) or a dictionary."""
    import pyarrow as pa

    kinds = (pa.string(), pa.large_string(), pa.string_view())
    return (type_.value_type if pa.types.is_dictionary(type_) else type_) in kinds


def read_texts(shard: Shard, group: int) -> "pa.LargeStringArray":
    """Return the texts of one row group without a null, all valid UTF-8."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(shard.path) as file:
            column = file.read_row_group(group, columns=[shard.text_column]).column(0)
        # Large before they are joined: the offsets of a plain string array end at 2 GB
        texts = column.cast(pa.large_string()).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{shard.path}: row group {group} cannot be read ({_line(error)}); fetch or write the file again"
        ) from error
    before = sum(shard.group_sizes[:group])
    if texts.null_count:
        row = before + pc.index(texts.is_null(), True).as_py()
        raise ValueError(
            f"{shard.path}: row {row} has no text in column {shard.text_column!r}; remove such rows"
        )
    try:
        texts.validate(full=True)
    except pa.ArrowException:
        row = before + _first_invalid(texts)
        raise ValueError(
            f"{shard.path}: the text of row {row} is not UTF-8; write it again as UTF-8"
        ) from None
    return texts


def _first_invalid(texts: "pa.Array") -> int:
    for index in range(len(texts)):
        try:
            texts[index].as_py()
        except UnicodeDecodeError:
            return index
    raise AssertionError("arrow found a fault in the texts that is none of encoding")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
