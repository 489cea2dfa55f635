"""Named tensors and their roles to the optimizer's parameter groups.

Muon takes the blocks' matrices. Embeddings, the head and all scalars take AdamW, as Muon's author advises
(https://kellerjordan.github.io/posts/muon/).
"""

import math
from collections.abc import Iterable

from torch import Tensor

# Rates, betas and decays are in the recipes. Two scalars per layer need very different rates: s, which adds,
# 0.5; r, which multiplies and so compounds over layers, a hundredth of that (nanochat, 2026-01-11). Betas:
# (0.8, 0.95) is nanochat's everywhere in classic. modern averages the squares of embeddings' gradients for
# longer, 0.995 (effect not published). x₀ scalars have a first beta of 0.96: over 0.8 it won 0.0007 bits per
# byte at d20, and 0.98 lost 0.0033. 320 runs to tune the rest found gains at d12 that hurt at d20 (nanochat,
# 2026-01-19): don't tune on small models alone.
REQUIRED = {
    "muon": ("lr", "weight_decay"),
    "adamw": ("lr", "betas", "eps", "weight_decay"),
}


def build_groups(
    named_parameters: Iterable[tuple[str, Tensor]], roles: dict[str, str], settings: dict[str, dict]
) -> list[dict]:
    """Return one group per role for AdamW, one per role and shape for Muon, in order of first appearance.

    settings: role -> {kind: "muon" | "adamw", lr, weight_decay, and for AdamW betas and eps}; rates are
    final, already scaled. Every group also holds names, role, initial_lr, initial_weight_decay.
    Parameters that don't require gradients are left out. Raises ValueError if roles and settings don't fit.
    """
    groups: dict[tuple, dict] = {}
    for name, param in named_parameters:
        if not param.requires_grad:
            continue
        role = _role(name, roles)
        chosen = _settings(role, name, settings)
        key: tuple = (role,)
        if chosen["kind"] == "muon":
            _check_matrix(name, param)
            # One shape a group: its matrices are stacked and orthogonalised by batched products
            key = (role, tuple(param.shape))
        group = groups.setdefault(key, _empty_group(role, chosen))
        group["params"].append(param)
        group["names"].append(name)
    if not groups:
        raise ValueError("no parameter to optimize: none requires gradients; unfreeze at least one")
    return list(groups.values())


def _empty_group(role: str, chosen: dict) -> dict:
    # The schedule multiplies the initial values, so that no rounding adds up and a resumed run needs no state
    initial = {"initial_lr": chosen["lr"], "initial_weight_decay": chosen["weight_decay"]}
    return {"params": [], "names": [], "role": role} | chosen | initial


def _role(name: str, roles: dict[str, str]) -> str:
    if name not in roles:
        raise ValueError(f"parameter {name!r} has no role; roles are given for {_list(roles)}; name its role")
    return roles[name]


def _settings(role: str, name: str, settings: dict[str, dict]) -> dict:
    if role not in settings:
        raise ValueError(
            f"role {role!r} of parameter {name!r} has no optimizer settings; there are settings for "
            f"{_list(settings)}; add groups.{role} to the recipe"
        )
    chosen = dict(settings[role])
    kind = chosen.get("kind")
    if kind not in REQUIRED:
        raise ValueError(f"groups.{role}.kind={kind!r} is not one of {_list(REQUIRED)}; choose one of them")
    allowed = ("kind", *REQUIRED[kind])
    if missing := [key for key in allowed if key not in chosen]:
        raise ValueError(f"groups.{role} ({kind}) lacks {_list(missing)}; it needs {_list(allowed)}")
    if unknown := [key for key in chosen if key not in allowed]:
        raise ValueError(f"groups.{role} ({kind}) has unknown {_list(unknown)}; it takes {_list(allowed)}")
    _check_values(role, chosen)
    return chosen


def _check_values(role: str, chosen: dict) -> None:
    for key in ("lr", "weight_decay", "eps"):
        if key in chosen and not 0 <= chosen[key] < math.inf:
            raise ValueError(
                f"groups.{role}.{key}={chosen[key]} is out of range; give a number of at least 0"
            )
    betas = chosen.get("betas", (0, 0))
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(
            f"groups.{role}.betas={list(betas)} must be two numbers from 0 to below 1; give such a pair"
        )


def _check_matrix(name: str, param: Tensor) -> None:
    if param.ndim != 2:
        raise ValueError(
            f"Muon orthogonalises matrices, but parameter {name!r} has shape {tuple(param.shape)}; "
            "give its role kind adamw"
        )


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))
