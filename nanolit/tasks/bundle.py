"""CORE's questions: the evaluation bundle of DCLM that nanochat uses, read from a folder or fetched once.

The archive is not trusted: of its members only those named here are read, under names of our own. Files whose
original bytes are known are compared with them; a file that differs is named with every score.
"""

import hashlib
import lzma
import shutil
import sys
import time
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from nanolit.machine.paths import file_hash, whole_or_absent, write_json
from nanolit.tasks.rows import ENDINGS, FileRows, read_lines

URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"  # 162 MB; nanochat's copy
# GPT-2's scores as nanochat measured them; an archive may lack them
PUBLISHED = tuple(f"openai-community-gpt2{size}.csv" for size in ("", "-medium", "-large", "-xl"))
CHUNK = 2**20
LARGEST = 2**26  # bytes of a file; the largest of the bundle has 11 MB


@dataclass(frozen=True)
class Label:
    """A task of CORE as DCLM asks it; `baseline` is the percentage that guessing gets right."""

    name: str
    file: str
    kind: str
    shots: int
    delimiter: str
    baseline: float
    digest: str


# Name, file (= is the same name), folder, kind, examples shown, what stands before an answer, the percentage
# that guessing gets right, and the beginning of the file's sha256
TABLE = """
hellaswag_zeroshot               hellaswag    language_understanding   choice    0 blank  25.0 1c6f502a5907
jeopardy                         jeopardy_all world_knowledge          language 10 answer  0.0 187e7f270a44
bigbench_qa_wikidata             =            world_knowledge          language 10 blank   0.0 bb0d22727cb2
arc_easy                         =            world_knowledge          choice   10 answer 25.0 d2d12e59543a
arc_challenge                    =            world_knowledge          choice   10 answer 25.0 1ae3aeedf195
copa                             =            commonsense_reasoning    choice    0 blank  50.0 595dca44dec5
commonsense_qa                   =            commonsense_reasoning    choice   10 blank  20.0 2771f63f8127
piqa                             =            commonsense_reasoning    choice   10 answer 50.0 d2870e73aec5
openbook_qa                      =            commonsense_reasoning    choice    0 blank  25.0 adb2e5c7f8db
lambada_openai                   =            language_understanding   language  0 blank   0.0 411bfbe5b905
hellaswag                        =            language_understanding   choice   10 blank  25.0 1c6f502a5907
winograd                         winograd_wsc language_understanding   schema    0 blank  50.0 746336c27cd2
winogrande                       =            language_understanding   schema    0 blank  50.0 ea1592526f3b
bigbench_dyck_languages          =            symbolic_problem_solving language 10 blank   0.0 106ba9ac7507
agi_eval_lsat_ar                 =            symbolic_problem_solving choice    3 blank  20.0 9ffd73480b51
bigbench_cs_algorithms           =            symbolic_problem_solving language 10 blank   0.0 8485683a8c7e
bigbench_operators               =            symbolic_problem_solving language 10 blank   0.0 41e2964ad619
bigbench_repeat_copy_logic       =            symbolic_problem_solving language 10 blank   0.0 8febd2c0080a
squad                            =            reading_comprehension    language 10 blank   0.0 41fe6c43e725
coqa                             =            reading_comprehension    language  0 blank   0.0 31c3f0dbe11b
boolq                            =            reading_comprehension    choice   10 answer 62.0 454ff101e614
bigbench_language_identification =            language_understanding   choice   10 blank   9.1 80c98d8e7ab8
"""
KINDS = {"choice": "multiple_choice", "schema": "schema", "language": "language_modeling"}
DELIMITERS = {"blank": " ", "answer": "\nAnswer: "}
# We never had the original files of these: their hashes are those of copies that others rebuilt
REBUILT = ("language_understanding/hellaswag", "reading_comprehension/coqa")
LABELS = tuple(
    Label(
        name,
        f"{folder}/{name if file == '=' else file}",
        KINDS[kind],
        int(shots),
        DELIMITERS[delimiter],
        float(baseline),
        digest,
    )
    for name, file, folder, kind, shots, delimiter, baseline, digest in map(
        str.split, TABLE.strip().splitlines()
    )
)
FIELDS = {
    "multiple_choice": {"query": str, "choices": list, "gold": int},
    "schema": {"context_options": list, "continuation": str, "gold": int},
    "language_modeling": {"context": str, "continuation": str},
}
Item = dict[str, Any]


def open_bundle(folder: Path, *, offline: bool = False) -> Path:
    """Return the folder of the bundle's files, all of them, fetched first where one is missing."""
    missing = [label.file for label in LABELS if _path(folder, label) is None]
    if missing and offline:
        raise ValueError(
            f"{folder} lacks eval_data/{missing[0]}.jsonl of CORE, and offline=true forbids downloading: "
            f"unpack {URL} there"
        )
    if missing:
        print(f"CORE's questions: downloading 162 MB from {URL} into {folder}", flush=True)
        _fetch(folder)
    return folder


def check_bundle(folder: Path) -> None:
    """ValueError names the file and the line of the first item that can't be asked, or a missing file."""
    for label in LABELS:
        read_items(folder, label)


