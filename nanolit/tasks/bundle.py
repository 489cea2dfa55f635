"""CORE's questions: the evaluation bundle of DCLM that nanochat uses, read from a folder or fetched once.

The archive is not trusted: of its members only those named here are read, under names of our own. Files whose
original bytes are known are compared with them; a file that differs is named with every score.
"""

import hashlib
import shutil
import sys
import time
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nanolit.machine.arguments import choose
from nanolit.machine.paths import whole_or_absent, write_json
from nanolit.tasks.rows import FileRows, read_lines

URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"  # 162 MB; nanochat's copy
CHUNK = 2**20


@dataclass(frozen=True)
class Label:
    """A task of CORE as DCLM asks it; `baseline` is the percentage that guessing gets right."""

    name: str
    file: str
    kind: Literal["multiple_choice", "schema", "language_modeling"]
    shots: int
    delimiter: str
    baseline: float


ANSWER = "\nAnswer: "
CHOICE: Literal["multiple_choice"] = "multiple_choice"
LANGUAGE: Literal["language_modeling"] = "language_modeling"
LABELS = (
    Label("hellaswag_zeroshot", "language_understanding/hellaswag", CHOICE, 0, " ", 25.0),
    Label("jeopardy", "world_knowledge/jeopardy_all", LANGUAGE, 10, ANSWER, 0.0),
    Label("bigbench_qa_wikidata", "world_knowledge/bigbench_qa_wikidata", LANGUAGE, 10, " ", 0.0),
    Label("arc_easy", "world_knowledge/arc_easy", CHOICE, 10, ANSWER, 25.0),
    Label("arc_challenge", "world_knowledge/arc_challenge", CHOICE, 10, ANSWER, 25.0),
    Label("copa", "commonsense_reasoning/copa", CHOICE, 0, " ", 50.0),
    Label("commonsense_qa", "commonsense_reasoning/commonsense_qa", CHOICE, 10, " ", 20.0),
    Label("piqa", "commonsense_reasoning/piqa", CHOICE, 10, ANSWER, 50.0),
    Label("openbook_qa", "commonsense_reasoning/openbook_qa", CHOICE, 0, " ", 25.0),
    Label("lambada_openai", "language_understanding/lambada_openai", LANGUAGE, 0, " ", 0.0),
    Label("hellaswag", "language_understanding/hellaswag", CHOICE, 10, " ", 25.0),
    Label("winograd", "language_understanding/winograd_wsc", "schema", 0, " ", 50.0),
    Label("winogrande", "language_understanding/winogrande", "schema", 0, " ", 50.0),
    Label(
        "bigbench_dyck_languages", "symbolic_problem_solving/bigbench_dyck_languages", LANGUAGE, 10, " ", 0.0
    ),
    Label("agi_eval_lsat_ar", "symbolic_problem_solving/agi_eval_lsat_ar", CHOICE, 3, " ", 20.0),
    Label(
        "bigbench_cs_algorithms", "symbolic_problem_solving/bigbench_cs_algorithms", LANGUAGE, 10, " ", 0.0
    ),
    Label("bigbench_operators", "symbolic_problem_solving/bigbench_operators", LANGUAGE, 10, " ", 0.0),
    Label(
        "bigbench_repeat_copy_logic",
        "symbolic_problem_solving/bigbench_repeat_copy_logic",
        LANGUAGE,
        10,
        " ",
        0.0,
    ),
    Label("squad", "reading_comprehension/squad", LANGUAGE, 10, " ", 0.0),
    Label("coqa", "reading_comprehension/coqa", LANGUAGE, 0, " ", 0.0),
    Label("boolq", "reading_comprehension/boolq", CHOICE, 10, ANSWER, 62.0),
    Label(
        "bigbench_language_identification",
        "language_understanding/bigbench_language_identification",
        CHOICE,
        10,
        " ",
        9.1,
    ),
)

