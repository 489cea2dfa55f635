"""Learning rates and weight decay, carried from the reference to another size."""

import pytest

from tests.planning.base_plans import base_plan


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
