"""Cross-entropy from the last hidden state, in chunks of rows, so the full logits are never stored.

The loss of a chunk is a sum, so its gradient is known as soon as its logits are: it is computed at once, in
their memory, and the backward pass only scales it (as in Liger-Kernel, https://arxiv.org/abs/2410.10989).

Letters: N tokens, C width, V vocabulary; M, the tokens of a chunk.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from nanolit.kernels import fp8
from nanolit.machine.device import IGNORED, TURING, triton_capability

# Softcapped logits are bounded, so their exponentials can be summed without finding the largest first: one
# pass over the logits less. Up to this cap float32 holds the sum of e^70 over any vocabulary; the recipes
# have 15.
LARGEST_SOFTCAP = 70.0
# Bytes of a chunk's logits. All of them at once would be 4 GiB for 65,536 tokens in bfloat16, where all of a
# d12 takes 18 GiB. A CPU keeps a chunk in cache (2 MiB: measured best of 0.5 to 8 for V = 4,096); a GPU wants
# large products, and half a GiB keeps them within 2% of full speed.
CHUNK_BYTES = {"cpu": 2 << 20, "cuda": 1 << 29, "mps": 1 << 28}


def summed_loss(
    x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, *, softcap: float, in_fp8: bool = False
) -> Tensor:
    """Return the summed cross-entropy of softcap·tanh(x Wᵀ / softcap) over learned tokens, float32, in nats.

    The product is in x's dtype, what follows in float32; the weight's gradient is summed in float32. in_fp8
    rounds the operands of all three products, where gradients are wanted and the tokens are fp8.whole.
    """
    # A sum, not a mean: a micro-batch doesn't know how many tokens the whole step learns. The caller divides
    # by the step's number over all ranks (phases/core.py).
    if torch.is_grad_enabled() and (x_NC.requires_grad or weight_VC.requires_grad):
        rounded = [*_rounded(x_NC), *_rounded(weight_VC)] if in_fp8 and fp8.whole(x_NC) else []
        return _loss_and_gradients(x_NC, weight_VC, targets_N, softcap, rounded)[0]
    return token_losses(x_NC, weight_VC, targets_N, softcap=softcap).sum()


def _rounded(values: Tensor) -> tuple[Tensor, Tensor]:
    values = values.detach()
    scale = fp8.scale_of(fp8.largest(values), fp8.VALUES)
    return fp8.rounded(values, scale, fp8.VALUES), scale


def token_losses(x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, *, softcap: float) -> Tensor:
    """Return every token's cross-entropy, float32 (N,), 0 where it is ignored; without gradients."""
    return _token_losses(x_NC.detach(), weight_VC.detach(), targets_N, softcap)


@torch.library.custom_op("nanolit::token_losses", mutates_args=())
def _token_losses(x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, softcap: float) -> Tensor:
    nats_N = torch.empty(len(x_NC), dtype=torch.float32, device=x_NC.device)
    weight_CV = weight_VC.to(x_NC.dtype).t()
    for rows, logits_MV, _ in _chunks(x_NC, weight_VC):
        torch.mm(x_NC[rows], weight_CV, out=logits_MV)
        nats_N[rows] = _nats(logits_MV, targets_N[rows], softcap)
    return nats_N


@_token_losses.register_fake
def _(x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, softcap: float) -> Tensor:
    return torch.empty(len(x_NC), dtype=torch.float32, device=x_NC.device)


