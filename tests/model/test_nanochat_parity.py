"""Both generations of nanochat, read through the importer, say what the original programs said.

Oracle: numbers that the originals wrote (tests/fixtures/README.md).
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nanolit.model.accounting import flops_per_token, parameter_counts
from nanolit.model.nanochat import build_model, find_checkpoint, read_checkpoint

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.fixture(params=["nanochat_2025", "nanochat_2026"])
def folder(request: pytest.FixtureRequest) -> Path:
    return FIXTURES / request.param


def read_model(folder: Path, when: str):
    """The tiny model before ("init") or after ("final") its 20 steps."""
    model_file, meta_file = find_checkpoint(folder, source="base", tag=None, step=None)
    state = load_file(folder / "init.safetensors") if when == "init" else read_checkpoint(model_file)
    model_config = json.loads(meta_file.read_text())["model_config"]
    return build_model(state, model_config, origin=str(folder))


@pytest.mark.parametrize("when", ["init", "final"])
def test_logits_equal_nanochats(folder, when):
    model, _ = read_model(folder, when)
    with np.load(folder / "golden.npz") as golden, torch.no_grad():
        logits_BTV = model(torch.from_numpy(golden["batches_x"][0]))[:, -8:]
        assert np.abs(logits_BTV.numpy() - golden[f"logits_{when}_last"]).max() <= 1e-4


def test_loss_before_training_equals_nanochats(folder):
    model, _ = read_model(folder, "init")
    with np.load(folder / "golden.npz") as golden, torch.no_grad():
        loss = model(torch.from_numpy(golden["batches_x"][0]), torch.from_numpy(golden["batches_y"][0]))
        assert loss.item() == pytest.approx(golden["losses"][0], abs=1e-5)


def test_counts_and_flops_equal_nanochats(folder):
    model, recipe = read_model(folder, "init")
    about = json.loads((folder / "about.json").read_text())
    counts = parameter_counts(model.hyperparameters)
    theirs = about["counts"]
    assert recipe == ("classic" if folder.name == "nanochat_2025" else "modern")
    assert flops_per_token(model.hyperparameters) == about["flops_per_token"]
    assert sum(counts.values()) == theirs["total"]
    if recipe == "modern":
        scalars = counts["residual_scalar"] + counts["x0_scalar"] + counts["smear"]
        ours = [counts[role] for role in ("embedding", "value_embedding", "unembedding", "matrix")]
        parts = ("wte", "value_embeds", "lm_head", "transformer_matrices", "scalars")
        assert [*ours, scalars] == [theirs[part] for part in parts]
