"""The rows of a step, dealt out to ranks and micro-batches."""

import pytest

from tests.planning.base_plans import base_plan


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
