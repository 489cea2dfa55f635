"""The sizes that stages share, the batch and the rates, against nanochat's tables."""

import pytest

from tests.planning.base_plans import base_plan

# depth, width, heads, parameters, counted, batch, steps, FLOPs, Muon's weight decay, learning-rate factor
MODERN = [
    (4, 256, 2, 36.7e6, 11.5e6, 2**18, 528, 1.11e16, 1.890, 0.707),
    (6, 384, 3, 73.5e6, 23.2e6, 2**18, 1_062, 4.66e16, 0.940, 0.707),
    (8, 512, 4, 125.8e6, 41.9e6, 2**18, 1_920, 1.49e17, 0.520, 0.707),
    (10, 640, 5, 196.0e6, 70.1e6, 2**19, 1_605, 4.17e17, 0.440, 1.0),
    (12, 768, 6, 286.26e6, 110.1e6, 2**19, 2_520, 1.00e18, 0.280, 1.0),
    (16, 1024, 8, 536.9e6, 234.9e6, 2**19, 5_376, 4.47e18, 0.131, 1.0),
    (20, 1280, 10, 896.5e6, 435.2e6, 2**20, 4_980, 1.51e19, 0.100, 1.414),
    (24, 1536, 12, 1_384.1e6, 729.8e6, 2**20, 8_352, 4.18e19, 0.060, 1.414),
    (26, 1664, 13, 1_681.8e6, 918.4e6, 2**20, 10_510, 6.60e19, 0.047, 1.414),
    (32, 2048, 16, 2_818.6e6, 1_677.7e6, 2**21, 9_600, 2.17e20, 0.037, 2.0),
]
# depth, parameters, steps, FLOPs
CLASSIC = [
    (4, 36.7e6, 1_400, None),
    (12, 185.6e6, 7_080, 3.85e18),
    (20, 561.0e6, 21_400, 3.918e19),
    (24, 880.8e6, 33_600, 9.84e19),
    (26, 1_082.0e6, 41_275, 1.493e20),
    (32, 1_879.0e6, 71_680, 4.54e20),
]


@pytest.mark.parametrize("row", MODERN, ids=lambda row: f"d{row[0]}")
def test_modern_plans_are_nanochats_of_2026(row):
    """Oracle: the table that nanochat's rules give at its default ratio of 12."""
    depth, width, heads, parameters, counted, batch, steps, flops, decay, factor = row
    plan = base_plan(f"model.depth={depth}")
    assert (plan.gpt["width"], plan.gpt["heads"]) == (width, heads)
    assert (plan.total_batch, plan.num_steps) == (batch, steps)
    assert plan.num_parameters == pytest.approx(parameters, rel=2e-3)
    assert plan.counted_parameters == pytest.approx(counted, rel=4e-3)
    assert plan.flops == pytest.approx(flops, rel=5e-3)
    assert plan.groups["matrix"]["weight_decay"] == pytest.approx(decay, rel=1.2e-2)
    assert plan.groups["matrix"]["lr"] == pytest.approx(0.02 * factor, rel=1e-3)


@pytest.mark.parametrize("row", CLASSIC, ids=lambda row: f"d{row[0]}")
def test_classic_plans_are_nanochats_of_2025(row):
    """Oracle: the same table for the rule of 20 tokens for every parameter."""
    depth, parameters, steps, flops = row
    plan = base_plan("recipe=classic", f"model.depth={depth}")
    assert (plan.total_batch, plan.num_steps) == (2**19, steps)
    assert plan.num_parameters == pytest.approx(parameters, rel=2e-3)
    assert flops is None or plan.flops == pytest.approx(flops, rel=2e-3)


def test_published_runs_are_exact():
    """Oracle: the report cards of the classic d20 and the modern d24 at ratio 8, digit for digit."""
    d20 = base_plan("recipe=classic", "model=d20")
    assert (d20.num_parameters, d20.num_steps, d20.tokens) == (560_988_160, 21_400, 11_219_763_200)
    assert f"{d20.flops:.6e}" == "3.917670e+19"
    assert f"{d20.flops_per_token:.6e}" == "3.491758e+09"
    d24 = base_plan("model=d24", "target_ratio=8")
    assert (d24.num_parameters, d24.num_steps, d24.tokens) == (1_384_122_122, 5_568, 5_838_471_168)
    assert f"{d24.flops:.3e}" == "2.788e+19"
    assert base_plan("model=d12").num_parameters == 286_261_730
    assert base_plan("recipe=classic", "model=d32").num_parameters == 1_879_048_192


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_rows_are_dealt_out_exactly(devices):
    plan = base_plan("model=d26", f"cluster.devices={devices}", "cluster.gpu=H100")
    assert plan.ranks * plan.accumulation * plan.micro_batch == plan.rows
    assert plan.rows * plan.gpt["context"] == plan.total_batch
    assert plan.micro_batch == 16


@pytest.mark.parametrize(("depth", "rows"), [(20, 32), (22, 16), (26, 16), (28, 8)])
def test_deeper_models_get_fewer_rows(depth, rows):
    """Oracle: nanochat's choices for 80 GB; an H200 has room for them."""
    assert base_plan(f"model.depth={depth}", "cluster.gpu=H200").micro_batch == rows


def test_learning_rates_of_classic_d20_are_scaled_by_width_alone():
    groups = base_plan("recipe=classic", "model=d20").groups
    factor = (1280 / 768) ** -0.5
    assert groups["matrix"]["lr"] == 0.02
    assert groups["embedding"]["lr"] == pytest.approx(0.2 * factor)
    assert groups["unembedding"]["lr"] == pytest.approx(0.004 * factor)


def test_modern_scales_all_rates_with_the_batch_but_smears():
    groups = base_plan("model=d24").groups
    batch, width = 2**0.5, (1536 / 768) ** -0.5
    assert groups["smear"]["lr"] == 0.2
    assert groups["x0_scalar"]["lr"] == pytest.approx(0.5 * batch)
    assert groups["residual_scalar"]["lr"] == pytest.approx(0.005 * batch)
    assert groups["value_embedding"]["lr"] == pytest.approx(0.15 * batch * width)
    assert set(groups) == set(base_plan("model=d24").parameters)


def test_only_the_matrices_decay_is_carried_to_another_horizon():
    groups = base_plan("model=d24").groups
    assert groups["matrix"]["weight_decay"] < 0.1
    assert groups["value_embedding"]["weight_decay"] == groups["unembedding"]["weight_decay"] == 0.01


def test_lr_scale_multiplies_every_rate():
    half, whole = base_plan("stage.base.lr_scale=0.5").groups, base_plan().groups
    assert all(half[role]["lr"] == pytest.approx(whole[role]["lr"] / 2) for role in whole)
