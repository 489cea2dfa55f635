"""One optimizer step on tensors, in place: Muon for a stack of matrices, AdamW for a flat slice.

Plain functions of tensors, ready for torch.compile(fullgraph=True): what changes from step to step comes as
0-D tensors, so that a schedule never recompiles; only flags and shapes are compiled in.

Legend: N stacked matrices of R rows and S columns. "nanochat, <date>" is an entry of its dev/LOG.md, "#134" a
pull request of KellerJordan/modded-nanogpt.
"""

from typing import Literal

import torch
from torch import Tensor

from nanolit.machine.device import HOPPER, triton_capability

Orthogonalization = Literal["newton_schulz", "polar_express"]
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


def muon_update(
    params_NRS: Tensor,
    grads_NRS: Tensor,
    momentum_NRS: Tensor,
    second_moment: Tensor | None,
    lr: Tensor,
    momentum: Tensor,
    weight_decay: Tensor,
    variance_beta: Tensor,
    *,
    orthogonalization: Orthogonalization,
    dtype: torch.dtype,
    equilibrate_rows: bool,
    normalize_update: bool,
    cautious: bool,
) -> None:
    """Update parameters, momentum and second moment (None: no variance reduction) of N matrices in place.

    Muon (https://kellerjordan.github.io/posts/muon/) moves every singular direction of a matrix by the same
    amount, where a gradient step mostly follows the few largest. The refinements and their order are
    nanochat's of July 2026; each names its source below, and recipe=classic has none of them.
    """
    # Nesterov: the momentum, looked at one step ahead by mixing in the gradient once more
    momentum_NRS.mul_(momentum).add_(grads_NRS * (1 - momentum))
    update_NRS = grads_NRS * (1 - momentum) + momentum_NRS * momentum
    # Norms of rows are taken once: the balance below and the Frobenius norm both follow from them
    row_norms_NR1 = update_NRS.norm(dim=-1, keepdim=True)
    if equilibrate_rows:
        scales_NR1 = row_scales(row_norms_NR1)
        update_NRS, row_norms_NR1 = update_NRS * scales_NR1, row_norms_NR1 * scales_NR1
    # Polar Express against Newton–Schulz: in the noise for nanochat (2026-01-10), 10 of 2,390 steps for
    # modded-nanogpt (#134, n = 7)
    norm_N11 = row_norms_NR1.norm(dim=-2, keepdim=True)
    orthogonalize = {"newton_schulz": newton_schulz, "polar_express": polar_express}[orthogonalization]
    apply_update(
        params_NRS,
        orthogonalize(update_NRS, norm_N11, dtype),
        second_moment,
        lr,
        weight_decay,
        variance_beta,
        normalize_update=normalize_update,
        cautious=cautious,
    )


def row_scales(norms_NR1: Tensor) -> Tensor:
    """Return scales that bring rows to their mean norm (MuonEq, https://arxiv.org/abs/2603.28254)."""
    # Balanced rows give the iteration a better conditioned matrix. "Very slight" gains at d12 and d24,
    # together with Muon+ (nanochat, 4e014d3). It may also be why Muon by heads gained nothing there
    # (2026-08-02).
    return norms_NR1.mean(dim=-2, keepdim=True) / norms_NR1.clamp_min(1e-10)


