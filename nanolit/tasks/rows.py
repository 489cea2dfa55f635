"""Rows of a task: files from the embedded sample, a mirror folder or the user, or a dataset of the hub.

`source` is "sample" or "stories" (what comes with the package), "hub" (huggingface.co, through `datasets`) or
a folder laid out like the sample: eval/arc/ARC-Easy-train.jsonl.zst, eval/gsm8k/test.jsonl.zst, chat/….
JSON, CSV and parquet are read, nothing is unpickled.
Every row knows its place (file and line, or dataset and row), so that a complaint can name it.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import zstandard

from nanolit.machine.paths import PACKAGE, expanded

SAMPLE, STORIES = PACKAGE / "data" / "sample", PACKAGE / "data" / "stories"
SHIPPED = {"sample": SAMPLE, "stories": STORIES}
BLOCK = 1024  # rows of a dataset read at once
LONGEST_FIELD = 256 << 20  # characters of CSV; Python's own limit, 131,072, is below a long chat
ENDINGS = (".jsonl", ".jsonl.zst", ".jsonl.gz")  # tried where a name is given without
Row = Mapping[str, Any]  # one object of a file or a dataset, as it stands there; its task knows the fields


class Rows(Protocol):
    """A sequence of rows, each with a place."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...

    def place(self, index: int) -> str: ...


class FileRows:
    """The objects of some files, in order: JSON lines without the blank ones, JSON arrays, CSV, parquet."""

    def __init__(self, paths: Sequence[Path]) -> None:
        every = [(path, *found) for path in paths for found in _rows_of(path)]
        self.rows: list[Row] = [row for _, _, row in every]
        self.origins: list[tuple[Path, str]] = [(path, place) for path, place, _ in every]
        if not self.rows:
            raise ValueError(f"{', '.join(map(str, paths))}: no rows; fill the file or leave this source out")

    def keep(self, indices: Sequence[int]) -> None:
        """Drop all rows but these."""
        self.rows = [self.rows[index] for index in indices]
        self.origins = [self.origins[index] for index in indices]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Row:
        return self.rows[index]

    def place(self, index: int) -> str:
        path, place = self.origins[index]
        return f"{path} {place}"


class GeneratedRows:
    """`size` computed rows: `make(number)` is a function of its number alone. `label` is for complaints."""

    def __init__(self, size: int, make: Callable[[int], Row], *, label: str) -> None:
        if size < 1:
            raise ValueError(f"size is {size}; allowed: 1 and up")
        self.size = size
        self.make = make
        self.label = label

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int, /) -> Row:
        return self.make(index)

    def place(self, index: int) -> str:
        return f"{self.label} row {index}"


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class HubRows:
    """One split of a dataset of the hub (downloaded once by `datasets`, then read from its cache)."""

    def __init__(self, dataset: str, subset: str | None, split: str) -> None:
        from datasets import load_dataset  # 2 s to import

        self.label = " ".join(filter(None, [dataset, subset, split]))
        try:
            self.dataset = load_dataset(dataset, subset, split=split)
        except Exception as error:  # of datasets, Arrow or an HTTP client, which share no base
            raise ValueError(
                f"the dataset {self.label} can't be read from the hub ({first_line(error)}); go online, "
                "or use a mirror folder: recipe.mirror=FOLDER"
            ) from error
        if not len(self.dataset):
            raise ValueError(f"the dataset {self.label} has no rows; leave this source out")
        self._block = range(0)
        self._rows: list[Row] = []  # those of the block
        self._last = -1  # the row that was asked for last

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int, /) -> Row:
        """Rows that are asked for in order are read many at once, which is much faster."""
        if index not in self._block:
            width = BLOCK if index == self._last + 1 else 1
            self._block = range(index, min(index + width, len(self)))
            columns = self.dataset[index : self._block.stop]
            self._rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        self._last = index
        return self._rows[index - self._block.start]

    def place(self, index: int) -> str:
        return f"{self.label} row {index}"


