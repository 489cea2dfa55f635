"""cuDNN's fused attention, with windows, as an operator of torch: it compiles and has gradients.

Needs nvidia-cudnn-frontend (`pip install 'nanolit[cudnn]'`) and a GPU from Ampere on. A graph is built once
for each shape, layout and window; cuDNN reads any strides, so that nothing is transposed or copied.
https://docs.nvidia.com/deeplearning/cudnn/frontend/latest/operations/Attention.html
"""

import functools
import math
from typing import Any

import cudnn  # pyright: ignore[reportMissingImports]
import torch
from torch import Tensor

from nanolit.kernels import layout
from nanolit.kernels.layout import NO_WINDOW, readable

Layout = tuple[tuple[int, ...], tuple[int, ...]]  # shape and strides, in cuDNN's order B, H, T, D
DTYPES = {torch.bfloat16: cudnn.data_type.BFLOAT16, torch.float16: cudnn.data_type.HALF}
Q, K, V, OUT, STATS, D_OUT, D_Q, D_K, D_V = range(1, 10)  # how the graphs' tensors are addressed


def attend(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, *, window: int | None) -> Tensor:
    """Causal attention of T positions to themselves: see attention.attend."""
    return _forward(q_BTHD, k_BTKD, v_BTKD, NO_WINDOW if window is None else window)[0]


