"""The peak memory of a GPU, against what was measured, and what fits."""

import json
from pathlib import Path

import pytest

from nanolit.planning.show import plan_table
from tests.planning.base_plans import base_plan

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
BEFORE_KERNELS = json.loads((RESULTS / "5c8709d-nvidia-h200.json").read_text())["results"]
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
