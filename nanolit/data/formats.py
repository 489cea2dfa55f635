"""The documents of a text file, a block at a time, so that memory does not grow with the file.

Every format becomes the same: an iterator of documents, each an iterable of blocks of text. Fields that hold
no text (null, or nothing but blanks) are left to the caller. What cannot be read is one line with the place.
"""

import csv
import io
import itertools
import json
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from nanolit.data.parquet import open_shard
from nanolit.data.pieces import Document
from nanolit.data.sources import HUB, PLAIN, compression_of, kind_of
from nanolit.machine.terminal import one_line
from nanolit.tasks.rows import check_width, first_line

BLOCK = 1 << 20  # characters, or bytes, read at once
LONGEST = (
    256 << 20
)  # of a record in jsonl, JSON or CSV: one is read whole, and takes up to nine times its length
BATCH_BYTES = 4 << 20  # of parquet, about
BATCH_ROWS = 256


def documents(path: Path, text_column: str) -> Iterator[Document]:
    """Yield the documents of a file; ValueError names the file, and the line or row, of what is wrong."""
    kind = kind_of(path)
    if kind == ".parquet":
        yield from _of_parquet(path, text_column)
    elif kind in PLAIN:
        yield _blocks(path)
    else:
        yield from _of_records(path, kind, text_column)


def _of_records(path: Path, kind: str, text_column: str) -> Iterator[Document]:
    try:
        with _opened(path) as stream:
            if kind in (".csv", ".tsv"):
                yield from _of_csv(path, stream, text_column, delimiter="\t" if kind == ".tsv" else ",")
            elif kind == ".json" and stream.peek(BLOCK)[:BLOCK].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
                yield from _of_array(path, _text(stream), text_column)
            else:
                yield from _of_lines(path, stream, text_column)
    except UnicodeDecodeError as error:
        raise _not_utf8(f"{path}", error) from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({one_line(error)}); copy it again") from error


def _opened(path: Path) -> io.BufferedReader:
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(str(path), compression=compression_of(path)), BLOCK)  # type: ignore[arg-type]


def _text(stream: io.BufferedReader, newline: str | None = None) -> io.TextIOWrapper:
    return io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline)


def _blocks(path: Path) -> Iterator[str]:
    try:
        with _opened(path) as stream:
            text = _text(stream)
            while block := text.read(BLOCK):
                yield block
    except UnicodeDecodeError as error:
        raise _not_utf8(f"{path}", error) from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({one_line(error)}); copy it again") from error


def _of_lines(path: Path, stream: io.BufferedReader, text_column: str) -> Iterator[Document]:
    number = 0
    while True:
        number += 1
        try:
            line = stream.readline(LONGEST)
        except OSError as error:
            raise ValueError(
                f"{path}: cannot be read after line {number - 1} ({one_line(error)}); copy it again"
            ) from error
        if not line:
            return
        place = f"{path}: line {number}"
        if len(line) == LONGEST:
            raise ValueError(_too_long(place))
        if line.isspace():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))  # a byte-order mark may open the file
        except UnicodeDecodeError as error:
            raise _not_utf8(place, error) from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place} is not JSON ({error}); write one object per line") from None
        del line  # as long as the text itself
        yield [_field(row, text_column, place)]


def _of_array(path: Path, text: io.TextIOWrapper, text_column: str) -> Iterator[Document]:
    """Parse one item after another of a JSON array, reading on where the buffer ends within one."""
    decoder, buffer, start, number = json.JSONDecoder(), text.read(BLOCK).lstrip()[1:], 0, 0
    while True:
        while start < len(buffer) and buffer[start] in " \t\r\n,":
            start += 1
        if buffer[start : start + 1] == "]":
            if (buffer[start + 1 :] + text.read(BLOCK)).strip():
                raise ValueError(f"{path}: there is more after the end of the array; write jsonl")
            return
        place = f"{path}: item {number + 1} of the array"
        try:
            row, start = decoder.raw_decode(buffer, start)
        except (ValueError, RecursionError) as error:
            if len(buffer) - start > LONGEST:
                raise ValueError(_too_long(place)) from None
            more = text.read(max(BLOCK, len(buffer)))  # doubling, or long items would cost their square
            if not more:
                raise ValueError(f"{place} is not JSON ({error}); fix it, or write jsonl") from None
            buffer, start = buffer[start:] + more, 0
            continue
        number += 1
        yield [_field(row, text_column, place)]


