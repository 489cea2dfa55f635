"""The plan of mid and sft: how long an epoch is."""

import pytest

from nanolit.config.compose import compose
from nanolit.planning.plans import fresh_plan
from nanolit.planning.show import plan_table


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["phase=mid", "total_batch=262144"], 1_530),
        (["phase=mid", "model.context=1024"], 765),
        (["phase=sft", "total_batch=1048576"], 41),
        (["phase=sft", "model.context=1024"], 326),  # twice the conversations a step, one a row
        (["phase=sft", "stage.sft.mixture=demo_sft"], None),
        (["phase=sft", "recipe.mirror=sample"], None),
        (["phase=sft", "recipe=modern"], 420),
        (["phase=sft", "recipe=modern", "stage.sft.mixture=demo_sft"], None),
        (["phase=sft", "recipe=modern", "stage.sft.mixture=demo_sft", "max_steps=7"], 7),
        (["phase=rl", "stage.rl.questions=64"], 116),
        (["phase=rl", "recipe.mirror=sample"], None),
        (["phase=rl", "stage.rl.task={_target_: nanolit.tasks.sums.Sums, split: train, size: 9}"], None),
    ],
)
def test_an_epoch_has_the_steps_of_its_own_batch_and_data_or_nobody_knows(overrides, expected):
    """Oracle: the published 765, 651 and 467 steps at 524,288 and 65,536 tokens and 16 questions."""
    job = compose(["recipe=classic", "model=d20", "cluster=modal_8xh100", *overrides])
    plan = fresh_plan(job, job["stages"][0])
    assert plan.expected_steps == expected
    assert (plan.hours["total_hours"] is None) == (plan.cost["dollars"] is None) == (expected is None)
    assert (expected is None) == ("not known before the stage starts" in plan_table(plan))
