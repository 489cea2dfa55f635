"""What jobs take together, on every cluster, and what is refused before anything starts."""

import json
import subprocess
import sys

import pytest

from nanolit.config.compose import compose, options
from nanolit.jobs import sweep
from nanolit.planning.derivation import Plan
from nanolit.planning.max_cost import check_cost, total
from nanolit.planning.plans import fresh_plans, plan_jobs, show_plans


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
    assert "max_cost=1 is ignored: nobody bills for cluster=local" in capsys.readouterr().out


def test_plans_are_shown_before_they_are_refused(capsys):
    jobs = [compose([f"model={model}", "cluster=modal_8xh100", "max_cost=1"]) for model in ("d12", "d20")]
    with pytest.raises(ValueError, match="2 jobs would cost"):
        show_plans(plan_jobs(jobs))
    out = capsys.readouterr().out
    assert out.count("an hour, prices of") == 2


def plan_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nanolit.plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_plan_refuses_with_exit_code_2():
    done = plan_command("model=d20", "cluster=modal_h100", "max_cost=1")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "at $4.84 an hour" in done.stdout


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
