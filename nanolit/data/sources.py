"""Which files below a path hold text, and which of them are held out: by the names that the hub uses."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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


def find_files(paths: Sequence[Path], *, validation: str | None) -> list[Files]:
    """Return the text files at or below each path, hidden ones excluded; ValueError for one that has none.

    `validation` names the held-out file, in whichever folder it is. Where it is None, names decide:
    validation-*, val.jsonl or a folder dev/ are held out; test-* and a folder test/ are never read. What is
    held out of one path is not trained on in any.
    """
    found = [_texts_of(path) for path in paths]
    if validation is None:
        held_out = [_held_out_by_name(files) for files in found]
    else:
        held_out = _named(found, validation)
    identities = {_identity(file) for some in held_out for file in some}
    split = []
    for path, files, some in zip(paths, found, held_out, strict=True):
        train = tuple(file for file in files.train if _identity(file) not in identities)
        if not train:
            name = (*some, *files.train)[0].name
            others = ", or leave this source out" if len(paths) > 1 else ""
            raise ValueError(f"{path} holds no text besides the held-out {name}; add some text{others}")
        names = set(map(files.relative, some))
        passed_over = tuple(name for name in files.passed_over if name not in names)
        split.append(replace(files, train=train, held_out=tuple(some), passed_over=passed_over))
    return split


def same_content(files: Sequence[Path]) -> list[str]:
    """Return the names of files whose content another of them has too."""
    by_size: dict[int, list[Path]] = {}
    for file in files:
        by_size.setdefault(file.stat().st_size, []).append(file)
    by_content: dict[bytes, list[str]] = {}
    for file in (file for same in by_size.values() if len(same) > 1 for file in same):
        with file.open("rb") as stream:
            by_content.setdefault(hashlib.file_digest(stream, "sha256").digest(), []).append(file.name)
    return sorted({name for same in by_content.values() if len(same) > 1 for name in same})


def _texts_of(path: Path) -> Files:
    """Return all text at or below a path as to train on, and what is passed over."""
    if not path.exists():
        raise ValueError(
            f"data.path={path} does not exist; give a file or a folder of {listed(KINDS, most=9)}"
        )
    folder = path.parent if path.is_file() else path
    entries = [path] if path.is_file() else sorted(_below(path))
    files = {file: kind_of(file) for file in entries if file.is_file()}
    texts = [file for file, kind in files.items() if kind]
    if not path.is_file() and any(kind in RECORDS for kind in files.values()):
        texts = [file for file in texts if not re.match(ABOUT, file.name.lower())]
    is_test = {encodable(file): len(files) > 1 and _is_named(file, folder, TEST) for file in texts}
    train = tuple(file for file in texts if not is_test[file])
    if not train:
        others = f"; it has {listed([file.name for file in files])}" if files else ""
        raise ValueError(f"data.path={path} holds no text to train on ({listed(KINDS, most=9)}){others}")
    found = Files(folder=folder, train=train, held_out=(), passed_over=())
    reasons = [found.relative(file) for file in files if file not in is_test]
    reasons += [f"{found.relative(file)} (a test split)" for file in texts if is_test[file]]
    reasons += [f"{found.relative(file)} (not a file)" for file in entries if file not in files]
    return replace(found, passed_over=tuple(reasons))


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


def _held_out_by_name(files: Files) -> list[Path]:
    return [file for file in files.train if len(files.train) > 1 and _is_named(file, files.folder, HELD_OUT)]


def _named(found: Sequence[Files], validation: str) -> list[list[Path]]:
    """Return the file of that name in each folder, a file that several have only for the first."""
    named = [files.folder / validation for files in found]  # an absolute path stays what it is
    first = {_identity(file): number for number, file in reversed([*enumerate(named)]) if file.is_file()}
    if found and not first:
        has = "; ".join(
            f"{files.folder} has {listed([file.name for file in files.train])}" for files in found
        )
        raise ValueError(f"data.validation={validation} is not a file; {has}")
    return [[file] if number in first.values() else [] for number, file in enumerate(named)]


def _identity(file: Path) -> tuple[int, int]:
    """Return what all paths of one file have in common."""
    status = file.stat()
    return status.st_dev, status.st_ino


def _is_named(file: Path, folder: Path, word: str) -> bool:
    """Tell whether the name begins with a split's word, ends with one before its number, or a folder is one.

    validation-00000-of-00002.parquet, val_1.txt, c4-validation.00000-of-00008.json.gz, dev/a.txt; but neither
    values.csv nor the-test-of-time.txt.
    """
    *parents, name = (part.lower() for part in file.relative_to(folder).parts)
    named = re.match(rf"{word}(?![a-z])", name) or re.search(rf"[-_.]{word}[-_.]\d+-of-\d+", name)
    return bool(named) or any(re.fullmatch(word, parent) for parent in parents)
