"""Names say which files are text, held out, or a test split: those that people and the hub give them."""

import os
from pathlib import Path

import pytest

from nanolit.data.sources import Files, find_files, kind_of, side_of
from tests.privileges import without_privileges


def folder_of(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("{}")
    return root


def files_of(path: Path, *, validation: str | None) -> Files:
    (files,) = find_files([path], validation=validation)
    return files


def sides(files: Files) -> tuple[list[str], list[str], list[str]]:
    train, held_out = ([files.relative(file) for file in some] for some in (files.train, files.held_out))
    return train, held_out, list(files.passed_over)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", ".jsonl"),
        ("a.jsonl.gz", ".jsonl"),
        ("B.JSONL", ".jsonl"),
        ("c.ndjson.zst", ".ndjson"),
        ("c4-train.00000-of-01024.json.gz", ".json"),
        ("Book.TXT.GZ", ".txt"),
        ("notes.md", ".md"),
        ("t.tsv.bz2", ".tsv"),
        ("a.gz", ""),
        ("a.pdf", ""),
        ("Makefile", ""),
    ],
)
def test_a_kind_is_known_by_every_spelling_of_its_ending(name: str, kind: str) -> None:
    assert kind_of(Path(name)) == kind


@pytest.mark.parametrize(
    ("held_out", "train", "test"),
    [
        ("validation-00000-of-00001.parquet", "train-00000-of-00002.parquet", "test-00000-of-00001.parquet"),
        ("data/valid-00000-of-00001.parquet", "data/train-00000-of-00001.parquet", "data/test-1.parquet"),
        ("c4-validation.00000-of-00008.json.gz", "c4-train.00000-of-01024.json.gz", "test.json"),
        ("val.jsonl", "values.jsonl", "test/a.jsonl"),
        ("val_1.txt", "valley.txt", "TEST.txt"),
        ("dev/a.txt", "the-test-of-time.txt", "tests/b.txt"),
    ],
)
def test_split_names_are_respected_and_a_test_split_is_never_read(tmp_path, held_out, train, test) -> None:
    found = files_of(folder_of(tmp_path, held_out, train, test), validation=None)
    assert sides(found) == ([train], [held_out], [f"{test} (a test split)"])


def test_subfolders_are_read_and_what_is_no_text_is_passed_over_by_name(tmp_path: Path) -> None:
    """Of `cases/09`: each file is read, or named."""
    names = ("a.jsonl.gz", "c4-train.00000-of-01024.json.gz", "B.JSONL", "c.ndjson", "more/d.jsonl")
    found = files_of(
        folder_of(tmp_path, *names, "README.md", "cover.jpg", ".git/x.txt", "val.jsonl"), validation=None
    )
    assert sides(found) == (sorted(names), ["val.jsonl"], ["README.md", "cover.jpg"])


def test_a_readme_is_text_where_there_are_no_records(tmp_path: Path) -> None:
    assert sides(files_of(folder_of(tmp_path, "README.md", "b.txt"), validation=None))[0] == [
        "README.md",
        "b.txt",
    ]


def test_only_what_describes_the_records_is_no_text(tmp_path: Path) -> None:
    texts = ("README.jsonl", "license_plates.csv", "licensed.txt", "state_of_the_art.json", "states.jsonl")
    about = ("ATTRIBUTION.md", "LICENSE-MIT.txt", "README.md", "dataset_infos.json", "state.json")
    assert sides(files_of(folder_of(tmp_path, *texts, *about), validation=None)) == (
        list(texts),
        [],
        list(about),
    )


@pytest.mark.parametrize("name", ["test.txt", "state.json", "README.md"])
def test_a_file_alone_is_trained_on_whatever_its_name(tmp_path: Path, name: str) -> None:
    folder_of(tmp_path, name)
    assert sides(files_of(tmp_path / name, validation=None)) == ([name], [], [])


@pytest.mark.parametrize("validation", ["b.jsonl", "./b.jsonl", "{folder}/b.jsonl"])
def test_a_named_file_is_held_out(tmp_path: Path, validation: str) -> None:
    folder = folder_of(tmp_path, "a.jsonl", "b.jsonl", "val.jsonl")
    found = files_of(folder, validation=validation.format(folder=folder))
    assert sides(found)[0] == ["a.jsonl", "val.jsonl"]