@torch.library.custom_op("nanolit::cudnn_attention", mutates_args=())
def _forward(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """The mixed values, and the logarithm of each query's sum of exponentials for the backward pass."""
    q_BTHD, k_BTKD, v_BTKD = (readable(one) for one in (q_BTHD, k_BTKD, v_BTKD))
    out_BTHD, stats = _empty_results(q_BTHD)
    graph = _forward_graph(
        q_BTHD.device, q_BTHD.dtype, *(_layout(one) for one in (q_BTHD, k_BTKD, v_BTKD, out_BTHD)), window
    )
    tensors = {Q: q_BTHD, K: k_BTKD, V: v_BTKD, OUT: out_BTHD, STATS: stats}
    _execute(graph, tensors, q_BTHD.device)
    return out_BTHD, stats


@_forward.register_fake
def _(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, window: int) -> tuple[Tensor, Tensor]:
    return _empty_results(q_BTHD)


@torch.library.custom_op("nanolit::cudnn_attention_backward", mutates_args=())
def _backward(
    d_out_BTHD: Tensor,
    q_BTHD: Tensor,
    k_BTKD: Tensor,
    v_BTKD: Tensor,
    out_BTHD: Tensor,
    stats: Tensor,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = [readable(one) for one in (q_BTHD, k_BTKD, v_BTKD, out_BTHD, d_out_BTHD)]
    gradients = tuple(torch.empty(one.shape, dtype=one.dtype, device=one.device) for one in inputs[:3])
    layouts = tuple(_layout(one) for one in (*inputs, *gradients))
    in_order = layout.in_order()
    graph = _backward_graph(q_BTHD.device, q_BTHD.dtype, layouts, window, in_order)
    names = (Q, K, V, OUT, D_OUT, D_Q, D_K, D_V)
    tensors = dict(zip(names, (*inputs, *gradients), strict=True)) | {STATS: stats}
    _execute(graph, tensors, q_BTHD.device)
    return gradients  # pyright: ignore[reportReturnType]


@_backward.register_fake
def _(
    d_out_BTHD: Tensor,
    q_BTHD: Tensor,
    k_BTKD: Tensor,
    v_BTKD: Tensor,
    out_BTHD: Tensor,
    stats: Tensor,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    fresh = [torch.empty(one.shape, dtype=one.dtype, device=one.device) for one in (q_BTHD, k_BTKD, v_BTKD)]
    return fresh[0], fresh[1], fresh[2]


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q_BTHD, k_BTKD, v_BTKD, ctx.window = inputs
    ctx.save_for_backward(q_BTHD, k_BTKD, v_BTKD, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, d_out_BTHD: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(d_out_BTHD, *ctx.saved_tensors, ctx.window), None


_forward.register_autograd(_differentiate, setup_context=_keep)


@functools.lru_cache(maxsize=256)
def _forward_graph(
    device: torch.device, dtype: torch.dtype, q: Layout, k: Layout, v: Layout, out: Layout, window: int
) -> Any:
    graph = _new_graph(device, dtype)
    output, stats = graph.sdpa(
        name="attention",
        q=_tensor(graph, Q, q),
        k=_tensor(graph, K, k),
        v=_tensor(graph, V, v),
        generate_stats=True,
        **_mask(q, window),
    )
    _give(output, OUT, out)
    _give(stats, STATS, _stats_layout(q)).set_data_type(cudnn.data_type.FLOAT)
    return _built(graph)


@functools.lru_cache(maxsize=256)
def _backward_graph(
    device: torch.device, dtype: torch.dtype, layouts: tuple[Layout, ...], window: int, in_order: bool
) -> Any:
    graph = _new_graph(device, dtype)
    q, k, v, out, d_out = (
        _tensor(graph, name, layout) for name, layout in zip((Q, K, V, OUT, D_OUT), layouts[:5], strict=True)
    )
    stats = _tensor(graph, STATS, _stats_layout(layouts[0])).set_data_type(cudnn.data_type.FLOAT)
    gradients = graph.sdpa_backward(
        name="attention_backward",
        q=q,
        k=k,
        v=v,
        o=out,
        dO=d_out,
        stats=stats,
        **({"use_deterministic_algorithm": True} if in_order else {}),
        **_mask(layouts[0], window),
    )
    for gradient, name, of_gradient in zip(gradients, (D_Q, D_K, D_V), layouts[5:], strict=True):
        _give(gradient, name, of_gradient)
    return _built(graph)


def _mask(q: Layout, window: int) -> dict[str, Any]:
    """Return the options of both graphs: causal, and as far back as the window; scores scaled by 1/√D.

    cuDNN's left bound counts the query's own position, our window does not.
    """
    bound = {} if window == NO_WINDOW else {"diagonal_band_left_bound": window + 1}
    return {
        "attn_scale": 1 / math.sqrt(q[0][3]),
        "diagonal_alignment": cudnn.diagonal_alignment.TOP_LEFT,
        "diagonal_band_right_bound": 0,
        **bound,
    }


def _new_graph(device: torch.device, dtype: torch.dtype) -> Any:
    return cudnn.pygraph(
        io_data_type=DTYPES[dtype],
        intermediate_data_type=cudnn.data_type.FLOAT,
        compute_data_type=cudnn.data_type.FLOAT,
        handle=_handle(device),
    )


def _tensor(graph: Any, name: int, layout: Layout) -> Any:
    return graph.tensor(dim=list(layout[0]), stride=list(layout[1])).set_uid(name)


def _give(tensor: Any, name: int, layout: Layout) -> Any:
    shape, strides = layout
    return tensor.set_output(True).set_uid(name).set_dim(list(shape)).set_stride(list(strides))


def _built(graph: Any) -> tuple[Any, int]:
    """The graph with its kernel chosen, and the bytes of memory that it works in."""
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.check_support()
    graph.build_plans()
    return graph, graph.get_workspace_size()


def _execute(built: tuple[Any, int], tensors: dict[int, Tensor], device: torch.device) -> None:
    graph, workspace_bytes = built
    handle = _handle(device)
    cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream(device).cuda_stream)
    workspace = torch.empty(max(1, workspace_bytes), dtype=torch.uint8, device=device)
    graph.execute(tensors, workspace, handle=handle)


@functools.cache
def _handle(device: torch.device) -> Any:
    with torch.cuda.device(device):
        return cudnn.create_handle()


def _layout(x_BTHD: Tensor) -> Layout:
    x_BHTD = x_BTHD.transpose(1, 2)
    return tuple(x_BHTD.shape), x_BHTD.stride()


def _stats_layout(q: Layout) -> Layout:
    B, H, T, _ = q[0]
    return (B, H, T, 1), (H * T, T, 1, 1)


def _empty_results(q_BTHD: Tensor) -> tuple[Tensor, Tensor]:
    B, T, H, _ = q_BTHD.shape
    out_BTHD = torch.empty(q_BTHD.shape, dtype=q_BTHD.dtype, device=q_BTHD.device)
    return out_BTHD, torch.empty(B, H, T, 1, dtype=torch.float32, device=q_BTHD.device)
