"""A plan as a table, and as a line for each stage."""

import pytest

from nanolit.config.compose import compose
from nanolit.planning.plans import fresh_plans
from nanolit.planning.show import amount, outline, plan_table, rest_of
from tests.planning.base_plans import base_plan


def test_the_table_shows_what_decides_the_run():
    table = plan_table(base_plan("recipe=classic", "model=d20", "cluster=modal_8xh100"))
    for text in (
        "560,988,160",
        "21,400",
        "3.917670e+19",
        "8 × H100",
        "47.0%",
        "fineweb_edu, 240 shard",
        "about 24.1 GB",
    ):
        assert text in table


def test_the_outline_has_a_line_for_the_job_and_one_for_each_stage_with_its_time():
    plans = list(fresh_plans(compose(["experiment=demo", "cluster.gpu=cpu"])).values())
    first, *stages = outline("demo", plans).splitlines()
    assert first.startswith("demo · 4 stages: ")
    assert first.endswith("minutes on two CPU cores")
    assert [line.split()[0] for line in stages] == ["tokenizer", "base", "sft", "rl"]
    assert "tokens of stories" in stages[1]
    assert not any("unknown" in line or "download" in line for line in stages)


def test_the_outline_names_price_and_download():
    plan = base_plan("recipe=classic", "model=d20", "cluster=modal_8xh100")
    first, stage = outline("big", [plan]).splitlines()
    assert first.startswith("big · 1 stage: ")
    assert first.endswith(" on 8 × H100")
    assert "$" in first
    assert stage.endswith("about 24.1 GB to download")


@pytest.mark.parametrize(
    ("hours", "text"),
    [
        (1e-9, "1 second"),
        (0.01, "36 seconds"),
        (0.5, "30.0 minutes"),
        (99, "99.00 hours"),
        (2829.7, "118 days"),
    ],
)
def test_a_time_has_the_unit_that_people_use(hours, text):
    assert amount(hours) == text


def test_a_stage_that_resumes_says_what_is_left_of_its_time_and_dollars():
    """Oracle: half of the steps take half of the hours that the start does not."""
    plan = base_plan("recipe=classic", "model=d20", "cluster=modal_8xh100", "max_steps=1000")
    whole, start = plan.hours["total_hours"], plan.hours["start_hours"]
    half = rest_of(plan, after=500)
    assert half.hours["total_hours"] == pytest.approx(start + (whole - start) / 2)
    assert half.cost["dollars"] == pytest.approx(half.hours["total_hours"] * plan.cost["dollars_per_hour"])
    table = plan_table(plan, done=500)
    assert "steps              1,000, 500 already done" in table
    assert f"time left          {amount(half.hours['total_hours'])} on 8 × H100" in table
    first, stage = outline("big", [plan], done={"base": 500}).splitlines()
    assert amount(half.hours["total_hours"]) in first
    assert "1,000 steps, 500 already done" in stage
    assert rest_of(plan, after=1000).hours["total_hours"] == pytest.approx(start)