def folder_of(source: str) -> Path:
    """Return the folder that a source other than "hub" names; ValueError when it isn't there."""
    folder = SHIPPED.get(source) or expanded(source)
    if not folder.is_dir():
        raise ValueError(
            f"source {source!r} is not a folder; allowed: {', '.join(SHIPPED)}, hub, or an existing mirror "
            "folder"
        )
    return folder


def find_file(
    source: str, name: str, *, endings: Sequence[str] = ENDINGS, remedy: str = "put it there"
) -> Path:
    """Return the file `name` of a source, its ending given or not."""
    stem = folder_of(source) / name
    for path in [stem, *(stem.with_name(stem.name + ending) for ending in endings)]:
        if path.is_file():
            return path
    raise ValueError(f"{stem}: no such file (tried {', '.join(endings)}); {remedy}, or choose another source")


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, plain, .zst or .gz; ValueError names the file and the line that isn't
    UTF-8."""
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".zst":
            content = _decompressed(content)
        elif path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise ValueError(f"{path} can't be read ({error}); download it again") from error
    try:
        return content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path} line {line}: not UTF-8 (byte {error.object[error.start]:#04x}); convert it"
        ) from error


def _decompressed(content: bytes) -> bytes:
    """Join the frames of a .zst file; EOFError where it was cut, which zstandard's readers pass over."""
    parts = []
    while content:
        frame = zstandard.ZstdDecompressor().decompressobj()
        parts.append(frame.decompress(content))
        if not frame.eof:
            raise EOFError("it ends within a frame")
        content = frame.unused_data
    return b"".join(parts)


def _rows_of(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a file, whatever its format, each with its place."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in (".gz", ".zst")]
    kind = suffixes[-1] if suffixes else ""
    if kind == ".parquet":
        yield from ((f"row {number}", row) for number, row in enumerate(_of_parquet(path)))
        return
    lines = read_lines(path)
    if kind in (".csv", ".tsv"):
        yield from _of_csv(path, lines, delimiter="\t" if kind == ".tsv" else ",")
    elif (array := _array(lines)) is not None:
        yield from (
            (f"item {number}", _row(row, f"{path} item {number}")) for number, row in enumerate(array, 1)
        )
    else:
        for number, text in enumerate(lines, start=1):
            if text.strip():
                yield f"line {number}", _parse(text, f"{path} line {number}")


def _of_csv(path: Path, lines: Sequence[str], *, delimiter: str) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(LONGEST_FIELD)
    text = io.StringIO("\n".join(lines), newline="")  # as csv asks: it ends lines at \r\n too
    reader = csv.DictReader(text, delimiter=delimiter, strict=True)
    try:
        for row in reader:
            check_width(row)
            yield f"line {reader.line_num}", row
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num} is not CSV ({error}); write it again") from None


def check_width(row: Mapping[Any, Any]) -> None:
    """csv.Error for a line with more fields than columns: a comma without quotes cuts a text in two."""
    if None in row:
        raise csv.Error(
            f"it has {len(row[None]) + len(row) - 1} fields, but there are {len(row) - 1} columns"
        )


def _of_parquet(path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{path} can't be read ({' '.join(str(error).split())}); download it again"
        ) from error


def _array(lines: Sequence[str]) -> list[object] | None:
    """Return the items of a file that is one JSON array; None for JSON lines, each of which may be a list."""
    first = next((line.strip() for line in lines if line.strip()), "")
    if not first.startswith("["):
        return None
    try:
        items = json.loads("\n".join(lines))
    except (ValueError, RecursionError):
        return None
    is_chat = items and all(isinstance(item, dict) and {"role", "from"} & item.keys() for item in items)
    return None if is_chat else items


def _parse(text: str, place: str) -> Row:
    try:
        item = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not valid JSON ({error}); write one object or list per line") from error
    return _row(item, place)


def _row(item: object, place: str) -> Row:
    if isinstance(item, list):  # a bare list of messages
        return {"messages": item}
    if not isinstance(item, dict):
        shown = json.dumps(item, ensure_ascii=False)[:40]
        raise ValueError(f"{place}: got {shown!r}; a line must be an object or a list of messages")
    return item
