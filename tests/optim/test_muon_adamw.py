"""The optimizer on one device: closures, multipliers, clipping, state that comes and goes."""

import pytest
import torch
from torch import Tensor

from nanolit.optim.muon_adamw import MuonAdamW, build_groups

FLAGS = {
    "orthogonalization": "polar_express",
    "equilibrate_rows": True,
    "normalize_update": True,
    "variance_reduction": True,
    "cautious": True,
}
ADAMW = {"kind": "adamw", "lr": 0.3, "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.5}
SETTINGS = {"matrix": {"kind": "muon", "lr": 0.02, "weight_decay": 0.1}, "vector": ADAMW}
ROLES = {"a": "matrix", "b": "matrix", "v": "vector"}


def parameters() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (8, 6), "b": (8, 6), "v": (5,)}
    return {name: torch.nn.Parameter(torch.randn(s, generator=generator)) for name, s in shapes.items()}


def build(params: dict[str, Tensor], **changes) -> MuonAdamW:
    return MuonAdamW(build_groups(params.items(), ROLES, SETTINGS), **(FLAGS | changes))


def loss_of(params: dict[str, Tensor]) -> Tensor:
    return sum(((param - 1) ** 4).sum() for param in params.values())  # type: ignore[return-value]


def train(params: dict[str, Tensor], optimizer: MuonAdamW, num_steps: int) -> None:
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss_of(params).backward()
        optimizer.step()


def test_the_closure_runs_first_with_gradients_and_gives_the_loss():
    params = parameters()
    optimizer = build(params)
    before = loss_of(params).item()

    def closure() -> Tensor:
        loss = loss_of(params)
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert loss is not None
    assert loss.item() == before
    assert loss_of(params) < before


def test_multipliers_scale_rates_and_muons_decay_and_set_its_momentum():
    optimizer = build(parameters())
    optimizer.set_multipliers(lr=0.5, momentum=0.9, weight_decay=0.25)
    optimizer.set_multipliers(lr=0.1, momentum=0.8, weight_decay=0.5)
    muon, adamw = optimizer.param_groups
    assert (muon["lr"], muon["momentum"], muon["weight_decay"]) == pytest.approx((0.002, 0.8, 0.05))
    assert (adamw["lr"], adamw["weight_decay"]) == pytest.approx((0.03, 0.5))


def test_clipping_equals_torchs_global_norm():
    """Oracle: torch.nn.utils.clip_grad_norm_ before an optimizer that doesn't clip."""
    ours, theirs = parameters(), parameters()
    clipping, plain = build(ours, clip_norm=1.0), build(theirs)
    loss_of(ours).backward()
    loss_of(theirs).backward()
    norm = torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
    clipping.step()
    plain.step()
    assert clipping.gradient_norm is not None
    assert norm > 1
    torch.testing.assert_close(clipping.gradient_norm, norm)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name])


def test_small_gradients_are_not_scaled_up():
    params = parameters()
    optimizer = build(params, clip_norm=1e6)
    loss_of(params).backward()
    before = params["a"].grad.clone()  # type: ignore[union-attr]
    optimizer.step()
    assert torch.equal(params["a"].grad, before)  # type: ignore[arg-type]


def test_a_parameter_outside_the_loss_counts_as_zero_gradient():
    ours, theirs = parameters(), parameters()
    theirs["b"].grad = torch.zeros_like(theirs["b"])
    for params in (ours, theirs):
        optimizer = build(params)
        (params["a"].square().sum() + params["v"].square().sum()).backward()
        optimizer.step()
    for name in ours:
        assert torch.equal(ours[name], theirs[name])


def test_loaded_state_continues_bit_for_bit():
    """Oracle: six steps without a break."""
    whole, broken = parameters(), parameters()
    train(whole, build(whole), 6)
    first = build(broken)
    train(broken, first, 3)
    saved = {key: piece.tensor.clone() for key, piece in first.state_slices().items()}
    second = build(broken)
    second.load_state_slices(lambda key, start, stop: saved[key][start:stop])
    train(broken, second, 3)
    for name in whole:
        assert torch.equal(whole[name], broken[name])


def test_state_that_was_not_saved_starts_fresh():
    params = parameters()
    optimizer = build(params)
    train(params, optimizer, 3)
    optimizer.load_state_slices(lambda key, start, stop: None)
    assert all(not piece.tensor.any() for piece in optimizer.state_slices().values())


def test_state_of_another_shape_is_refused():
    optimizer = build(parameters())
    with pytest.raises(ValueError, match=r"'a/momentum' has shape \(3,\), this model needs \(48,\); load a"):
        optimizer.load_state_slices(lambda key, start, stop: torch.zeros(3))


def test_torchs_state_dict_is_refused_because_it_would_lose_state():
    optimizer = build(parameters())
    with pytest.raises(ValueError, match=r"save state_slices\(\) of all ranks"):
        optimizer.state_dict()
    with pytest.raises(ValueError, match=r"use load_state_slices\(\)"):
        optimizer.load_state_dict({})


def test_an_impossible_clip_norm_is_refused():
    with pytest.raises(ValueError, match="clip_norm=0 must be above 0; give null for no clipping"):
        build(parameters(), clip_norm=0)
