"""Who holds a lock is named, and where nothing can be locked that is said."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanolit.machine import locks
from nanolit.machine.locks import held, holder, is_held


def test_a_lock_that_is_held_names_its_process(tmp_path: Path):
    with (
        held(tmp_path / ".lock"),
        pytest.raises(ValueError, match=f"^it is in use by process {os.getpid()}; wait for it, stop it"),
        held(tmp_path / ".lock", busy="it is in use"),
    ):
        pass
    assert not is_held(tmp_path / ".lock")


def test_a_lock_that_is_no_file_is_refused_and_waits_for_nobody(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "link")
    for name in ("pipe", "folder", "link"):
        assert not is_held(tmp_path / name)
        with pytest.raises((ValueError, OSError), match=name), held(tmp_path / name):
            pass


def test_a_lock_that_leads_elsewhere_empties_nothing(tmp_path: Path):
    """A run folder may come from a stranger, with a link to a file of the user's."""
    (tmp_path / "notes").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "notes")
    with pytest.raises(ValueError, match="must be a file, since it is a lock"), held(tmp_path / ".lock"):
        pass
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_holder_that_is_gone_is_not_taken_for_a_living_one():
    """Its ranks inherited the lock."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = locks.socket.gethostname()
    assert holder(f"{gone.pid} on {here}\n").startswith(f"ranks of process {gone.pid}, which has ended;")
    assert holder("17 on elsewhere\n").startswith("process 17 on elsewhere; wait for it")
    assert holder("").startswith("process another;")


def test_where_locks_do_not_work_one_warning_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As network mounts answer; none can be had here."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    with pytest.warns(UserWarning, match=r"cannot be locked \(No locks available\)"):
        hold(tmp_path)
    hold(tmp_path)  # a second warning would be an error


def hold(folder: Path) -> None:
    with held(folder / ".lock"):
        pass
