"""Files are written whole, and read as what they must be: a line with the file, the fault and the remedy."""

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import TypedDict

from nanolit.machine import paths
from nanolit.machine.paths import DamagedFile, read_json, read_yaml, write_json
from tests.privileges import without_privileges


class Kind(TypedDict):
    step: int
    parts: dict[str, float]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "is not valid JSON"),
        ('{"step": 1, "par', "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ('{"step": ' + "1" * 5000 + "}", "is not valid JSON"),
        ('{"step": NaN, "parts": {}}', "is not valid JSON (NaN is not a finite number)"),
        ('{"step": 1, "parts": {"a": -Infinity}}', "is not valid JSON (-Infinity is not a finite number)"),
        ('{"step": 1, "parts": {"a": 1e400}}', "is not valid JSON (1e400 is not a finite number)"),
        ('{"step": 1, "parts": {}, "step": 2}', "is not valid JSON (the key 'step' appears twice)"),
        ("\ufeff{}", "is not valid JSON"),
        ("[]", "holds list, not an object"),
        ("null", "holds NoneType, not an object"),
        ("{}", "is damaged (step: field required)"),
        ('{"step": "1", "parts": {}}', "is damaged (step: input should be a valid integer)"),
        ('{"step": true, "parts": {}}', "is damaged (step: input should be a valid integer)"),
        ('{"step": 1, "parts": {"a": null}}', "is damaged (parts.a: input should be a valid number)"),
    ],
)
def test_json_of_other_content_is_refused_in_one_line(tmp_path: Path, text: str, fault: str):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DamagedFile) as refused:
        read_json(path, Kind, remedy="restore it")
    told = str(refused.value)
    assert told.startswith(f"{path} {fault}")
    assert told.endswith("; restore it")
    assert "\n" not in told


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "b:\n- {a: 1, a: 1}\n"])
def test_a_key_of_yaml_that_stands_twice_is_refused(tmp_path: Path, text: str):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(DamagedFile, match=r"is not valid YAML .*the key 'a' appears twice.*; restore it"):
        read_yaml(tmp_path / "a.yaml", remedy="restore it")


def test_what_is_nested_without_end_is_refused(tmp_path: Path):
    """Python's own parser takes 990 levels; whoever walks down them needs several calls for each."""
    path = tmp_path / "a.json"
    path.write_text('{"a":' + "[" * 49 + "]" * 49 + "}")
    assert read_json(path)
    path.write_text('{"a":' + "[" * 50 + "]" * 50 + "}")
    with pytest.raises(
        DamagedFile, match=r"a\.json is not valid JSON \(it is nested more than 50 levels deep"
    ):
        read_json(path)


def test_what_is_not_finite_is_written_as_null(tmp_path: Path):
    """A run that has diverged leaves JSON that can be read again."""
    write_json(tmp_path / "a.json", {"loss": float("nan"), "parts": [1.5, -float("inf")]})
    assert read_json(tmp_path / "a.json") == {"loss": None, "parts": [1.5, None]}


def test_more_than_is_asked_for_is_kept(tmp_path: Path):
    write_json(tmp_path / "a.json", content := {"step": 1, "parts": {"a": 1}, "newer": [2]})
    assert read_json(tmp_path / "a.json", Kind) == content


def test_no_pipe_is_waited_for_and_nothing_huge_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_text("{}" * 10)
    monkeypatch.setattr(paths, "LARGEST_TEXT", 10)
    for name, fault in (("pipe", "is not a file"), ("large", "too large for a NanoLit file")):
        with pytest.raises(DamagedFile, match=fault):
            read_json(tmp_path / name)


def test_what_may_not_be_read_says_so(tmp_path: Path):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "a.json").chmod(0)
    with pytest.raises(ValueError, match=r"a\.json cannot be read \(Permission denied\); make it readable"):
        without_privileges(lambda: read_json(tmp_path / "a.json"))


def test_aliases_that_unfold_without_end_are_refused_at_once(tmp_path: Path):
    """Seven levels of ten are ten million values; one alias that is used twice is not."""
    levels = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 8)]
    (tmp_path / "a.yaml").write_text("\n".join(["a0: &a0 [x]", *levels]))
    (tmp_path / "b.yaml").write_text("a: &a [1, 2]\nb: *a\nc: *a")
    (tmp_path / "c.yaml").write_text("a: &a [*a]")
    begun = time.monotonic()
    for name in ("a.yaml", "c.yaml"):
        with pytest.raises(DamagedFile, match="expands to over 100,000 values through its aliases; fix it"):
            read_yaml(tmp_path / name, remedy="fix it")
    assert time.monotonic() - begun < 5
    assert read_yaml(tmp_path / "b.yaml", remedy="")["c"] == [1, 2]


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.json'"):
        write_json(tmp_path / "a.json", {})
    assert not list(tmp_path.iterdir())


def test_a_root_that_cannot_be_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match=r"^~nobody-here/x starts with an unknown user; write"):
        paths.home("~nobody-here/x")
    with pytest.raises(ValueError, match="has a name that is not UTF-8; rename it"):
        paths.home(os.fsdecode(b"/srv/\xff"))
    monkeypatch.setenv("HOME", "/srv")
    assert paths.expanded("~/x") == Path("/srv/x")


def test_half_a_surrogate_pair_is_written_and_read_again(tmp_path: Path):
    write_json(tmp_path / "a.json", content := {"said": "\ud83d and é"})
    assert read_json(tmp_path / "a.json") == content


@pytest.mark.parametrize("value", ["!!bool maybe", "!!timestamp x", "!!python/name:os.system", "!mine 7"])
def test_a_tag_is_refused_whatever_it_means(value: str, tmp_path: Path):
    """PyYAML ends in a KeyError or an AttributeError for some, and in other types for others."""
    (tmp_path / "a.yaml").write_text(f"a: 'no tag!'\nb: {value}\n")
    with pytest.raises(DamagedFile, match=r"a\.yaml is not valid YAML \(it has a tag, .*; fix it"):
        read_yaml(tmp_path / "a.yaml", remedy="fix it")
    (tmp_path / "b.yaml").write_text("a: 'no tag!'\n")
    assert read_yaml(tmp_path / "b.yaml", remedy="") == {"a": "no tag!"}


def test_a_name_that_cannot_be_taken_is_told_as_the_file_that_was_meant(tmp_path: Path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_json(tmp_path / "a.json", {})
    assert caught.value.filename == str(tmp_path / "a.json")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
