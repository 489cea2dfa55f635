"""From a model's size to batch, horizon, learning-rate factors and weight decay: the recipes' scaling rules.

Pure arithmetic on plain counts; nothing here knows a model. Sizes in tokens and parameters.
Source: https://github.com/karpathy/nanochat (2025: fixed batch; 2026: batch and decay follow the horizon).
"""

import math

REFERENCE_BATCH = 2**19  # tokens per optimizer step that the recipes' rates were tuned at
REFERENCE_WIDTH = 768  # width (d12) that the AdamW matrices' rates were tuned at
BATCH_EXPONENT = 0.383  # best batch grows with tokens^0.383: "Power Lines", https://arxiv.org/abs/2505.13738


def batch_from_horizon(tokens: float, reference_tokens: float) -> int:
    """Tokens per step: 2^19 at the reference horizon, growing with tokens^0.383, as a power of two.

    `tokens`, `reference_tokens`: ratio * counted parameters of this model and of d12, so the ratio cancels.
    """
    _require_positive("tokens", tokens)
    _require_positive("reference_tokens", reference_tokens)
    best = REFERENCE_BATCH * (tokens / reference_tokens) ** BATCH_EXPONENT
    return 2 ** round(math.log2(best))


def lr_factor_from_batch(batch: int) -> float:
    """Square-root scaling of learning rates with the batch: 1 at 2^19 tokens."""
    _require_positive("batch", batch)
    return math.sqrt(batch / REFERENCE_BATCH)


def lr_factor_from_width(width: int) -> float:
    """(width / 768)^-0.5, for the AdamW matrices only (embeddings and unembedding)."""
    _require_positive("width", width)
    return (width / REFERENCE_WIDTH) ** -0.5


def weight_decay_factor(batch: int, *, tokens: float, reference_tokens: float) -> float:
    """Keeps the decay's time scale in epochs of the horizon: sqrt(batch / 2^19) * reference_tokens / tokens.

    Source: "Power Lines", https://arxiv.org/abs/2505.13738, as nanochat applies it to Muon's decay. At tiny
    depths it reaches far beyond where it was tuned (decay 1.89 at d4): plans print it, and it can be set.
    """
    _require_positive("tokens", tokens)
    _require_positive("reference_tokens", reference_tokens)
    return lr_factor_from_batch(batch) * reference_tokens / tokens


def steps_from_horizon(
    *,
    batch: int,
    max_steps: int | None,
    target_flops: float | None,
    target_ratio: float | None,
    flops_per_token: float,
    counted_parameters: int,
) -> int:
    """Optimizer steps of the base stage: max_steps wins over target_flops, which wins over target_ratio.

    target_ratio is tokens per counted parameter: all of them in classic; block matrices and unembedding in
    modern. Steps are rounded for target_flops and rounded down for target_ratio, as nanochat does.
    """
    _require_positive("batch", batch)
    if max_steps is not None:
        _require_positive("max_steps", max_steps)
        return max_steps
    if target_flops is not None:
        _require_positive("target_flops", target_flops)
        _require_positive("flops_per_token", flops_per_token)
        steps, wish = round(target_flops / (flops_per_token * batch)), f"target_flops={target_flops:g}"
    elif target_ratio is not None:
        _require_positive("target_ratio", target_ratio)
        _require_positive("counted_parameters", counted_parameters)
        steps, wish = int(target_ratio * counted_parameters) // batch, f"target_ratio={target_ratio:g}"
    else:
        raise ValueError("no horizon: max_steps, target_flops and target_ratio are all null; set one of them")
    if steps < 1:
        raise ValueError(
            f"{wish} is less than one optimizer step of {batch:,} tokens; "
            "raise it, lower total_batch, or set max_steps"
        )
    return steps


def _require_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value} must be a positive number; give one above 0")
