"""Rotary positions and the norm of queries and keys in Triton, one pass each way. Twin: in block.Attention.

With u the rotated head, r = 1 / √(mean u² + ε) and y = s r u, the gradient by u is r (s g - y mean(g y) / s),
and rotating back gives that by the projection. Import this where there is Triton, on NVIDIA from Turing on.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

EPSILON = torch.finfo(torch.float32).eps  # that of F.rms_norm, which computes in float32
TOKENS = 16  # of one head, that a program works on: 8 to 64 are within 10% on an H200


def split(
    qkv_BTX: Tensor,
    cos_TE: Tensor,
    sin_TE: Tensor,
    q_BTHD: Tensor,
    k_BTKD: Tensor,
    v_BTKD: Tensor,
    scales: Tensor,
    qk_scale: float,
) -> None:
    """Fills q, k, v and the reciprocal RMS `scales` (B, T, H + K); all are contiguous."""
    B, T, H, D = q_BTHD.shape
    K = k_BTKD.size(2)
    with torch.cuda.device_of(qkv_BTX):
        _split[(triton.cdiv(B * T, TOKENS), H + 2 * K)](
            qkv_BTX,
            cos_TE,
            sin_TE,
            q_BTHD,
            k_BTKD,
            v_BTKD,
            scales,
            B * T,
            T,
            H,
            K,
            qk_scale,
            EPSILON,
            D // 2,  # pyright: ignore[reportArgumentType]
            TOKENS,  # pyright: ignore[reportArgumentType]
        )


def join_gradients(
    d_q_BTHD: Tensor,
    d_k_BTKD: Tensor,
    d_v_BTKD: Tensor,
    q_BTHD: Tensor,
    k_BTKD: Tensor,
    scales: Tensor,
    cos_TE: Tensor,
    sin_TE: Tensor,
    d_qkv_BTX: Tensor,
    qk_scale: float,
    fp8_scale: Tensor | None = None,
) -> None:
    """Fills the projection's gradient, divided by `fp8_scale` if there is one; all are contiguous."""
    B, T, H, D = q_BTHD.shape
    K = k_BTKD.size(2)
    with torch.cuda.device_of(q_BTHD):
        _join_gradients[(triton.cdiv(B * T, TOKENS), H + 2 * K)](
            d_q_BTHD,
            d_k_BTKD,
            d_v_BTKD,
            q_BTHD,
            k_BTKD,
            scales,
            cos_TE,
            sin_TE,
            d_qkv_BTX,
            B * T,
            T,
            H,
            K,
            qk_scale,
            fp8_scale,
            None if fp8_scale is None else torch.finfo(d_qkv_BTX.dtype).max,
            fp8_scale is not None,  # pyright: ignore[reportArgumentType]
            D // 2,  # pyright: ignore[reportArgumentType]
            TOKENS,  # pyright: ignore[reportArgumentType]
        )


@triton.jit
def _split(
    qkv,
    cos,
    sin,
    q,
    k,
    v,
    scales,
    num_tokens,
    T,
    H,
    K,
    qk_scale,
    epsilon,
    E: tl.constexpr,
    TOKENS: tl.constexpr,
):
    head = tl.program_id(1)
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)[:, None]
    pair = tl.arange(0, E)[None, :]
    inside = token < num_tokens
    source = qkv + (token * (H + 2 * K) + head) * (2 * E) + pair
    first = tl.load(source, mask=inside, other=0.0)
    second = tl.load(source + E, mask=inside, other=0.0)
    if head >= H + K:
        target = v + (token * K + head - H - K) * (2 * E) + pair
        tl.store(target, first, mask=inside)
        tl.store(target + E, second, mask=inside)
    else:
        angle = (token % T) * E + pair
        c = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)
        s = tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)
        a, b = first.to(tl.float32), second.to(tl.float32)
        u, w = a * c + b * s, b * c - a * s
        r = tl.rsqrt((tl.sum(u * u, 1) + tl.sum(w * w, 1)) / (2 * E) + epsilon)[:, None]
        tl.store(scales + token * (H + K) + head, r, mask=inside)
        if head < H:
            target = q + (token * H + head) * (2 * E) + pair
        else:
            target = k + (token * K + head - H) * (2 * E) + pair
        tl.store(target, (u * r * qk_scale).to(q.dtype.element_ty), mask=inside)
        tl.store(target + E, (w * r * qk_scale).to(q.dtype.element_ty), mask=inside)


@triton.jit
def _join_gradients(
    d_q,
    d_k,
    d_v,
    q,
    k,
    scales,
    cos,
    sin,
    d_qkv,
    num_tokens,
    T,
    H,
    K,
    qk_scale,
    fp8_scale,
    limit,
    FP8: tl.constexpr,
    E: tl.constexpr,
    TOKENS: tl.constexpr,
):
    head = tl.program_id(1)
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)[:, None]
    pair = tl.arange(0, E)[None, :]
    inside = token < num_tokens
    target = d_qkv + (token * (H + 2 * K) + head) * (2 * E) + pair
    if head >= H + K:
        source = d_v + (token * K + head - H - K) * (2 * E) + pair
        u = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(source + E, mask=inside, other=0.0).to(tl.float32)
    else:
        if head < H:
            place = (token * H + head) * (2 * E) + pair
            normed, gradient = q + place, d_q + place
        else:
            place = (token * K + head - H) * (2 * E) + pair
            normed, gradient = k + place, d_k + place
        y = tl.load(normed, mask=inside, other=0.0).to(tl.float32)
        z = tl.load(normed + E, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(gradient, mask=inside, other=0.0).to(tl.float32)
        h = tl.load(gradient + E, mask=inside, other=0.0).to(tl.float32)
        r = tl.load(scales + token * (H + K) + head, mask=inside, other=0.0)
        mean = ((tl.sum(g * y, 1) + tl.sum(h * z, 1)) / (2 * E) / qk_scale)[:, None]
        g, h = r * (qk_scale * g - y * mean), r * (qk_scale * h - z * mean)
        angle = (token % T) * E + pair
        c = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)
        s = tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)
        u, w = g * c - h * s, g * s + h * c
    if FP8:
        unit = 1 / tl.load(fp8_scale)
        u = tl.minimum(tl.maximum(u * unit, -limit), limit)
        w = tl.minimum(tl.maximum(w * unit, -limit), limit)
    tl.store(target, u.to(d_qkv.dtype.element_ty), mask=inside)
    tl.store(target + E, w.to(d_qkv.dtype.element_ty), mask=inside)
