"""CORE's questions: fetched whole or not at all, and every fault of theirs told in a line."""

import json
import zipfile
from pathlib import Path

import pytest

from nanolit import evaluate
from nanolit.tasks import bundle
from nanolit.tasks.bundle import LABELS, check_bundle, open_bundle, read_items
from tests.evaluation.small_bundle import ITEMS, write_bundle

ARC = next(label for label in LABELS if label.name == "arc_easy")
RELEASE = Path(__file__).parents[1] / "fixtures/release_format_1"


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive like the published one, at an address of its own, with members that nobody asked for."""
    source = write_bundle(tmp_path / "source/eval_bundle")
    path = tmp_path / "eval_bundle.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for member in sorted(source.rglob("*.jsonl")):
            file.write(member, member.relative_to(tmp_path / "source"))
        file.writestr("eval_bundle/openai-community-gpt2.csv", "Task, Accuracy, Centered\n")
        file.writestr("../../escaped.jsonl", "{}\n")
        file.writestr("eval_bundle/eval_data/../../../escaped.jsonl", "{}\n")
        file.writestr("eval_bundle/eval_data/large/other.jsonl", "{}\n")
    monkeypatch.setattr(bundle, "URL", path.as_uri())
    return path


def test_the_questions_are_fetched_once_and_nothing_else_is_unpacked(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a/b/core"
    check_bundle(open_bundle(folder))
    assert (
        capsys.readouterr().out
        == f"CORE's questions: downloading 162 MB from {archive.as_uri()} into {folder}\n"
    )
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    expected = {f"eval_data/{label.file}.jsonl" for label in LABELS}
    assert files == {*expected, "source.json", "openai-community-gpt2.csv"}
    assert not list(tmp_path.rglob("escaped*"))
    monkeypatch.setattr(bundle, "URL", "file:///nowhere")
    open_bundle(folder)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    """Damage the packed bytes of the first member."""
    return content[:90] + bytes(byte ^ 255 for byte in content[90:120]) + content[120:]


def recompress(content: bytes) -> bytes:
    """Say that the first member is compressed in a way that Python does not know."""
    method = content.index(b"PK\1\2") + 10
    return content[:method] + b"\x63\0" + content[method + 2 :]


@pytest.mark.parametrize("damage", [cut, flip, recompress, lambda _: b"<html>Not here</html>"])
def test_a_damaged_archive_is_told_in_a_line_and_leaves_no_archive(
    archive: Path, tmp_path: Path, damage, capsys: pytest.CaptureFixture[str]
) -> None:
    archive.write_bytes(damage(archive.read_bytes()))
    root = tmp_path / "root"
    assert evaluate.main([f"release={RELEASE}", "tasks=core", f"root={root}"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: CORE's questions could not be downloaded from {archive.as_uri()} (")
    assert line.endswith(f"try again, or unpack the archive into {root}/eval/core")
    assert not list(root.rglob("*eval_bundle.zip*"))


def test_a_folder_without_the_questions_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"release={RELEASE}", "tasks=core", f"bundle={tmp_path / 'mine'}", f"root={tmp_path}"]
    assert evaluate.main(words) == 2
    assert (
        "mine has no eval_data/language_understanding/hellaswag.jsonl; give another"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff{}\n", r"arc_easy.jsonl line 1: not UTF-8 \(byte 0xff\)"),
        (b"", "arc_easy.jsonl: no rows; fill the file"),
        (b"3\n", "arc_easy.jsonl line 1: got '3'; a line must be an object"),
    ],
)
def test_a_file_that_holds_no_questions_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (write_bundle(tmp_path) / f"eval_data/{ARC.file}.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        check_bundle(tmp_path)


def test_a_task_needs_more_questions_than_it_shows(tmp_path: Path) -> None:
    path = write_bundle(tmp_path) / f"eval_data/{ARC.file}.jsonl"
    lines = path.read_text().splitlines()
    assert len(read_items(tmp_path, ARC)[0]) == len(lines) == ITEMS
    path.write_text("\n".join(lines[:10]))
    with pytest.raises(ValueError, match="has 10 items; arc_easy shows 10 examples with each one"):
        read_items(tmp_path, ARC)


def test_an_answer_is_a_number_and_no_truth_value(tmp_path: Path) -> None:
    path = write_bundle(tmp_path) / f"eval_data/{ARC.file}.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, json.dumps({"query": "a", "choices": ["b", "c"], "gold": True})]))
    with pytest.raises(ValueError, match=r"line 13: arc_easy needs .*gold is missing or has the wrong type"):
        read_items(tmp_path, ARC)
