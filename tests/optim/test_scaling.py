"""The recipes' derivations against nanochat's published plans per depth."""

import pytest

from nanolit.optim.scaling import (
    batch_from_horizon,
    lr_factor_from_batch,
    lr_factor_from_width,
    steps_from_horizon,
    weight_decay_factor,
)


def modern_counted(depth: int) -> int:
    """Block matrices (value-embedding gates of 12 * heads on every other layer included) and unembedding."""
    width, heads = 64 * depth, depth // 2
    return 12 * depth * width**2 + (depth // 2) * 12 * heads + 32_768 * width


def classic_counted(depth: int) -> int:
    width = 64 * depth
    return 12 * depth * width**2 + 2 * 65_536 * width


D12 = modern_counted(12)

# depth, log2 batch, steps, weight decay (0.28 * factor), LR factor: nanochat of July 2026 at ratio 12
MODERN = [
    (4, 18, 528, 1.890, 0.707),
    (6, 18, 1_062, 0.940, 0.707),
    (8, 18, 1_920, 0.520, 0.707),
    (10, 19, 1_605, 0.440, 1.0),
    (12, 19, 2_520, 0.280, 1.0),
    (16, 19, 5_376, 0.131, 1.0),
    (20, 20, 4_980, 0.100, 1.414),
    (24, 20, 8_352, 0.060, 1.414),
    (26, 20, 10_510, 0.047, 1.414),
    (32, 21, 9_600, 0.037, 2.0),
]
# depth, steps: nanochat of October 2025, ratio 20 on all parameters, 524,288 tokens per step
CLASSIC = [(4, 1_400), (12, 7_080), (20, 21_400), (24, 33_600), (26, 41_275), (32, 71_680)]


def steps(*, batch: int, counted: int, ratio: float, flops: float | None = None) -> int:
    return steps_from_horizon(
        batch=batch,
        target_flops=flops,
        target_ratio=ratio,
        flops_per_token=7.597e8,
        counted_parameters=counted,
    )


@pytest.mark.parametrize(("depth", "log_batch", "num_steps", "weight_decay", "lr"), MODERN)
def test_modern_plan_equals_nanochat(
    depth: int, log_batch: int, num_steps: int, weight_decay: float, lr: float
):
    counted = modern_counted(depth)
    batch = batch_from_horizon(12 * counted, 12 * D12)
    assert batch == 2**log_batch
    assert steps(batch=batch, counted=counted, ratio=12) == num_steps
    decay = 0.28 * weight_decay_factor(batch, tokens=12 * counted, reference_tokens=12 * D12)
    assert round(decay, 3) == weight_decay
    assert round(lr_factor_from_batch(batch), 3) == lr


def test_modern_d24_at_ratio_8_takes_5568_steps():
    counted = modern_counted(24)
    assert steps(batch=batch_from_horizon(8 * counted, 8 * D12), counted=counted, ratio=8) == 5_568


@pytest.mark.parametrize(("depth", "num_steps"), CLASSIC)
def test_classic_plan_equals_nanochat(depth: int, num_steps: int):
    assert steps(batch=524_288, counted=classic_counted(depth), ratio=20) == num_steps


def test_rates_of_adamw_matrices_fall_with_the_root_of_the_width():
    assert lr_factor_from_width(768) == 1
    assert lr_factor_from_width(1280) == pytest.approx((1280 / 768) ** -0.5)


def test_flops_win_over_the_ratio():
    assert steps(batch=2**19, counted=D12, ratio=12, flops=1e18) == round(1e18 / (7.597e8 * 2**19))
    assert steps(batch=2**19, counted=D12, ratio=12) == 2_520


def test_a_horizon_below_one_step_is_refused():
    with pytest.raises(
        ValueError, match=r"target_ratio=0.001 is less than one optimizer step of 524,288 tokens; raise"
    ):
        steps(batch=2**19, counted=D12, ratio=0.001)


@pytest.mark.parametrize("bad", [0, -5.0, float("inf")])
def test_a_horizon_that_is_no_positive_number_is_refused(bad: float):
    with pytest.raises(ValueError, match=f"target_ratio={bad} must be a positive number"):
        steps(batch=2**19, counted=D12, ratio=bad)
    with pytest.raises(ValueError, match=f"target_flops={bad} must be a positive number"):
        steps(batch=2**19, counted=D12, ratio=12, flops=bad)