# sha256 of the original files; of hellaswag and coqa we never had them, only of copies that others rebuilt
ORIGINAL = {
    "commonsense_reasoning/commonsense_qa": "2771f63f8127c0725b1f6b0ef2cd2ef6469168ae5875fc8d276b25b4f32c8c1a",
    "commonsense_reasoning/copa": "595dca44dec54c849490bd403a3e24a29e3b944065783222ebb0eb1a55298846",
    "commonsense_reasoning/openbook_qa": "adb2e5c7f8db810ddad4d6b2bf53dcc86dcc545499f7aafcaf42a8e179476c09",
    "commonsense_reasoning/piqa": "d2870e73aec5154df3faf259b7700876e11608eebdf69e9d6667435673dbe4e0",
    "language_understanding/bigbench_language_identification": (
        "80c98d8e7ab8213513d1643886229c05c40a6837353b07c19ac7bd860668954e"
    ),
    "language_understanding/lambada_openai": "411bfbe5b9054346b6a19299c0242670adbefb9162efd958593cbc0290b8c9dc",
    "language_understanding/winograd_wsc": "746336c27cd2e39a554cb1b8b4869d0f1ae2577ac5bfe799842d26bca5a5bf5e",
    "language_understanding/winogrande": "ea1592526f3bfdd0948ed3acb1b4dfa3f83d23698917118688ee1df7f8d4b8d7",
    "reading_comprehension/boolq": "454ff101e614370bb1807fe7ebbda6fdb57e794b9662cc1ccae211bf1ff626c8",
    "reading_comprehension/squad": "41fe6c43e725c0dc9161465066932c46edc390bf4019c361c500bbc4b766a350",
    "symbolic_problem_solving/agi_eval_lsat_ar": "9ffd73480b51746c11627e56239f8b87035eb255cb92c3a58fd64e2e4b65fb56",
    "symbolic_problem_solving/bigbench_cs_algorithms": (
        "8485683a8c7e7e6c9fc6ca3cc81140fd85edb27f34406a6736d1539cf7ebcb3a"
    ),
    "symbolic_problem_solving/bigbench_dyck_languages": (
        "106ba9ac7507c7ab385c5e59c49cd57aa83025abf080d9b2a2661c0d6c6dbcc5"
    ),
    "symbolic_problem_solving/bigbench_operators": "41e2964ad619c49edd97c22b2c50f922a0241255d906a754bf81a20f4f66b85f",
    "symbolic_problem_solving/bigbench_repeat_copy_logic": (
        "8febd2c0080a15680cd17f92bfa30d87abcfac021e646e55d0b8ad69f0cfa767"
    ),
    "world_knowledge/arc_challenge": "1ae3aeedf1951d881cbd5c2e3a31e78a1993d251479afbe4cb413b6707244636",
    "world_knowledge/arc_easy": "d2d12e59543acf9a5ef6079634a72b30215e36c2fd4236fff3bc855d287b87f5",
    "world_knowledge/bigbench_qa_wikidata": "bb0d22727cb25beffb022c8e8c0c3e1159c8b3c7bd7284603c0d6491f8616265",
    "world_knowledge/jeopardy_all": "187e7f270a440c63d6cf11a57459fdc7e0bce889338225e42cc88e24ee13d52e",
}
REBUILT = {
    "language_understanding/hellaswag": "1c6f502a5907c5be1952c71d212af81d3dce56037079b349cf8bdebc27e0fcf1",
    "reading_comprehension/coqa": "31c3f0dbe11bafc5286e5974bfb107ba16bc464565f7b7edfe6c409f54294668",
}
FIELDS = {
    "multiple_choice": {"query": str, "choices": list, "gold": int},
    "schema": {"context_options": list, "continuation": str, "gold": int},
    "language_modeling": {"context": str, "continuation": str},
}
Item = dict[str, Any]


def open_bundle(folder: Path, *, offline: bool = False) -> Path:
    """Return the folder of the bundle's files, fetched first if it isn't there."""
    if any((folder / "eval_data").glob("*/*.jsonl*")):
        return folder
    if offline:
        raise ValueError(
            f"CORE's questions are not in {folder}, and offline=true fetches nothing: unpack {URL} there"
        )
    _fetch(folder)
    return folder


