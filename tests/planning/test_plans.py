"""The plans of a job: stored ones, and the command that shows them."""

import json
import subprocess
import sys

import pytest

from nanolit.config.compose import compose
from nanolit.jobs.execute import write_plan
from nanolit.planning.plans import fresh_plan, keep_stored


def test_rl_and_finetuning_have_plans():
    job = compose(["phase=speedrun", "recipe=classic", "model=d20", "rl=true", "cluster=modal_8xh100"])
    mid, sft, rl = (fresh_plan(job, stage) for stage in ("mid", "sft", "rl"))
    assert (mid.expected_steps, mid.total_batch) == (765, 2**19)
    assert (sft.expected_steps, sft.rows) == (651, 32)
    assert sft.groups["matrix"]["lr"] == pytest.approx(0.02 * 0.02)
    assert (rl.questions, rl.samples, rl.expected_steps) == (16, 16, 467)
    with pytest.raises(ValueError, match="try 12 or 18"):
        fresh_plan(compose(["phase=rl", "stage.rl.questions=16", "cluster.devices=6"]), "rl")


def test_json_is_plan_json(tmp_path):
    overrides = ["phase=base", "model=d4", f"root={tmp_path}"]
    command = [sys.executable, "-m", "nanolit.plan", *overrides, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not (tmp_path / "runs").exists()
    job = compose(overrides)
    folder = write_plan(job, fresh_plan(job, "base"))
    assert done.stdout == (folder / "plan.json").read_text()


def test_a_bad_override_is_one_line_and_exit_code_2():
    command = [sys.executable, "-m", "nanolit.plan", "model.dpeth=6"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_a_stored_plan_outlives_new_rules(tmp_path):
    """What decides the result comes from plan.json; where and how it is watched, from today's job."""
    job = compose(["model=d4", f"root={tmp_path}"])
    path = write_plan(job, fresh_plan(job, "base")) / "plan.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "num_steps": 999, "micro_batch": 64}))
    later = compose(["model=d4", f"root={tmp_path}", "cluster.devices=2"])
    plan = keep_stored(later, fresh_plan(later, "base"))
    assert (plan.num_steps, plan.ranks) == (999, 2)
    assert plan.ranks * plan.accumulation * plan.micro_batch == plan.rows
