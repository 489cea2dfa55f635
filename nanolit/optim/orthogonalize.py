"""The nearest semi-orthogonal matrix, for a stack of same-shape matrices at once, by matrix products alone.

Legend: N stacked matrices of R rows and S columns. Both iterations apply five odd quintic polynomials
a*X + b*X(X'X) + c*X(X'X)^2 that push every singular value towards 1.
"""

import torch
from torch import Tensor

from nanolit.machine.device import HOPPER, triton_capability

Coefficients = tuple[tuple[float, float, float], ...]

# Slope at zero maximised, singular values end in about [0.7, 1.2]: https://kellerjordan.github.io/posts/muon/
NEWTON_SCHULZ: Coefficients = ((3.4445, -4.7750, 2.0315),) * 5

# Best polynomial of each step (Polar Express, https://arxiv.org/abs/2505.16932), in nanochat's digits
POLAR_EXPRESS: Coefficients = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
TILE = 128  # the short side must be a multiple of it for our kernel


def newton_schulz(x_NRS: Tensor, norm_N11: Tensor, dtype: torch.dtype) -> Tensor:
    """The orthogonalised stack, computed and returned in dtype (bfloat16 where matrix units take it).

    norm_N11 are the matrices' Frobenius norms.
    """
    return _iterate((x_NRS / (norm_N11 + 1e-7)).to(dtype), NEWTON_SCHULZ)


def polar_express(x_NRS: Tensor, norm_N11: Tensor, dtype: torch.dtype) -> Tensor:
    """The orthogonalised stack, computed and returned in dtype (bfloat16 where matrix units take it).

    norm_N11 are the matrices' Frobenius norms.
    """
    x_NRS = x_NRS / (1.01 * norm_N11 + 1e-6)  # 1.01: rounding must not lift a norm above 1
    return _iterate(x_NRS.to(dtype), POLAR_EXPRESS)


def has_kernel(device: torch.device, short_side: int) -> bool:
    """Whether our Triton kernel serves matrices of this short side: Hopper with Triton, and whole tiles."""
    return short_side % TILE == 0 and triton_capability(device)[0] == HOPPER


def _iterate(x_NRS: Tensor, coefficients: Coefficients) -> Tensor:
    """Multiply on the short side, which is cheaper; a tall matrix is multiplied from the right.

    Each product is rounded before it is scaled and added, as in nanochat, and the rounding counts.
    Early gradients have low rank; bfloat16 fills the other directions with noise, up to two thirds of the
    update. In float16 it stays empty, and since the update's norm is fixed afterwards, the known directions
    get longer steps: d12 then learned worse than nanochat, by 0.007 bits per byte after 49 steps (LOG.md).
    """
    tall = x_NRS.size(-2) > x_NRS.size(-1)
    for a, b, c in coefficients:
        gram = x_NRS.mT @ x_NRS if tall else x_NRS @ x_NRS.mT
        polynomial = b * gram + c * (gram @ gram)
        x_NRS = a * x_NRS + (x_NRS @ polynomial if tall else polynomial @ x_NRS)
    return x_NRS


def iterate_by_halves(x_NRS: Tensor, coefficients: Coefficients) -> Tensor:
    """Compute `_iterate` with only one half of its two symmetric products; the result is in x's dtype."""
    tall = x_NRS.size(-2) > x_NRS.size(-1)
    for a, b, c in coefficients:
        gram = symmetric_product(x_NRS, x_NRS, tall=tall)
        polynomial = symmetric_product(gram, gram, add_NRR=gram, alpha=c, beta=b)
        product_NRS = x_NRS @ polynomial if tall else polynomial @ x_NRS
        x_NRS = product_NRS.add_(x_NRS, alpha=a)
    return x_NRS


def symmetric_product(
    a: Tensor,
    b: Tensor,
    *,
    add_NRR: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
    tall: bool = False,
) -> Tensor:
    """Return alpha A Bᵀ (tall: Aᵀ B) + beta add for stacks of A and B that make it symmetric.

    The product is rounded to a's dtype before it is scaled, and the sum once more.
    """
    how = {"alpha": alpha, "beta": beta, "tall": tall}
    if has_kernel(a.device, a.size(-1) if tall else a.size(-2)):
        from nanolit.kernels import symmetric_kernel  # imports Triton

        return symmetric_kernel.symmetric_product(a, b, add_NRR, **how)
    return symmetric_product_in_torch(a, b, add_NRR, **how)


def symmetric_product_in_torch(
    a: Tensor, b: Tensor, add_NRR: Tensor | None, *, alpha: float, beta: float, tall: bool
) -> Tensor:
    """The kernel's twin: it rounds at the same two places and mirrors the lower half."""
    a_wide, b_wide = a.float(), b.float()
    total_NRR = alpha * (a_wide.mT @ b_wide if tall else a_wide @ b_wide.mT).to(a.dtype).float()
    if add_NRR is not None:
        total_NRR += beta * add_NRR.float()
    out_NRR = total_NRR.to(a.dtype)
    return out_NRR.tril() + out_NRR.tril(-1).mT
