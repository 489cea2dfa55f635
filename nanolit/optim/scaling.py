"""From a model's size to batch, horizon, learning-rate factors and weight decay: the recipes' scaling rules.

Pure arithmetic on plain counts; nothing here knows a model. Sizes in tokens and parameters. The idea is to
tune one small model, d12, and carry its settings to any depth. "nanochat, <date>" is in its dev/LOG.md.
Source: https://github.com/karpathy/nanochat (2025: fixed batch; 2026: batch and decay follow the horizon).
"""

import math
from typing import Literal, NotRequired

from typing_extensions import TypedDict

# Tokens per optimizer step that the recipes' rates were tuned at, and the best found for d12 (nanochat,
# 2026-02-05)
REFERENCE_BATCH = 2**19
# Width (d12) that the AdamW matrices' rates were tuned at
REFERENCE_WIDTH = 768
# The best batch grows with the tokens of the run, not with the model ("Power Lines",
# https://arxiv.org/abs/2505.13738): ten times the tokens want 2.4 times the batch. nanochat had found 2^20
# best for d26, which the rule gives (2026-02-05). It is of compute-optimal runs: a shorter one may gain from
# a smaller batch (nanochat PR 516: 2^19 at d26, 9.6% sooner).
BATCH_EXPONENT = 0.383
MOST_STEPS = 10**12


class GroupSettings(TypedDict):
    """The optimizer's settings for the parameters of one role; rates are final, already scaled."""

    kind: Literal["muon", "adamw"]
    lr: float
    betas: NotRequired[list[float]]  # these two of AdamW alone
    eps: NotRequired[float]
    weight_decay: float


# Rates, betas and decays are in the recipes. Two scalars per layer need very different rates: s, which adds,
# 0.5; r, which multiplies and so compounds over layers, a hundredth of that (nanochat, 2026-01-11). Betas:
# (0.8, 0.95) is nanochat's everywhere in classic. modern averages the squares of embeddings' gradients for
# longer, 0.995 (effect not published). x₀ scalars have a first beta of 0.96: over 0.8 it won 0.0007 bits per
# byte at d20, and 0.98 lost 0.0033. 320 runs to tune the rest found gains at d12 that hurt at d20 (nanochat,
# 2026-01-19): don't tune on small models alone.
REQUIRED = {
    "muon": {"kind", "lr", "weight_decay"},
    "adamw": {"kind", "lr", "betas", "eps", "weight_decay"},
}


def check_settings(role: str, chosen: GroupSettings) -> None:
    """Raise ValueError for settings of the other kind, and for numbers out of range."""
    needed, kind = REQUIRED[chosen["kind"]], chosen["kind"]
    if differing := sorted(needed ^ chosen.keys()):
        raise ValueError(
            f"groups.{role} ({kind}) needs {', '.join(sorted(needed))} and nothing else; fix "
            f"{', '.join(differing)}"
        )
    for key in ("lr", "weight_decay", "eps"):
        value = chosen.get(key, 0.0)
        if not 0 <= value < math.inf:
            raise ValueError(f"groups.{role}.{key}={value} is out of range; give 0 or more")
    betas = chosen.get("betas", [0, 0])
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(
            f"groups.{role}.betas={list(betas)} must be two numbers from 0 up to, but not including, 1"
        )


def batch_from_horizon(tokens: float, reference_tokens: float) -> int:
    """Return tokens per step: 2^19 at the reference horizon, growing with tokens^0.383, as a power of two.

    `tokens`, `reference_tokens`: ratio * counted parameters of this model and of d12, so the ratio cancels.
    """
    best = REFERENCE_BATCH * (tokens / reference_tokens) ** BATCH_EXPONENT
    # A power of two, so that rows × context × ranks divide it; the optimum is flat enough not to mind
    return 2 ** round(math.log2(best))


def lr_factor_from_batch(batch: int) -> float:
    """Return the square-root scaling of learning rates with the batch: 1 at 2^19 tokens."""
    # The noise of a mean of B samples falls with √B, and Adam and Muon divide by the size of the gradient, so
    # steps may grow as much (https://arxiv.org/abs/2205.10287). As nanochat, for Muon too.
    return math.sqrt(batch / REFERENCE_BATCH)


def lr_factor_from_width(width: int) -> float:
    """Return (width / 768)^-0.5, for the AdamW matrices only (embeddings and unembedding)."""
    # nanochat's since 2025; no sweep of the exponent is published. In September 2026 a sweep at d20 gave it
    # 1/width for the head and no scaling for embeddings (437943b), as muP would; `modern` keeps July's. Muon
    # needs none: its updates have singular values of about 1 at any width.
    return (width / REFERENCE_WIDTH) ** -0.5


def weight_decay_factor(batch: int, *, tokens: float, reference_tokens: float) -> float:
    """Return the factor that keeps the decay's time scale: sqrt(batch / 2^19) * reference_tokens / tokens.

    Source: "Power Lines", https://arxiv.org/abs/2505.13738, as nanochat applies it to Muon's decay. At tiny
    depths it reaches far beyond where it was tuned (decay 1.89 at d4): plans print it, and it can be set.
    """
    # Decay forgets old weights over 1 / (rate × decay) steps; that time should be a fixed part of the run.
    # nanochat's sweep had found about 0.40 at d8, 0.22 at d12, 0.10 at d16 and 0.08 at d20 (2026-01-10); from
    # its later 0.28 at d12 this rule gives 0.52, 0.28, 0.13 and 0.10.
    return lr_factor_from_batch(batch) * reference_tokens / tokens


def steps_from_horizon(
    *,
    batch: int,
    target_flops: float | None,
    target_ratio: float,
    flops_per_token: float,
    counted_parameters: int,
) -> int:
    """Return the steps of the base stage; target_flops wins over target_ratio.

    target_ratio is tokens per counted parameter: all of them in classic; block matrices and unembedding in
    modern. Steps are rounded for target_flops and rounded down for target_ratio, as nanochat does.
    """
    # If matrices and head count, the best ratio hardly moves from 1e18 to 1e19 FLOPs, 11.2 to 10.3; if every
    # parameter counts, it drifts from 3.0 to 4.0 (nanochat, 2026-01-27; its default has been 12 since March
    # 2026). classic has Chinchilla's 20 (https://arxiv.org/abs/2203.15556).
    name = "target_ratio" if target_flops is None else "target_flops"
    wish = target_ratio if target_flops is None else target_flops
    if not 0 < wish < math.inf:
        raise ValueError(f"{name}={wish} must be a positive number; give one above 0")
    if target_flops is None:
        steps = int(target_ratio * counted_parameters) // batch
    else:
        steps = round(target_flops / (flops_per_token * batch))
    if steps > MOST_STEPS:
        raise ValueError(f"{name}={wish:g} is {steps:.1e} steps; give a lower one")
    if steps < 1:
        raise ValueError(
            f"{name}={wish:g} is less than one optimizer step of {batch:,} tokens; "
            "raise it, lower total_batch, or set max_steps"
        )
    return steps
