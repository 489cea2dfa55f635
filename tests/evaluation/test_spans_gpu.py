"""Spans on a GPU: what kernels read in bfloat16 is as near to float32 as plain PyTorch is."""

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from nanolit.evaluation.spans import Group, score_groups
from nanolit.inference.decode import Decoder
from tests.conftest import CLASSIC, MODERN
from tests.inference.test_engine_gpu import build_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("recipe", [CLASSIC, MODERN], ids=["classic", "modern"])
def test_losses_by_kernels_are_as_near_to_float32_as_plain_ones(recipe: dict[str, object]) -> None:
    model = build_model(recipe, kv_heads=1)
    wide, draw = copy.deepcopy(model), np.random.default_rng(1)
    wide.prepare(dtype=torch.float32)
    begins = [draw.integers(256, size=size) for size in (0, 1, 60, 200, 400)]
    groups = [
        Group(
            [np.append(begin, draw.integers(256, size=size)) for size in (3, 9, 30, 2)], [len(begin) + 1] * 4
        )
        for begin in begins
    ]
    decoder = Decoder(model)
    assert decoder.reads_by_kernels, "they were tried, and did not run or agree"
    found, plain, exact = map(losses, (decoder, Decoder(model, plain=True), Decoder(wide)), [groups] * 3)
    assert (found - exact).norm() < 1.5 * (plain - exact).norm() + 1e-3


def losses(decoder: Decoder, groups: Sequence[Group]) -> torch.Tensor:
    return torch.tensor([span.loss for spans in score_groups(decoder, groups) for span in spans])