@torch.library.custom_op("nanolit::loss_and_gradients", mutates_args=())
def _loss_and_gradients(
    x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, softcap: float, rounded: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summed loss, its gradient by x in x's dtype, and by the weight in float32.

    `rounded` holds x, its scale, the weight and its scale in fp8; empty outside fp8.
    """
    nats_N = torch.empty(len(x_NC), dtype=torch.float32, device=x_NC.device)
    x_gradient_NC = torch.empty_like(x_NC)
    weight_gradient_VC = torch.empty_like(weight_VC, dtype=torch.float32)
    if not len(x_NC):
        weight_gradient_VC.zero_()  # otherwise the first chunk overwrites it
    if rounded:
        _fill_in_fp8(nats_N, x_gradient_NC, weight_gradient_VC, targets_N, softcap, *rounded)
        return nats_N.sum(), x_gradient_NC, weight_gradient_VC
    # Three products a chunk: logits, gradient by x, gradient by the weight. The backward pass has none left.
    weight_VC = weight_VC.to(x_NC.dtype)
    for rows, logits_MV, spare_MV in _chunks(x_NC, weight_VC):
        torch.mm(x_NC[rows], weight_VC.t(), out=logits_MV)
        nats_N[rows], factors_M = to_gradient(logits_MV, targets_N[rows], softcap=softcap, spare=spare_MV)
        gradient_MV, factors_M1 = logits_MV, factors_M[:, None]
        # The tokens' factors scale the (M, C) result: V / C times fewer numbers than the gradient has
        torch.mm(gradient_MV, weight_VC, out=x_gradient_NC[rows]).mul_(factors_M1)
        x_MC = torch.mul(x_NC[rows], factors_M1, out=torch.empty_like(x_NC[rows]))
        _add_product(weight_gradient_VC, gradient_MV.t(), x_MC, beta=int(rows.start > 0))
    return nats_N.sum(), x_gradient_NC, weight_gradient_VC


@_loss_and_gradients.register_fake
def _(
    x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, softcap: float, rounded: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    total = torch.empty((), dtype=torch.float32, device=x_NC.device)
    return total, torch.empty_like(x_NC), torch.empty_like(weight_VC, dtype=torch.float32)


def _fill_in_fp8(
    nats_N: Tensor,
    x_gradient_NC: Tensor,
    weight_gradient_VC: Tensor,
    targets_N: Tensor,
    softcap: float,
    *operands: Tensor,
) -> None:
    """Write the losses and both gradients, from x, its scale, the weight and its scale in fp8.

    A token's gradient by its logits lies between -1 and 1, so its scale is known without a look for its
    largest number.
    """
    x8_NC, x_scale, weight8_VC, weight_scale = operands
    x8_CN, weight8_CV = fp8.transposed(x8_NC), fp8.transposed(weight8_VC)
    unit = torch.full((), 1 / fp8.GRADIENT_UNITS, device=x8_NC.device)
    for rows, logits_MV, spare_MV in _chunks(x_gradient_NC, weight8_VC):
        fp8.product_into(logits_MV, x8_NC[rows], x_scale, weight8_VC, weight_scale, x_gradient_NC.dtype)
        gradient_MV = torch.empty_like(logits_MV, dtype=fp8.GRADIENTS)
        nats_N[rows] = to_fp8_gradient(
            logits_MV, targets_N[rows], gradient_MV, softcap=softcap, spare=spare_MV
        )
        # -1 at the target, and 1 / V at most other ids: summed the fast way, d4 with 4,096 ids had gradients
        # of 0.95 times their size below the head (H200)
        by_x = gradient_MV, unit, weight8_CV, weight_scale
        fp8.product_into(x_gradient_NC[rows], *by_x, x_gradient_NC.dtype, uneven=True)
        by_weight = fp8.transposed(gradient_MV), unit, x8_CN[:, rows], x_scale
        if rows.start == 0:
            fp8.product_into(weight_gradient_VC, *by_weight, weight_gradient_VC.dtype)
        else:
            weight_gradient_VC += fp8.product_into(None, *by_weight, weight_gradient_VC.dtype)


def _keep_gradients(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.weight_dtype, ctx.num_rounded = inputs[1].dtype, len(inputs[-1])
    ctx.mark_non_differentiable(*output[1:])


def _scale_gradients(ctx, total_gradient: Tensor, *_: Tensor) -> tuple:
    x_gradient_NC, weight_gradient_VC = ctx.saved_tensors
    x_gradient_NC = (x_gradient_NC.float() * total_gradient).to(x_gradient_NC.dtype)
    weight_gradient_VC = (weight_gradient_VC * total_gradient).to(ctx.weight_dtype)
    return x_gradient_NC, weight_gradient_VC, None, None, [None] * ctx.num_rounded


_loss_and_gradients.register_autograd(_scale_gradients, setup_context=_keep_gradients)


def to_gradient(
    logits_MV: Tensor, targets_M: Tensor, *, softcap: float, spare: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return each token's cross-entropy and a factor; raw logits become their gradient without the factor.

    With t = tanh(z / c), e = exp(c t) and its sum S over the vocabulary, the gradient by z is
    (e - S onehot) (1 - t²) / S. `spare` is memory of the logits' shape that may be overwritten.
    """
    # Everything but 1 / S is known when a logit is first read, so the gradient is written in the same pass
    # and the factor (0 for ignored tokens) is multiplied into the products' results. tanh and exp, the
    # kernel's bound, are then computed once a logit: 0.273 instead of 0.38 ms for 8,192 rows of 32,768, a
    # plain copy takes 0.257 (one H200; LOG.md, 2026-11-23).
    if triton_capability(logits_MV.device) >= TURING:
        from nanolit.kernels import softcap_kernel  # imports Triton

        return softcap_kernel.to_gradient(logits_MV, targets_M, softcap=softcap)
    return to_gradient_in_torch(logits_MV, targets_M, softcap=softcap, spare=spare)


def to_fp8_gradient(
    logits_MV: Tensor,
    targets_M: Tensor,
    gradient_MV: Tensor,
    *,
    softcap: float,
    spare: Tensor | None = None,
) -> Tensor:
    """Return the tokens' cross-entropy; write the gradient by raw logits to gradient_MV, in GRADIENT_UNITS.

    The contents of logits_MV are undefined afterwards.
    """
    if triton_capability(logits_MV.device) >= TURING:
        from nanolit.kernels import softcap_kernel  # imports Triton

        return softcap_kernel.to_fp8_gradient(logits_MV, targets_M, gradient_MV, softcap=softcap)
    nats_M, factors_M = to_gradient_in_torch(logits_MV, targets_M, softcap=softcap, spare=spare)
    gradient_MV.copy_(logits_MV.float() * (fp8.GRADIENT_UNITS * factors_M[:, None]))
    return nats_M


def to_gradient_in_torch(
    logits_MV: Tensor, targets_M: Tensor, *, softcap: float, spare: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute `to_gradient` in plain torch: the kernel's twin, and what runs without Triton."""
    # By the sigmoid s of 2 z / c: t = 2 s - 1 and 1 - t² = 4 (s - s²). It costs a CPU a third of tanh's time
    # and moves a logit by 2e-6 at most.
    learned_M = targets_M != IGNORED
    index_M1 = targets_M.clamp(min=0)[:, None]
    sigmoid_MV = _half_tanh(logits_MV, softcap)
    e_MV = torch.sub(sigmoid_MV, 0.5, out=spare)
    # Here e_MV is t / 2, after the next statement e itself, and after scatter_add_ e - S onehot
    at_target_M = e_MV.gather(1, index_M1)[:, 0] * (2 * softcap)
    sum_M = e_MV.mul_(2 * softcap).exp_().sum(1)
    e_MV.scatter_add_(1, index_M1, -sum_M[:, None])
    slope_MV = sigmoid_MV.addcmul_(sigmoid_MV, sigmoid_MV, value=-1)
    torch.mul(e_MV, slope_MV, out=logits_MV)
    return (sum_M.log() - at_target_M) * learned_M, 4 * learned_M / sum_M


def _nats(logits_MV: Tensor, targets_M: Tensor, softcap: float) -> Tensor:
    """Return the tokens' cross-entropy; may overwrite the raw logits."""
    capped_MV = _half_tanh(logits_MV, softcap).sub_(0.5).mul_(2 * softcap)
    at_target_M = capped_MV.gather(1, targets_M.clamp(min=0)[:, None])[:, 0]
    return (capped_MV.exp_().sum(1).log() - at_target_M) * (targets_M != IGNORED)


def _half_tanh(logits_MV: Tensor, softcap: float) -> Tensor:
    """Return (1 + tanh(logits / softcap)) / 2 in float32 or wider, in place if the logits have that dtype."""
    wide_MV = logits_MV if logits_MV.dtype == torch.float64 else logits_MV.float()
    return wide_MV.mul_(2 / softcap).sigmoid_()


def _add_product(total_VC: Tensor, a_VM: Tensor, b_MC: Tensor, *, beta: int) -> None:
    """Set total to beta total + a b, summed in total's float32 whatever the factors' dtype."""
    # One chunk's weight gradient is small beside the total of many: added in bfloat16 it would be rounded
    # away
    if a_VM.dtype == total_VC.dtype:
        total_VC.addmm_(a_VM, b_MC, beta=beta)
    elif a_VM.is_cuda:
        torch.addmm(total_VC, a_VM, b_MC, out_dtype=total_VC.dtype, beta=beta, out=total_VC)
    elif beta:
        total_VC.add_(a_VM @ b_MC)
    else:
        total_VC.copy_(a_VM @ b_MC)


def _chunks(x_NC: Tensor, weight_VC: Tensor) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Yield each chunk's rows, memory for its logits, and as much again for float32 arithmetic on a CPU."""
    # As many tokens as CHUNK_BYTES of logits hold, in whole multiples of what fp8 needs
    wanted = CHUNK_BYTES.get(x_NC.device.type, CHUNK_BYTES["cpu"])
    multiples = wanted // (len(weight_VC) * x_NC.element_size() * fp8.MULTIPLE)
    size = max(1, min(len(x_NC), max(1, multiples) * fp8.MULTIPLE))
    # Allocated once for all chunks: fresh pages cost a CPU as much as the arithmetic
    logits_MV = x_NC.new_empty(size, len(weight_VC))
    reusable = x_NC.dtype in (torch.float32, torch.float64) and not x_NC.is_cuda
    spare_MV = torch.empty_like(logits_MV) if reusable else None
    for start in range(0, len(x_NC), size):
        num = min(size, len(x_NC) - start)
        yield slice(start, start + num), logits_MV[:num], None if spare_MV is None else spare_MV[:num]
