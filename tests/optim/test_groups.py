"""Roles and settings into groups, and one line for everything that doesn't fit."""

import pytest
import torch

from nanolit.optim.muon_adamw import build_groups

MUON = {"kind": "muon", "lr": 0.02, "weight_decay": 0.1}
ADAMW = {"kind": "adamw", "lr": 0.3, "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.0}
SHAPES = {"embedding": (7, 4), "a": (4, 4), "b": (16, 4), "c": (4, 4), "scalars": (3,)}
ROLES = {"embedding": "embedding", "a": "matrix", "b": "matrix", "c": "matrix", "scalars": "scalar"}
SETTINGS = {"matrix": MUON, "embedding": ADAMW, "scalar": ADAMW}


def parameters() -> list[tuple[str, torch.Tensor]]:
    return [(name, torch.nn.Parameter(torch.zeros(shape))) for name, shape in SHAPES.items()]


def test_muon_is_split_by_shape_and_adamw_by_role():
    groups = build_groups(parameters(), ROLES, SETTINGS)
    assert [group["names"] for group in groups] == [["embedding"], ["a", "c"], ["b"], ["scalars"]]
    assert [group["kind"] for group in groups] == ["adamw", "muon", "muon", "adamw"]
    assert all(group["initial_lr"] == group["lr"] for group in groups)
    assert [group["initial_weight_decay"] for group in groups] == [0.0, 0.1, 0.1, 0.0]


def test_frozen_parameters_are_left_out():
    named = parameters()
    named[1][1].requires_grad_(False)
    names = [name for group in build_groups(named, ROLES, SETTINGS) for name in group["names"]]
    assert names == ["embedding", "b", "c", "scalars"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"matrix": {"kind": "muon", "lr": 1}},
            r"groups.matrix \(muon\) needs kind, lr, weight_decay and nothing else; fix weight_decay",
        ),
        (
            {"matrix": MUON | {"eps": 1}},
            r"groups.matrix \(muon\) needs kind, lr, weight_decay and nothing else; fix eps",
        ),
        ({"matrix": MUON | {"lr": -1}}, r"groups.matrix.lr=-1 is out of range"),
        ({"scalar": ADAMW | {"betas": (0.9, 1)}}, r"groups.scalar.betas=\[0.9, 1\] must be two"),
        ({"scalar": MUON}, r"'scalars' has shape \(3,\); give its role kind adamw"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(changes: dict, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        build_groups(parameters(), ROLES, SETTINGS | changes)
    assert "\n" not in str(caught.value)


def test_a_role_without_rates_is_refused():
    with pytest.raises(ValueError, match=r"no rates for matrix \(.*\); groups has "):
        build_groups(parameters(), ROLES, {role: SETTINGS[role] for role in SETTINGS if role != "matrix"})


def test_nothing_to_train_is_refused():
    named = [(name, param.requires_grad_(False)) for name, param in parameters()]
    with pytest.raises(ValueError, match="none requires gradients; unfreeze at least one"):
        build_groups(named, ROLES, SETTINGS)
