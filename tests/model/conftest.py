"""Tiny models with and without the flags, and ids to feed them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_gpt import EVERYTHING, PLAIN

from nanolit.model.gpt import GPT, GPTConfig


@pytest.fixture(params=["everything", "plain"])
def flags(request: pytest.FixtureRequest) -> dict[str, Any]:
    return EVERYTHING if request.param == "everything" else PLAIN


@pytest.fixture
def make_gpt() -> Callable[..., GPT]:
    """A GPT in which every path matters: weights that start as zero get noise too."""

    def make(flags: dict[str, Any] = EVERYTHING, **changes: Any) -> GPT:
        gpt = GPT(GPTConfig(**flags | changes))
        generator = torch.Generator().manual_seed(1)
        gpt.initialize(generator)
        with torch.no_grad():
            for parameter in gpt.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        return gpt

    return make


@pytest.fixture
def random_ids() -> Callable[[int, int], torch.Tensor]:
    def draw(rows: int, positions: int) -> torch.Tensor:
        return torch.randint(70, (rows, positions), generator=torch.Generator().manual_seed(2))

    return draw
