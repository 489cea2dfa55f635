"""The plan: what a job derives, to the number, without torch and without starting anything."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nanolit.config.compose import compose
from nanolit.jobs.execute import write_plan
from nanolit.planning.derivation import BasePlan, as_json
from nanolit.planning.plans import fresh_plan, keep_stored, read_plan
from nanolit.planning.show import plan_table

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
BEFORE_KERNELS = json.loads((RESULTS / "5c8709d-nvidia-h200.json").read_text())["results"]


def base_plan(*overrides: str) -> BasePlan:
    plan = fresh_plan(compose(list(overrides)), "base")
    assert isinstance(plan, BasePlan)
    return plan


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


def test_the_horizon_is_max_steps_then_flops_then_ratio():
    assert base_plan("max_steps=7", "target_flops=1e18", "target_ratio=3").num_steps == 7
    by_flops = base_plan("target_flops=1e18", "target_ratio=3")
    assert by_flops.flops == pytest.approx(1e18, rel=1e-3)
    assert base_plan("target_ratio=6").num_steps == 1_260


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


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("questions=0", "is 0; it must be 1 or more"),
        ("samples=1", "is 1; allowed: 2 or more"),
        ("temperature=0", "above 0"),
        ("top_k=-1", "0 .from the whole vocabulary. or more"),
        ("max_new_tokens=3000", "1 to the context's 2,048"),
    ],
)
def test_reinforcement_learning_that_would_learn_nothing_is_refused(override, message):
    with pytest.raises(ValueError, match=f"stage.rl.{override.partition('=')[0]}.*{message}"):
        fresh_plan(compose(["phase=rl", f"stage.rl.{override}"]), "rl")


def test_a_top_k_of_0_is_the_whole_vocabulary():
    assert fresh_plan(compose(["phase=rl", "stage.rl.top_k=0"]), "rl").top_k is None


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


# Oracle: peaks of `python -m benchmarks train` on one H200, in GiB: GPU whose kernels it ran, precision,
# depth, rows.
MEASURED = [
    *(
        ("A100-80GB", "bf16", one["depth"], one["micro_batch"], one["peak_memory_gib"])
        for one in BEFORE_KERNELS
    ),
    ("H200", "bf16", 12, 32, 18.19),  # commit 28b42ab
    ("H200", "bf16", 20, 16, 29.68),
    ("H200", "fp8", 12, 32, 16.66),  # commit 8be89fe
    ("H200", "fp8", 20, 16, 27.41),
]


@pytest.mark.parametrize("measured", MEASURED, ids=lambda one: f"{one[0]}-{one[1]}-d{one[2]}")
def test_peak_memory_is_within_a_tenth_of_what_was_measured(measured):
    """The first results were taken before Hopper had kernels of its own: as other GPUs still run."""
    gpu, precision, depth, rows, peak = measured
    overrides = (f"model=d{depth}", f"micro_batch={rows}", f"cluster.gpu={gpu}", f"precision={precision}")
    memory = base_plan(*overrides).memory
    assert memory["gib"]["peak"] == pytest.approx(peak, rel=0.1)
    assert memory["fits"] is True


def test_more_ranks_share_the_optimizer_and_nothing_else():
    one, eight = (
        base_plan("model=d20", f"cluster.devices={devices}", "cluster.gpu=H100", "micro_batch=16").memory
        for devices in (1, 8)
    )
    assert eight["gib"]["optimizer"] == one["gib"]["optimizer"] / 8
    assert eight["gib"]["activations"] == one["gib"]["activations"]
    assert one["gib"]["peak"] - eight["gib"]["peak"] == pytest.approx(one["gib"]["optimizer"] * 7 / 8)


def test_a_small_gpu_gets_the_micro_batch_that_fits_it():
    plan = base_plan("model=d20", "cluster=modal_a10g")
    assert plan.micro_batch == plan.memory["largest_micro_batch"]["A10G"] < 8
    assert plan.memory["fits"] is True
    assert plan.memory["gib"]["peak"] < 22
    assert base_plan("model=d20", "cluster=modal_h100").micro_batch > 8
    assert base_plan("model=d20", "cluster=modal_a10g", "micro_batch=32").memory["fits"] is False


def test_a_model_that_fits_no_way_is_said_to_by_its_plan():
    plan = base_plan("model=d32", "cluster=modal_a10g")
    assert plan.memory["largest_micro_batch"]["A10G"] == 0
    assert "does not fit" in plan_table(plan)


def test_memory_is_left_out_where_nobody_knows_it():
    assert base_plan("cluster.gpu=cpu").memory is None
    unknown = base_plan("cluster.gpu=Quantum 9000").memory
    assert (unknown["fits"], unknown["gpu_gib"]) == (None, None)


def test_float32_activations_are_twice_as_large():
    wide, narrow = (
        base_plan("cluster.gpu=A10G", f"precision={one}", "micro_batch=4") for one in ("fp32", "bf16")
    )
    assert wide.memory["gib"]["activations"] == 2 * narrow.memory["gib"]["activations"]
    hopper = base_plan("cluster.gpu=H100", "precision=fp32", "micro_batch=4")  # its kernels take bfloat16
    assert hopper.memory["gib"]["activations"] == wide.memory["gib"]["activations"]


def test_shards_are_those_that_nanochat_downloads():
    """Oracle: nanochat's scripts say 240 for d20, 450 for d26, 800 for d32 (rounded by hand)."""
    shards = [base_plan("recipe=classic", f"model=d{depth}").shards for depth in (20, 26, 32)]
    assert shards == pytest.approx([240, 450, 800], rel=0.03)


def test_a_fast_dev_run_is_three_tiny_steps():
    plan = base_plan("fast_dev_run=true", "model=d26", "cluster=modal_8xh100")
    assert (plan.num_steps, plan.rows, plan.micro_batch, plan.eval_rows) == (3, 16, 2, 2)


def test_rl_and_finetuning_have_plans():
    job = compose(["phase=speedrun", "recipe=classic", "model=d20", "rl=true", "cluster=modal_8xh100"])
    mid, sft, rl = (fresh_plan(job, stage) for stage in ("mid", "sft", "rl"))
    assert (mid.expected_steps, mid.total_batch) == (765, 2**19)
    assert (sft.expected_steps, sft.rows) == (651, 32)
    assert sft.groups["matrix"]["lr"] == pytest.approx(0.02 * 0.02)
    assert (rl.questions, rl.samples, rl.expected_steps) == (16, 16, 467)
    with pytest.raises(ValueError, match="try 12 or 18"):
        fresh_plan(compose(["phase=rl", "stage.rl.questions=16", "cluster.devices=6"]), "rl")


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
    assert (expected is None) == ("not known before the stage begins" in plan_table(plan))


def test_fp8_takes_less_time_where_it_runs():
    job = ("model=d20", "cluster=modal_8xh100")
    hours = [base_plan(*job, f"precision={one}").hours["hours"] for one in ("bf16", "fp8")]
    assert hours[0] / hours[1] == pytest.approx(1.39, rel=2e-3)


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
