"""Guards for our kernels: test each on an example before use, and refuse the same tensor for two inputs.

Under torch.compile an autograd.Function that gets a tensor twice keeps one of that tensor's two gradients and
silently drops the other (torch 2.11; 2.15 keeps both). Eager runs are right, so only a compiled model learns
wrongly. Custom operators with register_autograd are not affected.
"""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import torch
from torch import Tensor


@torch.inference_mode(False)
@torch.enable_grad()
def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """A function's result and the gradients of its sum of squares."""
    inputs = tuple(one.clone().requires_grad_() for one in inputs)
    y = function(*inputs)
    return y.detach(), *torch.autograd.grad(y.float().square().sum(), inputs)


def near(found: Tensor, expected: Tensor, *, within: float) -> bool:
    """Return True if the relative error, in Frobenius norm, is below a bound; NaN is not."""
    return bool((found.float() - expected).norm() < within * expected.norm())


def apply_to_distinct(function: type[torch.autograd.Function], *inputs: Any) -> Any:
    """Return `function.apply(*inputs)`; AssertionError if two inputs are one tensor, compiled or not."""
    # The compiler evaluates this while it traces, so a compiled call costs nothing
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    for first, second in combinations(tensors, 2):
        assert first is not second, (
            "one tensor was given for two inputs of an autograd.Function: when compiled, one of its two "
            "gradients would be lost; write that case in plain torch, as residual.mix does"
        )
    return function.apply(*inputs)
