"""What a step learns and at which rates, and what torch's cache of compiled models knows them by."""

from copy import deepcopy

import pytest
import torch
import torch.compiler.config as compiler

from nanolit.data.stream import Step
from nanolit.model.gpt import GPT
from nanolit.optim.schedule import Schedule
from nanolit.phases import core
from nanolit.phases.base import Base

MUON = {"kind": "muon", "lr": 0.02, "weight_decay": 0.1}
ADAMW = {"kind": "adamw", "lr": 0.3, "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.0}
OPTIMIZER = {
    "orthogonalization": "polar_express",
    "equilibrate_rows": True,
    "normalize_update": True,
    "variance_reduction": True,
    "cautious": True,
}


def make_phase(gpt: GPT) -> Base:
    """A copy of the model, and a schedule that has other values at every step of four."""
    schedule = Schedule(
        warmup_steps=2,
        warmdown_fraction=0.5,
        final_lr_fraction=0.0,
        momentum_start=0.85,
        momentum_peak=0.95,
        momentum_warmup_steps=4,
        momentum_final=None,
        weight_decay="linear",
    )
    groups = {role: MUON if role == "matrix" else ADAMW for role in gpt.parameter_roles().values()}
    phase = Base(deepcopy(gpt), groups=groups, optimizer=OPTIMIZER, schedule=schedule, num_steps=4)
    phase.configure_optimizers()
    return phase


def test_a_step_is_the_mean_over_its_learned_tokens_in_any_micro_batches(tiny_model: GPT):
    """Oracle: all rows at once. The first micro-batch has few learned tokens, the second none."""
    ids_BT = torch.randint(256, (6, 9), generator=torch.Generator().manual_seed(0))
    inputs_BT, targets_BT = ids_BT[:, :-1], ids_BT[:, 1:].clone()
    targets_BT[0, 2:] = targets_BT[1:4] = -1
    whole, phase = deepcopy(tiny_model), make_phase(tiny_model)
    expected = whole(inputs_BT, targets_BT)
    expected.backward()
    step = Step(
        micro_batches=list(zip(inputs_BT.split(2), targets_BT.split(2), strict=True)),
        num_tokens=int((targets_BT != -1).sum()),
        position={},
        epoch=0.0,
        cropped_fraction=0.0,
    )
    last = phase.training_step(step, 0)
    assert last is not None
    last.backward()
    assert not phase.step_loss.requires_grad
    torch.testing.assert_close(phase.step_loss, expected.detach())
    for ours, theirs in zip(phase.gpt.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_step_has_the_rates_of_the_schedule_after_the_steps_before_it(tiny_model: GPT):
    phase = make_phase(tiny_model)
    for phase.finished_steps in range(4):
        phase.set_multipliers()
        now = phase.schedule.at(phase.finished_steps, 4)
        for group in phase.optimizer.param_groups:
            assert group["lr"] == pytest.approx(group["initial_lr"] * now.lr)
            if group["kind"] == "muon":
                assert group["momentum"] == now.momentum
                assert group["weight_decay"] == pytest.approx(0.1 * now.weight_decay)


def test_another_source_of_a_kernel_or_the_model_is_another_key(tmp_path, monkeypatch):
    """The gradients of our operators are in no graph: an edited one must not be taken from the cache."""
    monkeypatch.setattr(core, "PACKAGE", tmp_path)
    sources = [tmp_path / "kernels" / "loss.py", tmp_path / "model" / "gpt.py"]
    for source in sources:
        source.parent.mkdir()
        source.write_text("one")
    keys = set()
    with compiler.patch(cache_key_tag=""):  # monkeypatch would delete the setting afterwards
        for edited in (None, *sources):
            if edited:
                edited.write_text("other")
            core.compile_gpt(lambda ids: ids)  # pyright: ignore[reportArgumentType]
            keys.add(compiler.cache_key_tag)
    assert len(keys) == 3
