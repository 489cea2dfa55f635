"""What a stage begins from: the weights of the release before it, moments of that very step alone."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dev.damages import edit, fit
from nanolit.callbacks.checkpoint import Checkpoint
from nanolit.config.compose import compose
from nanolit.config.stored import read_job
from nanolit.jobs.inputs import origin
from nanolit.jobs.parts import check_same_run, load_gpt, settings_of
from nanolit.planning.plans import fresh_plan

FORMAT_1 = Path(__file__).parent.parent / "fixtures" / "run_format_1"  # its base ended at step 8
STAGE = Path("runs", "tiny", "base")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FORMAT_1, tmp_path / "root"))


def copy_as_last(checkpoints: Path) -> None:
    """Make the checkpoint of step 4 that of the release's step."""
    last = Path(shutil.copytree(checkpoints / "step_000004", checkpoints / "step_000008"))
    edit(last / "progress.json", "step", 8)
    fit(last / "progress.json")
    edit(last / "manifest.json", "step", 8)


def begin(root: Path):
    """The model and the optimizer's state of a base that goes on from the finished one."""
    typed = read_job(root / STAGE / "job.yaml")["overrides"]
    words = [word for word in typed if not word.startswith(("root=", "run="))]
    job = compose([*words, f"root={root}", "run=next", "start_from=tiny/base"])
    plan: Any = fresh_plan(job, "base")
    return load_gpt(job, plan, torch.device("cpu"), resumed=None, begins=origin(job, "base"))


def test_a_stage_begins_with_the_weights_of_the_release(root, capsys):
    """The checkpoint beside it is of step 4: an older model, whose moments are not taken either."""
    gpt, restore = begin(root)
    released = load_file(root / STAGE / "release" / "model.safetensors")
    assert all(torch.equal(parameter, released[name]) for name, parameter in gpt.named_parameters())
    assert restore is None
    assert "without the optimizer state (" in (said := capsys.readouterr().out)
    assert "no complete checkpoint of step 8" in said


def test_the_moments_are_of_the_step_of_the_release(root, capsys):
    checkpoints = root / STAGE / "checkpoints"
    copy_as_last(checkpoints)
    _, restore = begin(root)
    assert restore is not None
    assert "without" not in capsys.readouterr().out


def test_a_release_of_another_run_is_named(root, capsys):
    begin(root)
    assert "says that it is " not in capsys.readouterr().out
    edit(root / STAGE / "release" / "meta.json", "run", "other\x1b]0;title\x07")
    begin(root)
    said = capsys.readouterr().out
    assert "the release in tiny/base says that it is other" in said
    assert "\x1b" not in said


def test_a_damaged_checkpoint_of_that_step_is_not_replaced_by_the_one_before(root, capsys):
    checkpoints = root / STAGE / "checkpoints"
    copy_as_last(checkpoints)
    with (checkpoints / "step_000008" / "model.safetensors").open("ab") as file:
        file.write(b"x")
    _, restore = begin(root)
    assert restore is None
    assert "no complete checkpoint of step 8" in capsys.readouterr().out


def test_a_checkpoint_of_another_run_is_refused_and_one_of_an_older_version_is_not(root):
    job = read_job(root / STAGE / "job.yaml")
    folder = root / STAGE / "checkpoints" / "step_000004"
    settings = settings_of(
        job, fresh_plan(compose(["phase=base", "data=sample", f"root={root}"]), "base"), None
    )
    check_same_run(Checkpoint(folder), settings)  # it stored none
    edit(folder / "progress.json", "settings", settings)
    fit(folder / "progress.json")
    check_same_run(Checkpoint(folder), settings)
    check_same_run(Checkpoint(folder), {**settings, "newer": 1})
    with pytest.raises(
        ValueError, match=r"step_000004 belongs to another run: seed was 1, is 2; move it away"
    ):
        check_same_run(Checkpoint(folder), {**settings, "seed": 2})


def test_a_checkpoint_of_sft_may_name_any_tokenizer(root):
    """Plans of sft once named the tokenizer of the job's corpus, though its weights bring their own."""
    job = compose(["phase=sft", "model.depth=2", f"root={root}", "start_from=tiny"])
    settings = settings_of(job, fresh_plan(job, "sft"), origin(job, "sft"))
    folder = root / STAGE / "checkpoints" / "step_000004"
    edit(folder / "progress.json", "settings", {**settings, "plan.tokenizer": "climbmix-300-00000000"})
    fit(folder / "progress.json")
    check_same_run(Checkpoint(folder), settings)
