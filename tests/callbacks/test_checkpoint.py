"""Which checkpoint is taken and which are kept, when none is written, and what a full disk says."""

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from stand_in_phase import StandInPhase, trainer_of

from nanolit.callbacks import checkpoint
from nanolit.callbacks.progress import Clock
from nanolit.callbacks.saving import Checkpoints
from nanolit.machine.paths import STEP, DamagedFile, step_of, write_json
from tests.privileges import without_privileges


def whole(folder):
    folder.mkdir(parents=True)
    step = step_of(folder) if STEP.fullmatch(folder.name) else 1
    write_json(folder / "progress.json", {"step": step})
    (folder / "model.safetensors").write_bytes(b"weights")
    files = {"model.safetensors": checkpoint.entry_of(folder / "model.safetensors")}
    write_json(folder / "manifest.json", {"format": checkpoint.FORMAT, "step": step, "files": files})
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
    with pytest.warns(UserWarning, match="step_000002 is not a complete checkpoint"):
        found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.folder == older


def test_a_file_that_was_damaged_at_its_full_length_is_seen(tmp_path):
    folder = whole(tmp_path / "step_000001")
    (folder / "model.safetensors").write_bytes(b"weights")
    entry = {"bytes": 7, "sha256": checkpoint.file_hash(folder / "model.safetensors")}
    write_json(folder / "manifest.json", {"format": 1, "step": 1, "files": {"model.safetensors": entry}})
    assert checkpoint.is_whole(folder)
    (folder / "model.safetensors").write_bytes(b"wEights")
    assert not checkpoint.is_whole(folder)


def half(folder):
    folder.mkdir(parents=True)
    (folder / "optimizer-00000-of-00001.safetensors").write_bytes(b"half")
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_has_another_name_is_passed_over_and_kept(tmp_path):
    others = ("step_000008_backup", "step_000012 (copy)", "step_", "step_-00001", "notes")
    for name in ("step_000001", "step_000009", "step_1000000", *others):
        whole(tmp_path / name)
    assert [path.name for path in checkpoint.by_step(tmp_path)] == [
        "step_000001",
        "step_000009",
        "step_1000000",
    ]
    checkpoint.prune(tmp_path, newest=tmp_path / "step_1000000", keep=1)
    checkpoint.remove_above(tmp_path, 0)
    assert names(tmp_path) == sorted(others)


def test_pruning_counts_whole_checkpoints_and_spares_the_one_just_written(tmp_path):
    """Half-written ones with higher and lower steps, as kills while saving leave them."""
    for step in (48, 54, 56):
        whole(tmp_path / f"step_{step:06d}")
    for step in (50, 55, 58, 59):
        half(tmp_path / f"step_{step:06d}")
    checkpoint.prune(tmp_path, newest=tmp_path / "step_000056", keep=2)
    assert names(tmp_path) == ["step_000054", "step_000056", "step_000058", "step_000059"]


@pytest.mark.parametrize("keep", [1, 2, 4, 5, 40])
def test_as_many_are_kept_as_there_are_to_keep(tmp_path, keep):
    for step in range(1, 5):
        whole(tmp_path / f"step_{step:06d}")
    checkpoint.prune(tmp_path, newest=tmp_path / "step_000004", keep=keep)
    assert len(names(tmp_path)) == min(keep, 4)


def test_a_resumed_run_removes_what_is_above_it_and_keeps_its_whole_checkpoints(tmp_path, monkeypatch):
    """The start, and then every step saved: after each, the newest two of those written are there."""
    whole(tmp_path / "step_000054")
    for step in (58, 59):
        half(tmp_path / f"step_{step:06d}")
    callback, phase = make(tmp_path), StandInPhase(num_steps=60)
    monkeypatch.setattr(checkpoint, "write", lambda *_: whole(tmp_path / f"step_{phase.finished_steps:06d}"))
    checkpoint.remove_above(tmp_path, 54)
    assert names(tmp_path) == ["step_000054"]
    for phase.finished_steps in (55, 56, 57):
        callback.on_train_batch_end(trainer_of(1), phase, None, None, 0)
        written = [f"step_{phase.finished_steps - 1:06d}", f"step_{phase.finished_steps:06d}"]
        assert names(tmp_path) == written
        assert all(checkpoint.is_whole(tmp_path / name) for name in written)


@pytest.mark.filterwarnings("ignore:.* is not a complete checkpoint")
def test_it_is_said_when_no_whole_checkpoint_is_left(tmp_path):
    half(tmp_path / "step_000003")
    with pytest.warns(UserWarning, match=f"no complete checkpoint is left in {tmp_path}: starting at step 1"):
        assert checkpoint.latest(tmp_path) is None


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '"text"', '{"format": 1}', '{"format": 1, "files": "x"}', "[" * 100_000]
)
def test_a_manifest_of_other_content_is_none(tmp_path, text):
    folder = whole(tmp_path / "step_000001")
    (folder / "manifest.json").write_text(text)
    assert not checkpoint.is_whole(folder)


def test_a_manifest_without_a_file_that_is_there_is_none(tmp_path):
    """Without a rank's part of its state the optimizer would begin anew, and nothing would say so."""
    folder = whole(tmp_path / "step_000001")
    (folder / "optimizer-00000-of-00001.safetensors").write_bytes(b"moments")
    assert not checkpoint.is_whole(folder)


