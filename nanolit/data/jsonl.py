"""Texts of jsonl and jsonl.zst files as parquet, so that the stream reads them like any other shard.

A file is read once: every line is checked, and what is wrong is one line with the file and the line's number.
The copy is kept with the size and time of its source, and made again when those change.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path

from nanolit.machine.numbers import chunked
from nanolit.machine.paths import whole_or_absent

ROW_GROUP = 1024  # documents, as in the hub's shards
SUFFIXES = (".jsonl", ".jsonl.zst")


def as_parquet(path: Path, folder: Path, *, text_column: str) -> Path:
    """Return a jsonl file's parquet copy in `folder`, made anew only if the source has changed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    copy, status = folder / f"{path.name}.parquet", path.stat()
    source = f"{status.st_size} bytes at {status.st_mtime_ns}"
    if copy.is_file() and (pq.read_schema(copy).metadata or {}).get(b"source") == source.encode():
        return copy
    print(f"  local: reading {path.name} ({status.st_size / 1e6:,.1f} MB) into {copy}", flush=True)
    schema = pa.schema({text_column: pa.large_string()}, metadata={"source": source})
    with (
        whole_or_absent(copy) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for texts in chunked(read_jsonl(path, text_column=text_column), ROW_GROUP):
            writer.write_table(pa.table([pa.array(texts, pa.large_string())], schema))
    return copy


def read_jsonl(path: Path, *, text_column: str) -> Iterator[str]:
    """Yield the text of every line that isn't blank; ValueError names a line without one."""
    import pyarrow as pa

    number = 0
    try:
        with io.BufferedReader(pa.input_stream(str(path)), 1 << 20) as lines:  # type: ignore[arg-type]
            for number, line in enumerate(lines, start=1):
                if not line.isspace():
                    yield _text(line, text_column, place=f"{path}: line {number}")
    except OSError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read after line {number} ({reason}); copy it again") from error


def _text(line: bytes, text_column: str, *, place: str) -> str:
    try:
        row = json.loads(line.decode("utf-8-sig"))  # a byte-order mark may open the file
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not UTF-8 (byte {error.start + 1}); write it again as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON ({error}); write one object a line") from None
    if not isinstance(row, dict):
        raise ValueError(f"{place} holds {type(row).__name__}, not an object with {text_column!r}")
    if text_column not in row:
        has = ", ".join(row) or "nothing"
        raise ValueError(
            f"{place} has no {text_column!r}; it has {has}: choose with data.text_column, or remove the line"
        )
    text = row[text_column]
    if text is None:
        raise ValueError(f"{place} has null as {text_column!r}; remove such lines")
    if not isinstance(text, str):
        raise ValueError(
            f"{place} has {type(text).__name__} as {text_column!r}, not a string; write it as one"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{place}: {text_column!r} holds half a surrogate pair, which is not a character; remove it"
        ) from None
    return text
