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
# The step of a Gram iteration after which X itself is taken up again. The norm of what is joined, 33 by then,
# multiplies rounding; a step later it is 130 and ill-conditioned matrices diverge (LOG.md has the errors)
RESTART = 1
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
    """With the products of the short side, the cheaper ones; a tall matrix is multiplied from the right."""
    tall = x_NRS.size(-2) > x_NRS.size(-1)
    for a, b, c in coefficients:
        gram = x_NRS.mT @ x_NRS if tall else x_NRS @ x_NRS.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factors = (x_NRS, polynomial) if tall else (polynomial, x_NRS)
        x_NRS = torch.baddbmm(x_NRS, *factors, beta=a)
    return x_NRS


def iterate_by_halves(x_NRS: Tensor, coefficients: Coefficients) -> Tensor:
    """`_iterate` by symmetric products, of which half is computed; the result is in x's dtype.

    On a GPU that is float16: all values are bounded, and it rounds an eighth as much as bfloat16 does. Oblong
    matrices take several steps on their Gram matrix G alone: with P = a I + b G + c G² a step is X ← P X, so
    that G ← P G P, and steps join as Q ← Q P. All of these commute, so that each product is symmetric.
    """
    tall = x_NRS.size(-2) > x_NRS.size(-1)
    oblong = max(x_NRS.shape[-2:]) >= 2 * min(x_NRS.shape[-2:])
    last = len(coefficients) - 1
    gram = symmetric_product(x_NRS, x_NRS, tall=tall)
    joined = None
    for step, (a, b, c) in enumerate(coefficients):
        polynomial = symmetric_product(gram, gram, add_NRR=gram, alpha=c, beta=b, diagonal=a)
        joined = polynomial if joined is None else symmetric_product(joined, polynomial)
        if not oblong or step in (RESTART, last):
            x_NRS = x_NRS @ joined if tall else joined @ x_NRS
            joined = None
            if step < last:
                gram = symmetric_product(x_NRS, x_NRS, tall=tall)
        else:
            gram = symmetric_product(symmetric_product(polynomial, gram), polynomial)
    return x_NRS


def symmetric_product(
    a: Tensor,
    b: Tensor,
    *,
    add_NRR: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
    diagonal: float = 0.0,
    tall: bool = False,
) -> Tensor:
    """alpha A Bᵀ (tall: Aᵀ B) + beta add + diagonal I of stacks, for A and B that make it symmetric."""
    how = {"alpha": alpha, "beta": beta, "diagonal": diagonal, "tall": tall}
    if has_kernel(a.device, a.size(-1) if tall else a.size(-2)):
        from nanolit.kernels import symmetric_kernel  # imports Triton

        return symmetric_kernel.symmetric_product(a, b, add_NRR, **how)
    return symmetric_product_in_torch(a, b, add_NRR, **how)


def symmetric_product_in_torch(
    a: Tensor, b: Tensor, add_NRR: Tensor | None, *, alpha: float, beta: float, diagonal: float, tall: bool
) -> Tensor:
    """The kernel's twin: it too rounds once, at the end, and mirrors the lower half."""
    a_wide, b_wide = a.float(), b.float()
    total_NRR = alpha * (a_wide.mT @ b_wide if tall else a_wide @ b_wide.mT)
    if add_NRR is not None:
        total_NRR += beta * add_NRR.float()
    total_NRR.diagonal(dim1=-2, dim2=-1).add_(diagonal)
    out_NRR = total_NRR.to(a.dtype)
    return out_NRR.tril() + out_NRR.tril(-1).mT
