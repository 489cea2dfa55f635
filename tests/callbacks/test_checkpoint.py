"""Which checkpoint is taken and which are kept, when none is written, and what a full disk says."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from stand_in_phase import StandInPhase, trainer_of

from nanolit.callbacks import checkpoint
from nanolit.callbacks.checkpoint import Checkpoints
from nanolit.callbacks.throughput import Clock
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


def test_a_file_that_was_damaged_at_its_full_length_is_seen(tmp_path):
    folder = whole(tmp_path / "step_000001")
    (folder / "model").write_bytes(b"weights")
    entry = {"bytes": 7, "sha256": checkpoint.file_hash(folder / "model")}
    write_json(folder / "manifest.json", {"format": 1, "step": 1, "files": {"model": entry}})
    assert checkpoint.is_whole(folder)
    (folder / "model").write_bytes(b"wEights")
    assert not checkpoint.is_whole(folder)


def make(folder) -> Checkpoints:
    return Checkpoints(
        folder, save_every=1, keep=2, clock=Clock(), progress=lambda: {"step": 3}, on_divergence="stop"
    )


def test_the_newest_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "write", lambda *_: whole(tmp_path / "step_1000000"))
    for step in ("999000", "000500", "998000"):
        whole(tmp_path / f"step_{step}")
    make(tmp_path).on_train_batch_end(trainer_of(1), StandInPhase(num_steps=9), None, None, 0)
    assert {folder.name for folder in tmp_path.iterdir()} == {"step_999000", "step_1000000"}


def test_a_step_that_diverged_is_not_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "write", lambda *_: pytest.fail("it was saved"))
    phase = StandInPhase(num_steps=9, loss=float("nan"))
    with pytest.raises(ValueError, match="diverged; the last checkpoint is kept"):
        make(tmp_path).on_train_batch_end(trainer_of(1), phase, None, None, 0)


def test_a_signal_to_another_rank_stops_this_one(tmp_path, monkeypatch):
    """The reduction stands in for a second rank, which was asked to stop and has nothing to save."""

    def all_reduce(flags, *, op, group):
        both = torch.stack([flags, torch.tensor([1, 0], dtype=flags.dtype)])
        flags.copy_(both.amax(0) if op == torch.distributed.ReduceOp.MAX else both.amin(0))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    callback = make(tmp_path)
    callback._group = object()
    assert callback._agreed(False, False) == (True, False)
    assert callback._agreed(False, True) == (True, True)


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
