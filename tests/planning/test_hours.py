"""Hours, against published runs."""

import pytest

from tests.planning.base_plans import base_plan


def test_utilisation_is_nearer_to_that_of_the_nearer_depth():
    """Oracle: d14 is a quarter of the way from d12's 43% to d20's 47%."""
    assert base_plan("model.depth=14", "cluster.gpu=H100").hours["mfu"] == pytest.approx(0.44)


@pytest.mark.parametrize("steps", [51, 99, 100])
def test_evaluation_costs_forward_passes(steps):
    """Oracle: after step 50 and the last one, a third of what a token costs to learn."""
    watched = (f"max_steps={steps}", "eval_every=50", "stage.base.eval_tokens=4194304")
    plan = base_plan("model=d12", "cluster.gpu=H100", *watched)
    share = plan.hours["evaluation_hours"] / plan.hours["hours"]
    assert share == pytest.approx(2 * 4_194_304 / 3 / plan.tokens)


def test_hours_follow_the_published_runs():
    """Oracle: base of the classic d20 on 8 H100 took 170–190 minutes, on 8 A100 6.6 hours; d32 31.3 hours."""
    d20 = base_plan("recipe=classic", "model=d20", "cluster=modal_8xh100").hours
    assert 170 / 60 <= d20["hours"] <= 190 / 60
    assert base_plan("recipe=classic", "model=d20", "cluster=modal_8xa100").hours["hours"] == pytest.approx(
        6.6, rel=0.02
    )
    d32 = base_plan("recipe=classic", "model=d32", "cluster=modal_8xh100").hours
    assert d32["hours"] == pytest.approx(31.3, rel=0.02)
    assert base_plan("cluster.gpu=Quantum 9000").hours["hours"] is None


def test_fp8_takes_less_time_where_it_runs():
    job = ("model=d20", "cluster=modal_8xh100")
    hours = [base_plan(*job, f"precision={one}").hours["hours"] for one in ("bf16", "fp8")]
    assert hours[0] / hours[1] == pytest.approx(1.39, rel=2e-3)