def read_items(bundle: Path, label: Label) -> tuple[list[Item], str]:
    """Return a label's items in the file's order and the sha256 of the file; ValueError names a wrong row."""
    path = _found(bundle, label)
    rows, items = FileRows([path]), []
    for index in range(len(rows)):
        items.append(rows[index])
        _check(items[-1], label, rows.place(index))
    if len(items) <= label.shots:
        raise ValueError(
            f"{path} has {len(items)} items; {label.name} shows {label.shots} examples with each one"
        )
    return items, digest_of(bundle, label)


def is_original(label: Label, digest: str) -> bool:
    """Tell whether a file may be the one that published scores are of."""
    return digest.startswith(label.digest) != (label.file in REBUILT)


def digest_of(bundle: Path, label: Label) -> str:
    """Return the sha256 of a label's file as it is unpacked."""
    return hashlib.sha256("\n".join(read_lines(_found(bundle, label))).encode()).hexdigest()


def _found(bundle: Path, label: Label) -> Path:
    path = _path(bundle, label)
    if path is None:
        raise ValueError(
            f"{bundle} has no eval_data/{label.file}.jsonl; give another folder, or unpack {URL} there"
        )
    return path


def _path(bundle: Path, label: Label) -> Path | None:
    paths = (bundle / "eval_data" / f"{label.file}{ending}" for ending in ENDINGS)
    return next((path for path in paths if path.is_file()), None)


def _check(item: Item, label: Label, place: str) -> None:
    fields = FIELDS[label.kind]
    wrong = [name for name, kind in fields.items() if type(item.get(name)) is not kind]
    if wrong:
        need = ", ".join(f"{name} ({kind.__name__})" for name, kind in fields.items())
        raise ValueError(
            f"{place}: {label.name} needs {need}; {', '.join(wrong)} is missing or has the wrong type"
        )
    if label.kind == "language_modeling":
        if not item["continuation"].strip():
            raise ValueError(f"{place}: the continuation is empty")
        return
    options = item["choices" if label.kind == "multiple_choice" else "context_options"]
    if len(options) < 2 or not all(isinstance(option, str) for option in options):
        raise ValueError(f"{place}: there must be at least two options, all of them texts")
    if label.kind == "schema" and len(set(options)) < len(options):
        raise ValueError(f"{place}: the contexts must differ")
    if not 0 <= item["gold"] < len(options):
        raise ValueError(f"{place}: gold must be the index of one of the {len(options)} texts, from 0")


# RuntimeError: a password, or a way of compression that Python does not know
UNREADABLE = (OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError)


def _fetch(folder: Path) -> None:
    """Download the archive and unpack the files that CORE reads; it is deleted afterwards."""
    with whole_or_absent(folder / "eval_bundle.zip") as archive:
        try:
            with urllib.request.urlopen(URL, timeout=60) as answer, archive.open("wb") as file:
                _copy(answer, file, size=int(answer.headers.get("Content-Length") or 0))
            digest = _unpack(archive, folder)
        except UNREADABLE as error:
            raise ValueError(
                f"CORE's questions could not be downloaded from {URL} ({error}); "
                f"try again, or unpack the archive into {folder}"
            ) from error
    (folder / "eval_bundle.zip").unlink()
    write_json(folder / "source.json", {"format": 1, "url": URL, "sha256": digest})


def _copy(source: IO[bytes], target: IO[bytes], *, size: int) -> None:
    done, begun = 0, time.monotonic()
    while chunk := source.read(CHUNK):
        target.write(chunk)
        done += len(chunk)
        if sys.stderr.isatty() and size:
            left = (time.monotonic() - begun) * (size - done) / done
            status = f"\rCORE's questions: {done / 1e6:.0f} of {size / 1e6:.0f} MB, {left:.0f} s left "
            print(status, end="", file=sys.stderr)
    if sys.stderr.isatty() and size:
        print(file=sys.stderr)
    if size and done != size:
        raise OSError(f"{done:,} of {size:,} bytes arrived")


def _unpack(archive: Path, folder: Path) -> str:
    """Write the files that are named here, and nothing else; return the archive's sha256."""
    with zipfile.ZipFile(archive) as bundle:
        names = {name.split("eval_data/", 1)[-1]: name for name in bundle.namelist() if "eval_data/" in name}
        for file in sorted({f"{label.file}.jsonl" for label in LABELS}):
            if file not in names or bundle.getinfo(names[file]).file_size > LARGEST:
                raise zipfile.BadZipFile(f"it has no eval_data/{file} of a plausible size")
            _extract(bundle, names[file], folder / "eval_data" / file)
        for name in bundle.namelist():
            if Path(name).name in PUBLISHED and bundle.getinfo(name).file_size < CHUNK:
                _extract(bundle, name, folder / Path(name).name)
    return file_hash(archive)


def _extract(bundle: zipfile.ZipFile, name: str, target: Path) -> None:
    with whole_or_absent(target) as path, path.open("wb") as out, bundle.open(name) as member:
        shutil.copyfileobj(member, out)
