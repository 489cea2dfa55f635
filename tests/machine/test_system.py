"""What git and the driver say of this checkout and this machine."""

import subprocess
import sys
from pathlib import Path

import pytest

from nanolit.machine import system


def test_ranks_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch):
    """Elsewhere than in a rank the variable is a leftover of somebody else's."""
    monkeypatch.setattr(system, "available_cores", lambda: 8)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "odd")
    assert system.cores_of_rank() == 8
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    for ranks, cores in (("2", 4), ("3", 2), ("16", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert system.cores_of_rank() == cores


@pytest.mark.parametrize(("given", "password"), [("", None), ("elm", "elm"), (" elm-otter \n", "elm-otter")])
def test_the_chats_password_is_taken_without_the_spaces_around_it(given, password, monkeypatch):
    monkeypatch.setenv("NANOLIT_CHAT_PASSWORD", given)
    assert system.chat_password() == password


@pytest.mark.parametrize("given", ["  ", "p\udcff"])
def test_a_password_that_nobody_could_type_is_refused(given, monkeypatch):
    monkeypatch.setenv("NANOLIT_CHAT_PASSWORD", given)
    with pytest.raises(ValueError, match="set another password"):
        system.chat_password()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of one commit, in which the package lies."""
    (tmp_path / "nanolit").mkdir()
    (tmp_path / "nanolit" / "a.py").write_text("1")
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=A", "-c", "user.email=a@b", "commit", "-qm", "A"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(system, "PACKAGE", tmp_path / "nanolit")
    return tmp_path


def test_a_changed_file_makes_the_commit_dirty(checkout):
    """Oracle: git itself."""
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert system.commit() == head
    assert system.code_version().endswith(f"+{head}")
    (checkout / "nanolit" / "a.py").write_text("2")
    assert system.commit() == f"{head}-dirty"


def test_a_package_inside_somebody_elses_checkout_has_no_commit(checkout, monkeypatch):
    monkeypatch.setattr(system, "PACKAGE", checkout / "site-packages" / "nanolit")
    assert system.commit() is None
    assert "+" not in system.code_version()


def test_a_program_that_fails_or_is_not_there_has_no_output():
    assert system.output(sys.executable, "-c", "print('text')") == "text"
    assert system.output(sys.executable, "-c", "raise SystemExit(1)") is None
    assert system.output("/nowhere/at/all") is None