@pytest.mark.parametrize(
    ("validation", "held_out"),
    [("held.txt", "a/held.txt"), ("{folder}/a/held.txt", "a/held.txt"), ("../held.txt", "held.txt")],
)
def test_what_one_source_holds_out_is_read_once_and_trained_on_in_none(
    tmp_path, validation, held_out
) -> None:
    folder_of(tmp_path, "held.txt", "a/held.txt", "a/x.txt", "b/y.txt")
    (tmp_path / "b/link.txt").symlink_to(tmp_path / held_out)
    validation = validation.format(folder=tmp_path)
    found = find_files([tmp_path / "a", tmp_path / "b"], validation=validation)
    assert [file.resolve() for files in found for file in files.held_out] == [tmp_path / held_out]
    train = {file.resolve() for files in found for file in files.train}
    assert train == {tmp_path / name for name in ("a/held.txt", "a/x.txt", "b/y.txt") if name != held_out}


def test_each_source_may_have_its_own_held_out_file_of_the_name(tmp_path: Path) -> None:
    folder_of(tmp_path, "a/x.txt", "a/y.txt", "b/x.txt", "b/y.txt")
    for files in find_files([tmp_path / "a", tmp_path / "b"], validation="x.txt"):
        assert sides(files) == (["y.txt"], ["x.txt"], [])


def test_thousands_of_files_are_compared_as_often_as_there_are_files(tmp_path, monkeypatch) -> None:
    folder_of(tmp_path, *(f"dev/{n}.txt" for n in range(100)), *(f"{n}.txt" for n in range(900)))
    compared, equal = [], Path.__eq__
    monkeypatch.setattr(Path, "__eq__", lambda one, other: compared.append(one) or equal(one, other))
    assert list(map(len, sides(files_of(tmp_path, validation=None)))) == [900, 100, 0]
    assert len(compared) < 10_000


@pytest.mark.parametrize(
    ("names", "validation", "message"),
    [
        ([], None, r"holds no text to train on \(\.parquet, \.jsonl, .*\)$"),
        (["a.pdf"], None, r"holds no text to train on .*; it has a\.pdf"),
        (["val.txt", "val2.txt"], None, r"holds no text besides the held-out val\.txt"),
        (["a.txt"], "b.txt", r"data\.validation=b\.txt is not a file; .* has a\.txt"),
        (["a.txt"], "a.txt", r"no text besides the held-out a\.txt"),
    ],
)
def test_a_folder_without_text_says_what_to_give(tmp_path, names, validation, message) -> None:
    with pytest.raises(ValueError, match=message):
        files_of(folder_of(tmp_path, *names), validation=validation)
    with pytest.raises(ValueError, match="does not exist; give a file or a folder of"):
        files_of(tmp_path / "absent", validation=None)


def test_splits_of_the_hub_have_sides() -> None:
    names = ("train", "validation", "test", "dev", "train_sft", "test_sft", "valid")
    assert [side_of(name) for name in names] == [
        "train",
        "validation",
        None,
        "validation",
        "train",
        None,
        "validation",
    ]


def test_text_is_never_left_out_without_a_word(tmp_path: Path) -> None:
    """Links to folders are not followed, and what may not be read or named is refused."""
    folder = folder_of(tmp_path / "d", "a.txt", "sub/b.txt", ".hidden/c.txt")
    (folder / "loop").symlink_to(folder)
    (folder / "gone.txt").symlink_to("/nonexistent/x")
    os.mkfifo(folder / "pipe.txt")
    found = files_of(folder, validation=None)
    left_out = [f"{name} (not a file)" for name in ("gone.txt", "loop", "pipe.txt")]
    assert sides(found) == (["a.txt", "sub/b.txt"], [], left_out)
    (folder / os.fsdecode(b"\xff.txt")).write_text("{}")
    with pytest.raises(ValueError, match="has a name that is not UTF-8; rename it"):
        files_of(folder, validation=None)
    (folder / "sub").chmod(0)
    with pytest.raises(ValueError, match=r"d/sub cannot be read \(Permission denied\); make it readable"):
        without_privileges(lambda: files_of(folder, validation=None))
    (folder / "sub").chmod(0o755)