def _of_csv(path: Path, stream: io.BufferedReader, text_column: str, *, delimiter: str) -> Iterator[Document]:
    csv.field_size_limit(LONGEST)
    reader = csv.DictReader(_text(stream, newline=""), delimiter=delimiter, strict=True)
    try:
        if reader.fieldnames is None:  # an empty file, as of the other formats
            return
        if text_column not in reader.fieldnames:
            raise ValueError(_no_column(f"{path}", text_column, reader.fieldnames))
        for row in reader:
            check_width(row)
            yield [row[text_column]]
    except UnicodeDecodeError as error:
        raise _not_utf8(f"{path}: after line {reader.line_num}", error) from None
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num} is not CSV ({error}); write it again") from None


def _of_parquet(path: Path, text_column: str) -> Iterator[Document]:
    """Read batches of rows, never a row group: one may hold gigabytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shard = open_shard(path, text_column)
    longest = max((b / n for b, n in zip(shard.group_bytes, shard.group_sizes, strict=True) if n), default=1)
    rows, number = int(max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, longest)))), 0
    try:
        with pq.ParquetFile(path, buffer_size=BLOCK, pre_buffer=False) as file:
            for batch in file.iter_batches(rows, columns=[text_column], use_threads=False):
                for text in batch.column(0):
                    number += 1
                    yield [text.as_py()]
    except UnicodeDecodeError:
        raise ValueError(
            f"{path}: the text of row {number - 1} is not UTF-8; write it again as UTF-8"
        ) from None
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{path}: cannot be read after row {number} ({one_line(error)}); copy it again"
        ) from error


def hub_documents(name: str, text_column: str) -> dict[str, Iterator[Document]]:
    """Return the splits of a data set of the hub: `hf:OWNER/NAME`, or `hf:OWNER/NAME:CONFIGURATION`."""
    from datasets import load_dataset  # 2 s to import

    repository, _, configuration = name.removeprefix(HUB).partition(":")
    try:
        splits = load_dataset(repository, configuration or None, streaming=True)
        columns = next(iter(splits.values())).column_names
    except Exception as error:  # also those of an HTTP client
        raise ValueError(
            f"data={name} can't be read from the hub ({first_line(error)}); go online, check the name, or "
            "choose one of several configurations: data=hf:OWNER/NAME:CONFIGURATION"
        ) from error
    if columns is not None and text_column not in columns:
        raise ValueError(_no_column(f"data={name}", text_column, columns))
    return {str(split): _of_rows(rows, text_column, f"{name} {split}") for split, rows in splits.items()}


def _of_rows(rows: Iterable[object], text_column: str, place: str) -> Iterator[Document]:
    coming = iter(rows)
    for number in itertools.count():
        try:
            row = next(coming)
        except StopIteration:
            return
        except Exception as error:  # of datasets, Arrow or an HTTP client, which share no base
            raise ValueError(
                f"{place} row {number} cannot be read from the hub ({first_line(error)}); repeat the "
                "command, or download the data set and give data=PATH"
            ) from error
        yield [_field(row, text_column, f"{place} row {number}")]


def _field(row: object, text_column: str, place: str) -> str | None:
    """Return the text of a row, None where it has none; ValueError for what is no text."""
    if not isinstance(row, Mapping):
        raise ValueError(f'{place} holds {type(row).__name__}, not an object; write {{"{text_column}": …}}')
    if text_column not in row:
        raise ValueError(f"{_no_column(place, text_column, row)}, or remove the line")
    text = row[text_column]
    if text is not None and not isinstance(text, str):
        raise ValueError(
            f"{place} has {type(text).__name__} as {text_column!r}, not a string; write it as a string"
        )
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{place}: {text_column!r} holds half a surrogate pair, which is not a character; remove it"
        ) from None
    return text


def _too_long(place: str) -> str:
    return (
        f"{place} is longer than {LONGEST >> 20:,} MB; write its text as a .txt file, which is read in blocks"
    )


def _no_column(place: str, text_column: str, columns: Iterable[str]) -> str:
    chats = {"messages", "conversations", "instruction", "prompt"} & set(columns)
    chat = "; for chats give mixture=FILE" if chats else ""
    has = ", ".join(map(str, columns)) or "nothing"
    other = next((sign for sign in ";|\t" if sign in has and "," not in has), "")
    remedy = f"separate columns by commas, not {other!r}" if other else "choose with data.text_column=NAME"
    return f"{place} has no {text_column!r}; it has {has}{chat}: {remedy}"


def _not_utf8(place: str, error: UnicodeDecodeError) -> ValueError:
    byte = error.object[error.start]  # without its place: it is counted from the block, not from the file
    encoding = "utf-16" if error.object[:2] in (BOM_UTF16_LE, BOM_UTF16_BE) else "latin1"
    return ValueError(
        f"{place} is not UTF-8 (byte {byte:#04x}); write it again as UTF-8 "
        f"(iconv -f {encoding} -t utf-8 OLD > NEW)"
    )
