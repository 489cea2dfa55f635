"""Rows of a task: JSON lines from the embedded sample or a mirror folder, or a dataset of the hub.

`source` is "sample" (what comes with the package), "hub" (huggingface.co, through `datasets`) or a folder
laid out like the sample: eval/arc/ARC-Easy-train.jsonl.zst, eval/gsm8k/test.jsonl.zst, chat/….
JSON and parquet are read, nothing is unpickled.
Every row knows its place (file and line, or dataset and row), so that a complaint can name it.
"""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import zstandard

from nanolit.machine.paths import PACKAGE

SAMPLE = PACKAGE / "data" / "sample"
BLOCK = 1024  # rows of a dataset read at once
ENDINGS = (".jsonl", ".jsonl.zst", ".jsonl.gz")
Row = Mapping[str, Any]  # one object of a file or a dataset, as it stands there; its task knows the fields


class Rows(Protocol):
    """A sequence of rows, each with a place."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...

    def place(self, index: int) -> str: ...


class FileRows:
    """The objects of some JSON-lines files, in order; blank lines are skipped."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.rows: list[Row] = []
        self.origins: list[tuple[Path, int]] = []
        for path in paths:
            for line, text in enumerate(read_lines(path), start=1):
                if text.strip():
                    self.rows.append(_parse(text, f"{path} line {line}"))
                    self.origins.append((path, line))
        if not self.rows:
            raise ValueError(f"{', '.join(map(str, paths))}: no rows; fill the file or leave this source out")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Row:
        return self.rows[index]

    def place(self, index: int) -> str:
        path, line = self.origins[index]
        return f"{path} line {line}"


class HubRows:
    """One split of a dataset of the hub (downloaded once by `datasets`, then read from its cache)."""

    def __init__(self, dataset: str, subset: str | None, split: str) -> None:
        from datasets import load_dataset  # 2 s to import

        self.label = " ".join(filter(None, [dataset, subset, split]))
        try:
            self.dataset = load_dataset(dataset, subset, split=split)
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"the dataset {self.label} can't be read from the hub ({reason}); go online, "
                "or name a mirror folder as the source: recipe.mirror=FOLDER"
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
    folder = SAMPLE if source == "sample" else Path(source).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"source {source!r} is not a folder; allowed: sample, hub, or a mirror folder that exists"
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
        if path.suffix == ".zst":
            content = _decompressed(content)
        elif path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zstandard.ZstdError) as error:
        raise ValueError(f"{path} can't be read ({error}); fetch it again") from error
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


def _parse(text: str, place: str) -> Row:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not valid JSON ({error}); one object or list a line") from error
    if isinstance(row, list):  # a bare list of messages
        row = {"messages": row}
    if not isinstance(row, dict):
        raise ValueError(f"{place}: got {text[:40]!r}; a line is an object, or a list of messages")
    return row