def read_items(bundle: Path, label: Label) -> tuple[list[Item], str]:
    """Return a label's items in the file's order and the sha256 of the file; ValueError names a wrong row."""
    path = _path(bundle, label)
    rows, items = FileRows([path]), []
    for index in range(len(rows)):
        items.append(rows[index])
        _check(items[-1], label, rows.place(index))
    if len(items) <= label.shots:
        raise ValueError(f"{path} has {len(items)} items; {label.name} shows {label.shots} besides each one")
    return items, sha256_of(path)


def is_original(label: Label, digest: str) -> bool:
    """Whether a file may be the one that published scores are of."""
    return ORIGINAL.get(label.file, digest) == digest and REBUILT.get(label.file) != digest


def sha256_of(path: Path) -> str:
    """Return the hash of a file as it is unpacked."""
    return hashlib.sha256("\n".join(read_lines(path)).encode()).hexdigest()


def _path(bundle: Path, label: Label) -> Path:
    for ending in ("jsonl", "jsonl.zst", "jsonl.gz"):
        path = bundle / "eval_data" / f"{label.file}.{ending}"
        if path.is_file():
            return path
    raise ValueError(
        f"{bundle} has no eval_data/{label.file}.jsonl; delete the folder, so that it is fetched anew"
    )


def _check(item: Item, label: Label, place: str) -> None:
    fields = FIELDS[label.kind]
    wrong = [name for name, kind in fields.items() if not isinstance(item.get(name), kind)]
    if wrong:
        need = ", ".join(f"{name} ({kind.__name__})" for name, kind in fields.items())
        raise ValueError(
            f"{place}: {label.name} needs {need}; {', '.join(wrong)} is missing or of another type"
        )
    options = item.get("choices") or item.get("context_options")
    if options and not (all(isinstance(one, str) for one in options) and 0 <= item["gold"] < len(options)):
        raise ValueError(f"{place}: gold must be the number of one of {len(options)} texts, from 0")


def _fetch(folder: Path) -> None:
    """Download the archive and unpack the files that CORE reads; it is deleted afterwards."""
    with whole_or_absent(folder / "eval_bundle.zip") as archive:
        try:
            with urllib.request.urlopen(URL, timeout=60) as answer, archive.open("wb") as file:
                _copy(answer, file, size=int(answer.headers.get("Content-Length") or 0))
            digest = _unpack(archive, folder)
        except (OSError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"CORE's questions could not be fetched from {URL} ({error}); "
                f"try again, or unpack the archive into {folder}"
            ) from error
    (folder / "eval_bundle.zip").unlink()
    write_json(folder / "source.json", {"format": 1, "url": URL, "sha256": digest})


def _copy(source: Any, target: Any, *, size: int) -> None:
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
        raise OSError(f"{done:,} of {size:,} bytes came")


def _unpack(archive: Path, folder: Path) -> str:
    """Write the files that are named here, and nothing else; return the archive's sha256."""
    with zipfile.ZipFile(archive) as bundle:
        names = {name.split("eval_data/", 1)[-1]: name for name in bundle.namelist() if "eval_data/" in name}
        for file in sorted({label.file for label in LABELS}):
            if f"{file}.jsonl" not in names:
                raise zipfile.BadZipFile(f"no eval_data/{file}.jsonl in it")
            with (
                whole_or_absent(folder / "eval_data" / f"{file}.jsonl") as path,
                path.open("wb") as out,
                bundle.open(names[f"{file}.jsonl"]) as member,
            ):
                shutil.copyfileobj(member, out)
    with archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def choose_labels(names: Sequence[str] | None) -> list[Label]:
    """Return the labels of these names, or all."""
    if names is None:
        return [*LABELS]
    known = [label.name for label in LABELS]
    chosen = {choose(name, known, kind="task of CORE") for name in names}
    return [label for label in LABELS if label.name in chosen]
