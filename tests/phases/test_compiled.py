"""What training compiles is the model that was written: gradients, loss and an update against eager ones.

Models are in float32 on the CPU, and every weight is random: at initialization many true gradients are zero,
which would hide a wrong one. depth 3: at depth 2 backout only scales what the last norm normalizes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import Tensor
from torch._dynamo.utils import counters

from nanolit.data.stream import Step
from nanolit.model.gpt import GPT, GPTConfig
from nanolit.optim.schedule import Schedule
from nanolit.phases.base import Base
from nanolit.phases.core import compile_gpt
from tests.conftest import CLASSIC, MODERN

RECIPES = {"classic": CLASSIC, "modern": MODERN}
MUON = {"kind": "muon", "lr": 0.02, "weight_decay": 0.1}
ADAMW = {"kind": "adamw", "lr": 0.3, "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.01}
OPTIMIZERS = {
    "classic": {
        "orthogonalization": "newton_schulz",
        "equilibrate_rows": False,
        "normalize_update": False,
        "variance_reduction": False,
        "cautious": False,
        "clip_norm": 1.0,
    },
    "modern": {
        "orthogonalization": "polar_express",
        "equilibrate_rows": True,
        "normalize_update": True,
        "variance_reduction": True,
        "cautious": True,
    },
}
SCHEDULE = Schedule(
    warmup_steps=0,
    warmdown_fraction=0.5,
    final_lr_fraction=0.0,
    momentum_start=0.85,
    momentum_peak=0.95,
    momentum_warmup_steps=4,
    momentum_final=None,
    weight_decay="linear",
)
VOCAB, CONTEXT, WINDOW = 70, 32, 8
# Relative, in Frobenius norm: the largest seen was 5e-6; the lost gradient of a mix was 0.9
MOST = 1e-4


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    """Graphs of other tests count against Dynamo's limit for a function.

    vec_isa_ok spares a new cache folder half a minute of test programs for the CPU's vector units.
    """
    torch._dynamo.reset()
    with torch._inductor.config.patch({"cpp.vec_isa_ok": True}):
        yield


def build_gpt(recipe: str, **changes: Any) -> GPT:
    """Queries share key-value heads in pairs, and all layers but the last of an S pattern see 9 positions."""
    sizes = {"depth": 3, "width": 32, "heads": 4, "kv_heads": 2, "vocab_size": VOCAB, "context": CONTEXT}
    flags = {"softcap": 15.0, "vocab_multiple": 64} | RECIPES[recipe]
    gpt = GPT(GPTConfig(**sizes | flags | changes))
    generator = torch.Generator().manual_seed(0)
    gpt.initialize(generator, dtype=torch.float32)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    if "S" in gpt.hyperparameters["window_pattern"]:
        for block in gpt.blocks[:-1]:
            block.attention.window = WINDOW
    return gpt


def draw_rows(rows: int = 2) -> tuple[Tensor, Tensor]:
    """Ids and targets; nothing is learned from a few positions."""
    ids_BT = torch.randint(VOCAB, (rows, CONTEXT + 1), generator=torch.Generator().manual_seed(1))
    targets_BT = ids_BT[:, 1:].clone()
    targets_BT[:, ::7] = -1
    return ids_BT[:, :-1], targets_BT


def relative_errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    assert all(one.any() for one in expected.values()), "a gradient of zero shows nothing"
    return {name: float((found[name] - one).norm() / one.norm()) for name, one in expected.items()}


def gradients(gpt: GPT, forward, reduction: str) -> dict[str, Tensor]:
    """Of every parameter, and the loss; losses of tokens are weighted unequally."""
    ids_BT, targets_BT = draw_rows()
    loss = forward(ids_BT, targets_BT, reduction=reduction)
    total = (loss * torch.linspace(0.5, 1.5, loss.numel()).view(loss.shape)).sum()
    by_parameter = torch.autograd.grad(total, list(gpt.parameters()))
    return dict(zip([*gpt.parameter_roles(), "loss"], [*by_parameter, total.detach()], strict=True))


def compare_gradients(reduction: str = "sum", *, recipe: str, **changes: Any) -> dict[str, float]:
    gpt = build_gpt(recipe, **changes)
    return relative_errors(gradients(gpt, compile_gpt(gpt), reduction), gradients(gpt, gpt, reduction))


def compare_step(recipe: str) -> dict[str, float]:
    """One optimizer step of two micro-batches: the loss, the gradients added up, and the update.

    Both phases update from the eager gradients: Adam's first step is a sign, which rounding can turn. With
    as many key-value heads as heads there are fewer shapes, each of which compiles for seconds.
    """
    eager, compiled = make_phase(recipe, compile=False), make_phase(recipe, compile=True)
    before = {name: parameter.detach().clone() for name, parameter in eager.gpt.named_parameters()}
    results = []
    for phase in (eager, compiled):
        last = phase.training_step(make_step(), 0)
        assert last is not None
        last.backward()
        results.append({name: one.grad.clone() for name, one in phase.gpt.named_parameters()})
        results[-1]["loss"] = phase.step_loss
    errors = relative_errors(results[1], results[0])
    updates = []
    for phase in (eager, compiled):
        for name, parameter in phase.gpt.named_parameters():
            parameter.grad = results[0][name].clone()
        phase.optimizer.step()
        updates.append({name: one.detach() - before[name] for name, one in phase.gpt.named_parameters()})
    return errors | {f"update of {name}": one for name, one in relative_errors(*updates[::-1]).items()}


def make_phase(recipe: str, *, compile: bool) -> Base:
    gpt = build_gpt(recipe, kv_heads=4)
    groups = {role: MUON if role == "matrix" else ADAMW for role in gpt.parameter_roles().values()}
    optimizer = OPTIMIZERS[recipe] | {"compile": compile}
    phase = Base(gpt, groups=groups, optimizer=optimizer, schedule=SCHEDULE, num_steps=4, compile=compile)
    phase.configure_optimizers()
    return phase


def make_step() -> Step:
    inputs_BT, targets_BT = draw_rows(4)
    return Step(
        micro_batches=list(zip(inputs_BT.split(2), targets_BT.split(2), strict=True)),
        num_tokens=int((targets_BT != -1).sum()),
        position={},
        epoch=0.0,
        cropped_fraction=0.0,
    )


def assert_near(errors: dict[str, float]) -> None:
    wrong = {name: error for name, error in errors.items() if not error <= MOST}
    assert not wrong, f"relative errors above {MOST}: {wrong}"


def compare_step_in_process(recipe: str, cache: Path) -> tuple[dict[str, float], dict[str, int]]:
    """The errors of a fresh process, and what its caches count."""
    script = f"from tests.phases.test_compiled import report; report({recipe!r})"
    # VEC_ISA_OK: see _fresh_compiler
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TORCHINDUCTOR_VEC_ISA_OK": "1"}
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def report(recipe: str) -> None:
    errors = compare_step(recipe)
    print(json.dumps([errors, counters["aot_autograd"] | counters["inductor"]]))


def test_a_modern_step_is_right_compiled_and_taken_from_the_cache(tmp_path: Path):
    """The second process must hit the caches of both the gradients' graphs and the kernels, and miss none."""
    errors, counts = compare_step_in_process("modern", tmp_path)
    assert_near(errors)
    assert counts["autograd_cache_miss"] > 0
    assert counts["fxgraph_cache_miss"] > 0
    errors, counts = compare_step_in_process("modern", tmp_path)
    assert_near(errors)
    assert counts["autograd_cache_hit"] > 0
    assert counts["fxgraph_cache_hit"] > 0
    assert "autograd_cache_miss" not in counts
    assert "fxgraph_cache_miss" not in counts


def test_a_classic_model_has_right_gradients():
    assert_near(compare_gradients(recipe="classic"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"value_embeddings": False},
        {"residual_scalars": False},
        {"smear": False},
        {"backout": False},
        {"window_pattern": "L"},
        {},
        {"kv_heads": 1},
    ],
    ids=str,
)
def test_a_modern_model_with_any_flag_off_has_right_gradients(changes: dict[str, Any]):
    assert_near(compare_gradients(recipe="modern", **changes))


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_reduction_has_right_gradients(recipe: str, reduction: str):
    assert_near(compare_gradients(reduction, recipe=recipe))


@pytest.mark.slow
def test_a_classic_step_is_right():
    assert_near(compare_step("classic"))
