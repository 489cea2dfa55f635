"""FlashAttention-3 and -4, with windows, as an operator of torch: it compiles and has gradients.

Both are optional packages that users install themselves (docs/speed.md); each is imported when it is first
asked for. Their windows count as ours do: positions before the query's own.
https://github.com/Dao-AILab/flash-attention
"""

import functools
import importlib
import math
import warnings
from typing import Any

import torch
from torch import Tensor

from nanolit.kernels import layout
from nanolit.kernels.layout import NO_WINDOW, readable


def attend(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, *, window: int | None, version: int) -> Tensor:
    """Causal attention of T positions to themselves, by FlashAttention 3 or 4: see attention.attend."""
    return _forward(q_BTHD, k_BTKD, v_BTKD, NO_WINDOW if window is None else window, version)[0]


@torch.library.custom_op("nanolit::flash_attention", mutates_args=())
def _forward(
    q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, window: int, version: int
) -> tuple[Tensor, Tensor]:
    """The mixed values, and the logarithm of each query's sum of exponentials for the backward pass."""
    inputs = [readable(one) for one in (q_BTHD, k_BTKD, v_BTKD)]
    if version == 3:
        out_BTHD, sums_BHT, *_ = _flash3().fwd(*inputs, **_mask3(q_BTHD, window), num_splits=1)
    else:
        out_BTHD, sums_BHT, *_ = _flash4()._flash_attn_fwd(*inputs, **_mask4(q_BTHD, window), return_lse=True)
    return out_BTHD, sums_BHT


@_forward.register_fake
def _(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, window: int, version: int) -> tuple[Tensor, Tensor]:
    B, T, H, _ = q_BTHD.shape
    return _fresh(q_BTHD), torch.empty(B, H, T, dtype=torch.float32, device=q_BTHD.device)


@torch.library.custom_op("nanolit::flash_attention_backward", mutates_args=())
def _backward(
    d_out_BTHD: Tensor,
    q_BTHD: Tensor,
    k_BTKD: Tensor,
    v_BTKD: Tensor,
    out_BTHD: Tensor,
    sums_BHT: Tensor,
    window: int,
    version: int,
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, out, d_out = (readable(one) for one in (q_BTHD, k_BTKD, v_BTKD, out_BTHD, d_out_BTHD))
    d_q, d_k, d_v = _fresh(q), _fresh(k), _fresh(v)
    written = {"dq": d_q, "dk": d_k, "dv": d_v}
    if version == 3:
        settings = written | _mask3(q, window) | _order()
        _flash3().bwd(d_out, q, k, v, out, sums_BHT, **settings)
    else:
        settings = written | _mask4(q, window) | _order()
        _flash4()._flash_attn_bwd(q, k, v, out, d_out, sums_BHT, **settings)
    return d_q, d_k, d_v


@_backward.register_fake
def _(
    d_out_BTHD: Tensor,
    q_BTHD: Tensor,
    k_BTKD: Tensor,
    v_BTKD: Tensor,
    out_BTHD: Tensor,
    sums_BHT: Tensor,
    window: int,
    version: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return _fresh(q_BTHD), _fresh(k_BTKD), _fresh(v_BTKD)


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q_BTHD, k_BTKD, v_BTKD, ctx.window, ctx.version = inputs
    ctx.save_for_backward(q_BTHD, k_BTKD, v_BTKD, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, d_out_BTHD: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(d_out_BTHD, *ctx.saved_tensors, ctx.window, ctx.version), None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def _flash3() -> Any:
    importlib.import_module("flash_attn_interface")  # registers the operators
    return torch.ops.flash_attn_3


@functools.cache
def _flash4() -> Any:
    warnings.filterwarnings("ignore", "Argument aux_data", UserWarning)  # its compiler's, of every kernel
    return importlib.import_module("flash_attn.cute.interface")


def _mask3(q_BTHD: Tensor, window: int) -> dict[str, Any]:
    return {
        "softmax_scale": 1 / math.sqrt(q_BTHD.size(-1)),
        "is_causal": True,
        "window_size_left": window,
        "window_size_right": 0,
    }


def _mask4(q_BTHD: Tensor, window: int) -> dict[str, Any]:
    return {
        "softmax_scale": 1 / math.sqrt(q_BTHD.size(-1)),
        "causal": True,
        "window_size_left": None if window == NO_WINDOW else window,
        "window_size_right": 0,
    }


def _order() -> dict[str, bool]:
    return {"deterministic": True} if layout.in_order() else {}


def _fresh(x_BTHD: Tensor) -> Tensor:
    return torch.empty(x_BTHD.shape, dtype=x_BTHD.dtype, device=x_BTHD.device)
