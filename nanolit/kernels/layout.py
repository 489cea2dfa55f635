"""What every fused attention kernel asks of its arguments: a window as a number, the last dimension dense."""

from torch import Tensor

NO_WINDOW = -1  # for None, where an operator takes a number


def readable(x_BTHD: Tensor) -> Tensor:
    """Return x as it is if its last dimension is dense, which is all that fused kernels ask, else a copy."""
    return x_BTHD if x_BTHD.stride(-1) == 1 else x_BTHD.contiguous()
