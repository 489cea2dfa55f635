"""torch's FlexAttention (https://arxiv.org/abs/2412.05496): made by Triton, it skips masked blocks."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention


def attend(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, *, window: int | None) -> Tensor:
    """Causal attention of T positions to themselves: see attention.attend."""
    compiling = torch.compiler.is_compiling()  # the compiler cannot trace a cache, nor itself
    T, device = q_BTHD.size(1), q_BTHD.device
    function: Callable[..., Any] = flex_attention if compiling else _compiled()
    y_BHTD = function(
        q_BTHD.transpose(1, 2),
        k_BTKD.transpose(1, 2),
        v_BTKD.transpose(1, 2),
        block_mask=(_build_mask if compiling else _cached_mask)(T, window, device),
        enable_gqa=q_BTHD.size(2) != k_BTKD.size(2),
    )
    return y_BHTD.transpose(1, 2)


@functools.cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention)


def _build_mask(T: int, window: int | None, device: torch.device) -> BlockMask:
    def keep(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = query >= key
        return seen if window is None else seen & (query - key <= window)

    return create_block_mask(keep, B=None, H=None, Q_LEN=T, KV_LEN=T, device=device)


@functools.lru_cache(maxsize=8)
def _cached_mask(T: int, window: int | None, device: torch.device) -> BlockMask:
    with torch.inference_mode(False):  # a mask made while sampling must serve a later backward pass too
        return _build_mask(T, window, device)
