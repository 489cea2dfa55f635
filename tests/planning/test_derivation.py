"""A job to a plan, a plan to JSON and back, and the errors of what cannot be."""

import json

import pytest

from nanolit.config.compose import compose
from nanolit.jobs.execute import write_plan
from nanolit.planning.derivation import as_json
from nanolit.planning.plans import fresh_plan, keep_stored, read_plan
from tests.planning.base_plans import base_plan


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (["total_batch=500000"], "try 499,712 or 501,760"),
        (["cluster.devices=3"], "try 522,240 or 528,384"),
        (["total_batch=100"], "try 2,048"),
        (["micro_batch=5"], "try micro_batch=4"),
        (["micro_batch=300"], "try micro_batch=256"),
        (["micro_batch=0"], "try micro_batch=1"),
        (["model.kv_heads=4"], "one of 1, 2, 3, 6"),
        (["model.width=100", "model.heads=3"], "try model.width=102"),
        (["recipe=classic", "model.depth=5"], "depth 6"),
        (["eval_every=0"], "must be 1 or more"),
        (["model.depth=0"], "1 or more"),
        (["model.context=0"], "model.context is 0; it must be 1 or more"),
        (["cluster.devices=0"], "cluster.devices is 0; it must be 1 or more"),
        (["cluster.nodes=0"], "cluster.nodes is 0; it must be 1 or more"),
        (["total_batch=0"], r"total_batch \(0\) must be a multiple .*; try 2,048"),
        (["target_ratio=0"], "target_ratio=0.* must be a positive number"),
        (["phase=sft", "total_batch=0"], r"total_batch \(0\) must be a multiple .*; try 2,048"),
        (["phase=sft", "max_steps=0"], "stage.sft.max_steps is 0; it must be 1 or more"),
        (["phase=rl", "stage.rl.questions=0"], "stage.rl.questions is 0; it must be 1 or more"),
        (["target_flops=1"], "less than one optimizer step"),
        (["~recipe.groups.smear"], "add recipe.groups.smear"),
        (["data=local", "data.path=/nowhere"], "not a folder"),
        (["model=d2,d4"], "model=d2,d4 is a sweep, .*; here give one value"),
        (["precision=fp8"], "this is cpu: give precision=bf16"),
        (["precision=fp8", "cluster=modal_a10g"], "this is A10G: give precision=bf16"),
    ],
)
def test_what_cannot_be_is_one_line_with_what_can(overrides, remedy):
    with pytest.raises(ValueError, match=remedy) as caught:
        fresh_plan(job := compose(overrides), job["stages"][0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("recipe", ["classic", "modern"])
def test_a_plan_is_read_as_it_was_written(recipe, tmp_path):
    job = compose(["phase=speedrun", "rl=true", f"recipe={recipe}", "model=d4", f"root={tmp_path}"])
    for stage in job["stages"]:
        plan = fresh_plan(job, stage)
        assert read_plan(write_plan(job, plan)) == plan


def test_an_older_plan_loses_what_is_gone_and_lacks_what_is_new(tmp_path):
    """plan.json of format 1 grew: the first ones had no cost, and a key that no version reads any more."""
    job = compose(["phase=sft", "model=d4", f"root={tmp_path}"])
    plan = fresh_plan(job, "sft")
    path = write_plan(job, plan) / "plan.json"
    stored = json.loads(path.read_text())
    del stored["cost"], stored["warm_start"]
    path.write_text(json.dumps({**stored, "warmdown_fraction": 0.5, "num_steps": 7}))
    older = read_plan(path.parent)
    assert (older.num_steps, older.cost, as_json(older).keys()) == (7, None, as_json(plan).keys())
    resumed = keep_stored(job, plan)
    assert (resumed.num_steps, resumed.warm_start) == (7, plan.warm_start)


def test_a_download_is_in_plan_json_only_where_there_is_one():
    """Oracle: plan.json of format 1, whose bytes a stored run has."""
    assert as_json(base_plan("data=fineweb_edu"))["download_gigabytes"] > 0
    assert "download_gigabytes" not in as_json(base_plan("data=sample"))
