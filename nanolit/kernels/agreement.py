"""A kernel is tried on an example before it serves, beside the plain form: its result and gradients."""

from collections.abc import Callable

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
    """Whether the relative error, in Frobenius norm, is below a bound; NaN is not."""
    return bool((found.float() - expected).norm() < within * expected.norm())
