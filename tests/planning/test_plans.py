"""A job to its plans: what cannot be, what was stored, and what is refused before anything starts."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nanolit.config.compose import compose, options
from nanolit.jobs import sweep
from nanolit.jobs.execute import write_plan
from nanolit.planning.plans import (
    Plan,
    as_json,
    check_cost,
    fresh_plan,
    fresh_plans,
    keep_stored,
    plan_jobs,
    read_plan,
    total,
)
from nanolit.planning.show import plan_table, show_plans
from tests.planning.base_plans import base_plan

FORMAT_1 = Path(__file__).parent.parent / "fixtures" / "run_format_1"  # a root with the run `tiny`


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


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (["total_batch=500000"], "try 499,712 or 501,760"),
        (["cluster.devices=3"], "among 3 devices, .*; allowed are 1, 2, 4, 8, 16"),
        (["cluster=modal_2x8xh100", "cluster.nodes=4"], "among 32 devices"),
        (["phase=sft", "cluster.devices=3"], "try 522,240 or 528,384"),
        (
            ["recipe.schedule.warmdown_fraction=2"],
            "the schedule of base: warmdown_fraction=2 is out of range",
        ),
        (["phase=sft", "recipe.sft.schedule.warmup_steps=-1"], "the schedule of sft: warmup_steps=-1 is out"),
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
        (["recipe.gpt.vocab_multiple=0"], "recipe.gpt.vocab_multiple is 0; it must be 1 or more"),
        (["cluster.devices=0"], "cluster.devices is 0; it must be 1 or more"),
        (["cluster.nodes=0"], "cluster.nodes is 0; it must be 1 or more"),
        (["total_batch=0"], r"total_batch \(0\) must be a multiple .*; try 2,048"),
        (["target_ratio=0"], "target_ratio=0.* must be a positive number"),
        (["phase=sft", "total_batch=0"], r"total_batch \(0\) must be a multiple .*; try 2,048"),
        (["phase=sft", "max_steps=0"], "stage.sft.max_steps is 0; it must be 1 or more"),
        (["phase=rl", "stage.rl.questions=0"], "stage.rl.questions is 0; it must be 1 or more"),
        (["target_flops=1"], "less than one optimizer step"),
        (["~recipe.groups.smear"], "add recipe.groups.smear"),
        (["data=local", "data.path=/nowhere"], "does not exist"),
        (["model=d2,d4"], "model=d2,d4 is a sweep, .*; give one value here"),
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
    assert "held_out_rows" not in stored
    path.write_text(json.dumps({**stored, "warmdown_fraction": 0.5, "num_steps": 7}))
    older = read_plan(path.parent)
    assert (older.num_steps, older.cost, as_json(older).keys()) == (7, None, as_json(plan).keys())
    resumed = keep_stored(job, plan)
    assert (resumed.num_steps, resumed.warm_start) == (7, plan.warm_start)


@pytest.mark.parametrize(
    ("node", "fault"),
    [
        ({"schedule": None}, r"schedule\._target_ is missing; it names the class to build"),
        ({"schedule": {}}, r"schedule\.warmup_steps is missing; it must be an integer"),
        ({"schedule": {"warmup_steps": "x"}}, r"schedule\.warmup_steps is 'x'"),
        ({"schedule": {"_target_": "os.system"}}, r"schedule\._target_ is 'os\.system'"),
    ],
)
def test_a_stored_plan_that_cannot_be_built_is_refused_before_any_work(node, fault, tmp_path):
    job = compose(["model=d4", f"root={tmp_path}"])
    plan = fresh_plan(job, "base")
    path = write_plan(job, plan) / "plan.json"
    stored = json.loads(path.read_text())
    whole = {key: value for key, value in stored["schedule"].items() if key != "warmup_steps"}
    nodes = {key: {"warmup_steps": 1} if value is None else whole | value for key, value in node.items()}
    path.write_text(json.dumps(stored | nodes))
    with pytest.raises(ValueError, match=rf"plan\.json is damaged \({fault}.*restore it"):
        keep_stored(job, plan)


def test_a_later_stage_has_the_tokenizer_of_the_model_that_it_begins_from_and_no_corpus(tmp_path):
    """Oracle: the plan of that model's base. Its job, unlike this one, had data=local."""
    root = Path(shutil.copytree(FORMAT_1, tmp_path / "root"))
    base = json.loads((root / "runs" / "tiny" / "base" / "plan.json").read_text())
    words = ["phase=sft", "model.depth=2", f"root={root}"]
    jobs = [compose([*words, more]) for more in ("start_from=tiny", "start_from=tiny/base", "run=tiny")]
    jobs.append(compose([*words, f"start_from={root / 'runs' / 'tiny' / 'base' / 'release'}"]))
    for job in jobs:
        plan = fresh_plan(job, "sft")
        assert plan.tokenizer == base["tokenizer"]
        assert "climbmix" not in plan_table(plan)
        assert "data" not in as_json(plan)
    older = as_json(plan) | {"data": "climbmix", "tokenizer": "climbmix-300-00000000", "num_steps": 7}
    (write_plan(job, plan) / "plan.json").write_text(json.dumps(older))
    assert keep_stored(job, plan) == replace(plan, num_steps=7)
    shutil.rmtree(root / "tokenizers")
    assert (
        Path(fresh_plan(jobs[0], "sft").tokenizer)
        == root / "runs" / "tiny" / "base" / "release" / "tokenizer"
    )
    elsewhere = compose(["phase=sft", "model.depth=2", f"root={tmp_path}", "start_from=tiny"])
    assert fresh_plan(elsewhere, "sft").tokenizer.startswith("climbmix-")


