"""The plans of tokenizer and base: the horizon, and what they read."""

import pyarrow.parquet as pq
import pytest

from nanolit.config.compose import compose
from nanolit.data.shards import Sample, Stories
from nanolit.planning.plans import fresh_plan
from tests.planning.base_plans import base_plan


def test_the_horizon_is_max_steps_then_flops_then_ratio():
    assert base_plan("max_steps=7", "target_flops=1e18", "target_ratio=3").num_steps == 7
    by_flops = base_plan("target_flops=1e18", "target_ratio=3")
    assert by_flops.flops == pytest.approx(1e18, rel=1e-3)
    assert base_plan("target_ratio=6").num_steps == 1_260


def test_shards_are_those_that_nanochat_downloads():
    """Oracle: nanochat's scripts say 240 for d20, 450 for d26, 800 for d32 (rounded by hand)."""
    shards = [base_plan("recipe=classic", f"model=d{depth}").shards for depth in (20, 26, 32)]
    assert shards == pytest.approx([240, 450, 800], rel=0.03)


def test_a_fast_dev_run_is_three_tiny_steps():
    plan = base_plan("fast_dev_run=true", "model=d26", "cluster=modal_8xh100")
    assert (plan.num_steps, plan.rows, plan.micro_batch, plan.eval_rows) == (3, 16, 2, 2)


@pytest.mark.parametrize("dataset", [Sample(), Stories()], ids=lambda dataset: dataset.name)
def test_the_tokenizers_time_is_of_the_text_that_there_is(dataset):
    """Not of the two billion characters that it may read at most."""
    texts = pq.read_table(dataset.folder / "train.parquet", columns=["text"])["text"].to_pylist()
    assert dataset.num_characters == pytest.approx(sum(map(len, texts)), rel=0.01)
    plan = fresh_plan(compose(["experiment=demo", f"data={dataset.name}"]), "tokenizer")
    assert plan.hours["total_hours"] == 1 / 3600
