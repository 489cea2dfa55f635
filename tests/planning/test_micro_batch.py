"""micro_batch=auto: what is remembered of trials, and what a plan takes of it."""

import pytest

from nanolit.config.compose import compose
from nanolit.planning.micro_batch import Tried, best_known, remember
from nanolit.planning.plans import fresh_plan
from nanolit.planning.sizes import is_auto

GPU = ["cluster.gpu=NVIDIA H100 80GB HBM3", "model=d12", "micro_batch=auto"]


def auto_job(root, *overrides: str):
    return compose([*GPU, f"root={root}", *overrides])


def test_a_plan_takes_what_was_remembered(tmp_path):
    job = auto_job(tmp_path)
    plan = fresh_plan(job, "base")
    assert plan.micro_batch == 32  # derived
    remember(job, plan.gpt, Tried(fits=64, fails=128), equal_rows=True)
    assert fresh_plan(job, "base").micro_batch == 64
    assert fresh_plan(auto_job(tmp_path, "total_batch=65536"), "base").micro_batch == 32
    again = fresh_plan(job, "base")
    assert again.accumulation * again.micro_batch == again.rows


@pytest.mark.parametrize(
    "other", ["cluster.gpu=NVIDIA H200", "model=d8", "precision=fp32", "compile=false", "cluster.devices=2"]
)
def test_what_fits_is_remembered_for_its_gpu_model_and_precision_alone(other, tmp_path):
    job = auto_job(tmp_path)
    remember(job, fresh_plan(job, "base").gpt, Tried(fits=1, fails=2), equal_rows=True)
    assert fresh_plan(job, "base").micro_batch == 1
    assert fresh_plan(auto_job(tmp_path, other), "base").micro_batch > 1


def test_a_failure_alone_keeps_the_derived_one_below_it(tmp_path):
    plan = fresh_plan(auto_job(tmp_path), "base")
    assert best_known(plan.micro_batches, 32, Tried()) == 32
    assert best_known(plan.micro_batches, 32, Tried(fails=32)) == 16
    assert best_known(plan.micro_batches, 32, Tried(fails=1)) == 1


def test_on_a_cpu_auto_is_the_derived_default(tmp_path):
    jobs = [compose([wish, "cluster.gpu=cpu", f"root={tmp_path}"]) for wish in ("micro_batch=auto", "seed=1")]
    auto, plain = (fresh_plan(job, "base") for job in jobs)
    assert auto == plain
    assert not is_auto(jobs[0], "base")
    assert jobs[0]["run"] == jobs[1]["run"]
