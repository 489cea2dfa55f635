"""The form in which fused attention kernels take arguments: windows as numbers, the last dimension dense."""

import torch
from torch import Tensor

NO_WINDOW = -1  # for None, where an operator takes a number


def readable(x_BTHD: Tensor) -> Tensor:
    """Return x as it is if its last dimension is dense, which is all that fused kernels ask, else a copy."""
    return x_BTHD if x_BTHD.stride(-1) == 1 else x_BTHD.contiguous()


def in_order() -> bool:
    """Return True if blocks of keys must add to a query's gradient in order, so that its bits repeat.

    Our operators ask when they run; torch's own FlashAttention has no such form under warn_only.
    """
    return torch.are_deterministic_algorithms_enabled()