def test_a_manifest_that_does_not_name_the_weights_is_none(tmp_path):
    """Their hash would not be compared."""
    folder = whole(tmp_path / "step_000001")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["model.safetensors"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert not checkpoint.is_whole(folder)


def test_a_checkpoint_that_may_not_be_read_is_no_reason_to_take_an_older_one(tmp_path):
    folder = whole(tmp_path / "step_000001")
    (folder / "manifest.json").chmod(0)
    with pytest.raises(ValueError, match=r"cannot be read \(Permission denied\); make it readable"):
        without_privileges(lambda: checkpoint.is_whole(folder))


def test_a_checkpoint_that_was_renamed_is_none_of_the_step_of_its_name(tmp_path):
    """Its own step is below what is removed above the step that a run resumes after."""
    whole(tmp_path / "step_000004").rename(tmp_path / "step_000100")
    assert not checkpoint.is_whole(tmp_path / "step_000100")


def test_what_is_no_folder_makes_room_for_a_checkpoint(tmp_path):
    (tmp_path / "step_000008").write_text("a file")
    (tmp_path / "step_000009").symlink_to(tmp_path / "step_000009")
    checkpoint.remove_above(tmp_path, 4)
    assert not names(tmp_path)
    (tmp_path / "step_000008").write_text("a file")
    checkpoint.make_anew(tmp_path / "step_000008")
    assert (tmp_path / "step_000008").is_dir()


@pytest.mark.parametrize(
    "starts", [None, "[]", "[" * 100_000, '{"a": 0}', '{"a": -1, "b": 0}', '{"a": 0, "c": 0}']
)
def test_slices_of_the_optimizer_without_their_starts_are_refused(tmp_path, starts):
    path = tmp_path / "optimizer-00000-of-00001.safetensors"
    save_file({name: torch.zeros(2) for name in "ab"}, path, metadata=starts and {"starts": starts})
    with pytest.raises(DamagedFile, match=r"is damaged .*; delete its folder to resume from the"):
        checkpoint.open_slices(path)
    save_file({"a": torch.zeros(2)}, path, metadata={"starts": '{"a": 0}'})
    assert checkpoint.open_slices(path)[1] == {"a": 0}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("progress.json", {"step": 3}),
        ("progress.json", {"step": 1, "seconds": -1.0}),
        ("progress.json", {"step": 1, "val_rows": {}}),
        ("data-00000-of-00001.json", {"format": 1}),
        ("data-00000-of-00001.json", {"format": 1, "step": 1, "lanes": {"0": {"next": -1}}}),
    ],
)
def test_a_checkpoint_whose_records_are_none_is_refused_in_a_line(tmp_path, name, content):
    """Their hashes fit: whoever changed them wrote the manifest anew."""
    folder = whole(tmp_path / "step_000001")
    write_json(folder / "data-00000-of-00001.json", {"format": 1, "step": 1})
    write_json(folder / name, content)
    files = {
        path.name: checkpoint.entry_of(path) for path in folder.iterdir() if path.name != "manifest.json"
    }
    write_json(folder / "manifest.json", {"format": 1, "step": 1, "files": files})
    assert checkpoint.is_whole(folder)
    with pytest.raises(DamagedFile, match="; delete its folder to resume from the previous checkpoint"):
        checkpoint.Checkpoint(folder).positions()


def test_checkpoints_that_may_not_be_listed_are_no_reason_to_begin_anew(tmp_path):
    whole(tmp_path / "step_000001")
    tmp_path.chmod(0o300)
    with pytest.raises(ValueError, match=r"cannot be read \(Permission denied\); make it readable"):
        without_privileges(lambda: checkpoint.latest(tmp_path))
    assert checkpoint.by_step(tmp_path / "none") == []


def make(folder) -> Checkpoints:
    return Checkpoints(
        folder, save_every=1, keep=2, clock=Clock(), progress=lambda: {"step": 3}, on_divergence="stop"
    )


def test_a_rented_machine_saves_by_time_too(tmp_path):
    callback = make(tmp_path)
    callback.save_every, callback.save_seconds, callback._saved = 1_000, 600.0, time.monotonic() - 599
    assert [callback._due(999), callback._due(1_000)] == [False, True]
    callback._saved -= 2
    assert callback._due(999)


def test_the_newest_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "write", lambda *_: whole(tmp_path / "step_1000000"))
    for step in ("999000", "000500", "998000"):
        whole(tmp_path / f"step_{step}")
    make(tmp_path).on_train_batch_end(trainer_of(1), StandInPhase(num_steps=9), None, None, 0)
    assert {folder.name for folder in tmp_path.iterdir()} == {"step_999000", "step_1000000"}


def test_a_step_that_diverged_is_not_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "write", lambda *_: pytest.fail("it was saved"))
    phase = StandInPhase(num_steps=9, loss=float("nan"))
    with pytest.raises(ValueError, match="Lower the learning rates in another run"):
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
    with pytest.raises(
        OSError, match=r"could not write the checkpoint .*No space left on device.*same command"
    ):
        checkpoint.write(tmp_path, phase, {"step": 7})
    assert not list(tmp_path.iterdir())  # the half of it took the room that the next attempt needs
