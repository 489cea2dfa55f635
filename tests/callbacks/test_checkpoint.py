"""Which checkpoint is taken, and what a full disk says."""

from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import SafetensorError

from nanolit.callbacks import checkpoint
from nanolit.machine.paths import write_json


def whole(folder):
    folder.mkdir(parents=True)
    write_json(folder / "progress.json", {"step": 1})
    write_json(folder / "manifest.json", {"format": checkpoint.FORMAT, "step": 1, "files": {}})
    return folder


def test_the_newest_is_that_of_the_largest_step(tmp_path):
    for step in ("999000", "1000000", "000500"):
        whole(tmp_path / f"step_{step}")
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.folder.name == "step_1000000"


def test_a_manifest_that_was_cut_off_is_skipped(tmp_path):
    older, newer = whole(tmp_path / "step_000001"), whole(tmp_path / "step_000002")
    (newer / "manifest.json").write_text('{"format": 1, "fil')
    with pytest.warns(UserWarning, match="step_000002 is not a whole checkpoint"):
        found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.folder == older


@pytest.mark.parametrize("error", [OSError, SafetensorError])
def test_a_full_disk_is_named_and_leaves_no_checkpoint_that_counts(tmp_path, monkeypatch, error):
    """safetensors raises an error of its own kind."""

    def full(*_: Any, **__: Any) -> None:
        raise error("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    phase: Any = SimpleNamespace(optimizer=SimpleNamespace(state_slices=dict))
    with pytest.raises(OSError, match=r"could not write the checkpoint .*No space left on device"):
        checkpoint.write(tmp_path, phase, {"step": 7})
    assert not (tmp_path / "step_000007" / "manifest.json").exists()
