"""Which files below a path hold text, and which of them are held out: by the names that the hub uses."""

import filecmp
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from nanolit.machine.numbers import listed
from nanolit.machine.paths import encodable

COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
RECORDS = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")  # a document a row
PLAIN = (".txt", ".md")  # a document a file
KINDS = (*RECORDS, *PLAIN)
HUB = "hf:"
# They describe a folder of records, as in every repository of the hub, and are no text to train on.
ABOUT = r"(?:readme|licen[cs]e|attribution)(?![a-z]).*\.(?:md|txt)|(?:dataset_infos?|state)\.json$"
HELD_OUT = r"(?:val|valid|validation|dev)"
TEST = r"(?:test|tests)"
HIDDEN = (".", "__")


@dataclass(frozen=True, kw_only=True)
class Files:
    """The text files of one path: to train on, held out, and passed over (relative, with the reason)."""

    folder: Path  # below which the files lie
    train: tuple[Path, ...]
    held_out: tuple[Path, ...]
    passed_over: tuple[str, ...]

    def summary(self) -> str:
        """Return what is read of them where they lie, passed over, and there twice."""
        text = f"{len(self.train):,} and {len(self.held_out):,} held-out files of {self.folder}"
        if self.passed_over:
            text += f", {len(self.passed_over):,} skipped ({listed(self.passed_over)})"
        if twice := same_content([*self.train, *self.held_out]):
            text += f"; duplicates: {listed(twice)}"
        return text

    def relative(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else str(path)


def kind_of(path: Path) -> str:
    """Return the format by the name's ending: .jsonl for a.jsonl, A.JSONL and a.jsonl.gz; "" if unknown."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in KINDS else ""


def side_of(split: str) -> str | None:
    """Return the side of a split of the hub, train or validation; None for a test split: it is not read."""
    if re.match(rf"{TEST}(?![a-z])", split.lower()):
        return None
    return "validation" if re.match(rf"{HELD_OUT}(?![a-z])", split.lower()) else "train"


def compression_of(path: Path) -> str | None:
    return COMPRESSED.get(path.suffix.lower())


def find_files(path: Path, *, validation: str | None) -> Files:
    """Return the text files at or below `path`, hidden ones excluded; ValueError where there are none.

    `validation` names the held-out file. Where it is None, names decide: validation-*, val.jsonl or a folder
    dev/ are held out; test-* and a folder test/ are never read.
    """
    if not path.exists():
        raise ValueError(
            f"data.path={path} does not exist; give a file or a folder of {listed(KINDS, most=9)}"
        )
    folder = path.parent if path.is_file() else path
    entries = [path] if path.is_file() else sorted(_below(path))
    files = [file for file in entries if file.is_file()]
    texts = [file for file in files if kind_of(file)]
    if not path.is_file() and any(kind_of(file) in RECORDS for file in texts):
        texts = [file for file in texts if not re.match(ABOUT, file.name.lower())]
    texts = [encodable(file) for file in texts]
    tests = [file for file in texts if len(files) > 1 and _is_named(file, folder, TEST)]
    texts = [file for file in texts if file not in tests]
    if not texts:
        others = f"; it has {listed([file.name for file in files])}" if files else ""
        raise ValueError(f"data.path={path} holds no text to train on ({listed(KINDS, most=9)}){others}")
    held_out = _held_out(texts, folder, validation)
    train = [file for file in texts if not any(file.samefile(other) for other in held_out)]
    if not train:
        raise ValueError(f"{path} holds no text besides the held-out {held_out[0].name}; add some text")
    left = [file for file in files if file not in (*texts, *tests, *held_out)]
    others = [file for file in entries if file not in files]
    found = Files(folder=folder, train=tuple(train), held_out=tuple(held_out), passed_over=())
    reasons = [*map(found.relative, left), *(f"{found.relative(file)} (a test split)" for file in tests)]
    reasons += [f"{found.relative(file)} (not a file)" for file in others]
    return Files(folder=folder, train=tuple(train), held_out=tuple(held_out), passed_over=tuple(reasons))


def same_content(files: Sequence[Path]) -> list[str]:
    """Return the names of files whose content another of them has too."""
    by_size: dict[int, list[Path]] = {}
    for file in files:
        by_size.setdefault(file.stat().st_size, []).append(file)
    pairs = (pair for same in by_size.values() for pair in combinations(same, 2))
    return sorted({file.name for pair in pairs if filecmp.cmp(*pair, shallow=False) for file in pair})


def _below(folder: Path) -> Iterator[Path]:
    """Yield all below a folder that is not hidden: files, and links to folders, which are not followed.

    ValueError for a folder that may not be read: its text would silently be missing.
    """

    def refuse(error: OSError) -> None:
        raise ValueError(f"{error.filename} cannot be read ({error.strerror}); make it readable") from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for name in (*links, *names):
            if not name.startswith(HIDDEN):
                yield Path(place, name)


def _held_out(texts: Sequence[Path], folder: Path, validation: str | None) -> list[Path]:
    if validation is None:
        return [file for file in texts if len(texts) > 1 and _is_named(file, folder, HELD_OUT)]
    file = folder / validation  # an absolute path stays what it is
    if not file.is_file():
        has = listed([text.name for text in texts])
        raise ValueError(f"data.validation={validation} is not a file; {folder} has {has}")
    return [file]


def _is_named(file: Path, folder: Path, word: str) -> bool:
    """Tell whether the name begins with a split's word, ends with one before its number, or a folder is one.

    validation-00000-of-00002.parquet, val_1.txt, c4-validation.00000-of-00008.json.gz, dev/a.txt; but neither
    values.csv nor the-test-of-time.txt.
    """
    *parents, name = (part.lower() for part in file.relative_to(folder).parts)
    named = re.match(rf"{word}(?![a-z])", name) or re.search(rf"[-_.]{word}[-_.]\d+-of-\d+", name)
    return bool(named) or any(re.fullmatch(word, parent) for parent in parents)