def test_sft_has_the_batch_of_the_base_that_it_continues(tmp_path):
    """As in nanochat. Of a release alone it isn't known, nor where the recipe or the user says another."""
    root = Path(shutil.copytree(FORMAT_1, tmp_path / "root"))
    batch = json.loads((root / "runs" / "tiny" / "base" / "plan.json").read_text())["total_batch"]
    sft = ["phase=sft", "model.depth=2", f"root={root}"]
    assert fresh_plan(compose([*sft, "start_from=tiny", "model.context=2048"]), "sft").total_batch > batch
    sft.append("model.context=32")
    for continued in ("start_from=tiny", "start_from=tiny/base", "run=tiny"):
        assert fresh_plan(compose([*sft, continued]), "sft").total_batch == batch
    assert fresh_plan(compose([*sft, "start_from=tiny", "total_batch=8192"]), "sft").total_batch == 8_192
    begun = compose([*sft, "start_from=tiny", "run=begun"])
    older = replace(fresh_plan(begun, "sft"), total_batch=8 * batch, rows=8 * batch // 32)
    write_plan(begun, older)
    kept = keep_stored(begun, fresh_plan(begun, "sft"))
    assert kept.micro_batch * kept.accumulation == kept.rows == older.rows
    together = compose(["stages=[base,sft]", "stage.base.total_batch=65536", f"root={tmp_path}"])
    assert fresh_plan(together, "sft").total_batch == 65_536


def test_a_download_is_in_plan_json_only_where_there_is_one():
    """Oracle: plan.json of format 1, whose bytes a stored run has."""
    assert as_json(base_plan("data=fineweb_edu"))["download_gigabytes"] > 0
    assert "download_gigabytes" not in as_json(base_plan("data=sample"))


def planned(*overrides: str):
    job = compose(list(overrides))
    return job, fresh_plans(job)


def plans_of(*overrides: str) -> list[Plan]:
    return list(planned(*overrides)[1].values())


def test_a_speedrun_takes_what_nanochats_took():
    """Oracle: nanochat's d20 of 2025 on 8 H100: 3h51m to the finetuned model, of which 25 to 35 minutes are
    CORE and chat evaluations, which the plan doesn't count; and 1.5 hours of RL."""
    plans = plans_of("phase=speedrun", "recipe=classic", "model=d20", "rl=true", "cluster=modal_8xh100")
    hours, dollars = total(plans)
    assert hours is not None
    assert dollars is not None
    assert hours == pytest.approx(3.85 - 0.5 + 1.5, abs=0.25)
    assert dollars == pytest.approx(hours * 35.16, rel=0.01)
    assert [plan.hours["total_hours"] * 60 for plan in plans[1:3]] == pytest.approx([180, 8], rel=0.1)


def test_max_cost_refuses_above_and_lets_pass_below():
    overrides = ["model=d26", "cluster=modal_8xh100"]
    assert check_cost([planned(*overrides, "max_cost=1000")]) is None
    with pytest.raises(ValueError, match=r"would cost about \$.* above max_cost=100") as caught:
        check_cost([planned(*overrides, "max_cost=100")])
    assert "\n" not in str(caught.value)


def test_max_cost_is_for_all_jobs_together():
    one = planned("model=d12", "cluster=modal_8xh100", "max_cost=5")
    assert check_cost([one]) is None
    with pytest.raises(ValueError, match="9 jobs would cost"):
        check_cost([one] * 9)


def test_max_cost_is_never_kept_by_not_knowing():
    with pytest.raises(ValueError, match="the price of base on Quantum 9000 is not known"):
        check_cost([planned("cluster=modal_h100", "cluster.gpu=Quantum 9000", "max_cost=100")])
    mine = ["phase=sft", "stage.sft.mixture=demo_sft", "cluster=modal_h100", "max_cost=100"]
    with pytest.raises(ValueError, match=r"the duration of sft on H100 .* give stage.sft.max_steps=N, or"):
        check_cost([planned(*mine)])
    assert check_cost([planned(*mine, "stage.sft.max_steps=9")]) is None


def test_max_cost_is_said_to_be_ignored_where_nobody_bills(tmp_path, capsys):
    job = compose(["max_cost=1", "model=d4", f"root={tmp_path}"])
    sweep.check_jobs([job])
    assert "max_cost=1 is ignored: cluster=local has no prices" in capsys.readouterr().out


def test_plans_are_shown_before_they_are_refused(capsys):
    jobs = [compose([f"model={model}", "cluster=modal_8xh100", "max_cost=1"]) for model in ("d12", "d20")]
    with pytest.raises(ValueError, match="2 jobs would cost"):
        show_plans(plan_jobs(jobs))
    out = capsys.readouterr().out
    assert out.count("per hour, prices of") == 2


def plan_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nanolit.plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_plan_refuses_with_exit_code_2():
    done = plan_command("model=d20", "cluster=modal_h100", "max_cost=1")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "at $4.84 per hour" in done.stdout


def test_all_clusters_are_compared():
    done = plan_command("phase=speedrun", "model=d20", "cluster=all")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["cluster", *options("cluster")]
    (h100,) = (line for line in lines if line.split()[0] == "modal_8xh100")
    for text in ("8 × H100", "$", "of 79 GiB, fits"):
        assert text in h100
    assert any("modal_a10g" in line and "of 22 GiB, fits" in line for line in lines)


def test_all_clusters_as_json_hold_every_plan():
    found = json.loads(plan_command("model=d32", "cluster=all", "--json").stdout)
    assert set(found) == set(options("cluster"))
    assert found["modal_a10g"]["memory"]["fits"] is False
    one = found["modal_8xh100"]
    assert one["stages"]["base"]["cost"]["dollars"] == one["dollars"]


def test_a_cluster_above_max_cost_says_so_in_its_line():
    done = plan_command("model=d12", "cluster=all", "max_cost=10")
    assert done.returncode == 0
    assert any(
        line.startswith("  modal_a10g") and "above max_cost=10" in line for line in done.stdout.splitlines()
    )
    assert plan_command("model=d12", "cluster=all", "micro_batch=5").returncode == 2