def newton_schulz(x_NRS: Tensor, norm_N11: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the orthogonalised stack in dtype, which its products have; norms are Frobenius norms."""
    return _iterate((x_NRS / (norm_N11 + 1e-7)).to(dtype), NEWTON_SCHULZ)


def polar_express(x_NRS: Tensor, norm_N11: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the orthogonalised stack in dtype, which its products have; norms are Frobenius norms."""
    x_NRS = x_NRS / (1.01 * norm_N11 + 1e-6)  # 1.01: rounding must not lift a norm above 1
    return _iterate(x_NRS.to(dtype), POLAR_EXPRESS)


def has_kernel(device: torch.device, short_side: int) -> bool:
    """Return True if our Triton kernel takes matrices of this short side: on Hopper, in whole tiles."""
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
        from nanolit.kernels import muon_kernel  # imports Triton

        return muon_kernel.symmetric_product(a, b, add_NRR, **how)
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


def apply_update(
    params_NRS: Tensor,
    orthogonal_NRS: Tensor,
    second_moment: Tensor | None,
    lr: Tensor,
    weight_decay: Tensor,
    variance_beta: Tensor,
    *,
    normalize_update: bool,
    cautious: bool,
) -> None:
    """Apply orthogonalised updates in place: rescale, decay, subtract. The second half of `muon_update`."""
    update_NRS = orthogonal_NRS.to(params_NRS.dtype)
    if normalize_update or second_moment is not None:
        update_NRS = rescale(update_NRS, second_moment, variance_beta, normalize=normalize_update)
    num_rows, num_columns = params_NRS.shape[-2:]
    # A tall matrix (expand: 4C × C) gets √(rows / columns) of the rate, here 2×. Giving it to the wide ones
    # instead was slightly worse at d12 (nanochat, 2026-02-03).
    lr = lr * max(1.0, num_rows / num_columns) ** 0.5
    # Cautious decay (https://arxiv.org/abs/2411.16085): shrink only weights that the update shrinks as well,
    # and never pull against the gradient. "Solid improvements" over plain decay (nanochat, 2026-01-10); 40
    # steps and 2.3 of 139.9 s for modded-nanogpt (#154, n = 10).
    decay_NRS = weight_decay * params_NRS
    if cautious:
        decay_NRS = decay_NRS * (update_NRS * params_NRS >= 0)
    params_NRS.sub_(lr * (update_NRS + decay_NRS))


def rescale(x_NRS: Tensor, second_moment: Tensor | None, beta: Tensor, *, normalize: bool) -> Tensor:
    """Scale matrices, and their rows (columns, where wide); update second_moment in place.

    normalize: give matrices the Frobenius norm of orthogonal ones, √min(R, S). second_moment, (N, R, 1) or
    (where wide) (N, 1, S): divide by its running root mean square, at unchanged Frobenius norm.
    """
    # The matrices are read once, for their mean squares, from which all norms follow
    dim = variance_dim(*x_NRS.shape[-2:])
    mean_square, count = x_NRS.square().mean(dim=dim, keepdim=True), x_NRS.size(dim)
    norm_N11 = (mean_square.sum(dim=(-2, -1), keepdim=True) * count).sqrt()
    scale = torch.ones_like(norm_N11)
    # Muon+ (https://arxiv.org/abs/2602.21545): five steps don't quite converge, so singular values end near 1
    # but not at it; set the norm that exact ones would have. What it is worth: see row_scales.
    if normalize:
        scale = min(x_NRS.shape[-2:]) ** 0.5 / norm_N11.clamp_min(1e-10)
        mean_square, norm_N11 = mean_square * scale.square(), norm_N11 * scale
    # NorMuon (https://arxiv.org/abs/2510.05491): Adam's second moment, one number per neuron instead of per
    # weight, so that no row keeps getting larger steps than the others. The longer side is kept: 3,072
    # numbers for d12's expand. "A very small improvement" (nanochat, 2026-01-10); 4.1 of 143 s for
    # modded-nanogpt, with a corrected rate (#146, n = 10). Its decay is 0.9: as nanochat, which began with
    # 0.95.
    if second_moment is not None:
        second_moment.mul_(beta).add_(mean_square * (1 - beta))
        divided = second_moment.clamp_min(1e-10).rsqrt()
        divided_norm_N11 = (mean_square * divided.square()).sum(dim=(-2, -1), keepdim=True).mul(count).sqrt()
        scale = scale * divided * (norm_N11 / divided_norm_N11.clamp_min(1e-10))
    return x_NRS * scale


def variance_dim(num_rows: int, num_columns: int) -> int:
    """Return the dim that the second moment averages over: the shorter one, so that it keeps the longer."""
    return -1 if num_rows >= num_columns else -2


def adamw_update(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    lr: Tensor,
    beta1: Tensor,
    beta2: Tensor,
    eps: Tensor,
    weight_decay: Tensor,
    correction1: Tensor,
    correction2: Tensor,
) -> None:
    """Apply AdamW in place (https://arxiv.org/abs/1711.05101); the corrections are 1 - beta^t of each moment.

    Arithmetic in float32 or wider, whatever the parameter is stored in; moments in the parameter's dtype.
    """
    # On a GPU embeddings and their moments are bfloat16, so steps below half its resolution are lost. Float32
    # throughout made no difference from d12 to d28 (nanochat, 2026-08-22).
    dtype = torch.promote_types(param.dtype, torch.float32)
    wide_grad = grad.to(dtype)
    mean = exp_avg.to(dtype) * beta1 + wide_grad * (1 - beta1)
    mean_square = exp_avg_sq.to(dtype) * beta2 + wide_grad.square() * (1 - beta2)
    exp_avg.copy_(mean)
    exp_avg_sq.copy_(mean_square)
    # eps is 1e-10 in both recipes, as nanochat, which gives no reason. A token seen once among 524,288 has a
    # gradient of about 2e-6 of its own, which Adam's usual 1e-8 would damp. The danger: where the true
    # gradient is zero, as for the residual scalars at step 1, rounding errors make full steps.
    denominator = (mean_square / correction2).sqrt() + eps
    param.copy_(param.to(dtype) * (1 - lr * weight_decay) - lr / correction1 * mean / denominator)
