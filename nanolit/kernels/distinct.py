"""The one place where our autograd.Functions are applied: it refuses the same tensor for two inputs.

Under torch.compile an autograd.Function that gets a tensor twice keeps one of that tensor's two gradients and
drops the other without a word (torch 2.11; 2.15 refuses the call). Eager runs are right, so only a compiled
model learns wrongly. Custom operators with register_autograd are not affected.
"""

from itertools import combinations
from typing import Any

import torch
from torch import Tensor


def apply_to_distinct(function: type[torch.autograd.Function], *inputs: Any) -> Any:
    """Return `function.apply(*inputs)`; AssertionError if two inputs are one tensor, compiled or not."""
    # The compiler evaluates this while it traces, so a compiled call costs nothing
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    for first, second in combinations(tensors, 2):
        assert first is not second, (
            "one tensor was given for two inputs of an autograd.Function: compiled, one of its two gradients "
            "would be lost; write that case in plain torch, as residual.mix does"
        )
    return function.apply(*inputs)
