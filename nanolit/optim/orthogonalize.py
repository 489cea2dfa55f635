"""The nearest semi-orthogonal matrix, for a stack of same-shape matrices at once, by matrix products alone.

Legend: N stacked matrices of R rows and S columns. Both iterations apply five odd quintic polynomials
a*X + b*X(X'X) + c*X(X'X)^2 that push every singular value towards 1.
"""

import torch
from torch import Tensor

# Slope at zero maximised, singular values end in about [0.7, 1.2]: https://kellerjordan.github.io/posts/muon/
NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5

# Best polynomial of each step (Polar Express, https://arxiv.org/abs/2505.16932), in nanochat's digits
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def newton_schulz(x_NRS: Tensor, dtype: torch.dtype) -> Tensor:
    """The orthogonalised stack, computed and returned in dtype (bfloat16 where matrix units take it)."""
    x_NRS = x_NRS.to(dtype)
    x_NRS = x_NRS / (_frobenius_norm(x_NRS) + 1e-7)
    return _iterate(x_NRS, NEWTON_SCHULZ)


def polar_express(x_NRS: Tensor, dtype: torch.dtype) -> Tensor:
    """The orthogonalised stack, computed and returned in dtype (bfloat16 where matrix units take it)."""
    x_NRS = x_NRS.to(dtype)
    x_NRS = x_NRS / (1.01 * _frobenius_norm(x_NRS) + 1e-6)  # 1.01: rounding must not lift a norm above 1
    return _iterate(x_NRS, POLAR_EXPRESS)


def _iterate(x_NRS: Tensor, coefficients: tuple[tuple[float, float, float], ...]) -> Tensor:
    """With the products of the short side, the cheaper ones; a tall matrix is multiplied from the right."""
    tall = x_NRS.size(-2) > x_NRS.size(-1)
    for a, b, c in coefficients:
        gram = x_NRS.mT @ x_NRS if tall else x_NRS @ x_NRS.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factors = (x_NRS, polynomial) if tall else (polynomial, x_NRS)
        x_NRS = torch.baddbmm(x_NRS, *factors, beta=a)
    return x_NRS


def _frobenius_norm(x_NRS: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(x_NRS, keepdim=True)
