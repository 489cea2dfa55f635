"""Kernels of ours beside their twins in torch: the MLP, and heads from a merged projection."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from nanolit.kernels import heads, mlp
from nanolit.kernels.attention import rotary_tables, rotate

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# Triton's interpreter runs the kernel on a CPU; it must be switched on before Triton is imported
INTERPRETED = """
import torch
from nanolit.kernels import heads_kernel
from tests.kernels.test_twins import projection, split_in_torch
qkv_BTX, cos_TE, sin_TE = projection(B=2, T=21, H=3, K=1, D=16)
expected = split_in_torch(qkv_BTX, cos_TE, sin_TE, H=3, K=1)
results = [torch.full_like(one, float("nan")) for one in expected] + [torch.full((2, 21, 4), float("nan"))]
heads_kernel.split(qkv_BTX.detach(), cos_TE, sin_TE, *results, 1.2)
for one, other in zip(results, expected):
    torch.testing.assert_close(one, other)
slopes = [torch.randn_like(one) for one in expected]
gradient_BTX = torch.full_like(qkv_BTX, float("nan")).detach()
q, k, _, scales = results
heads_kernel.join_gradients(*slopes, q, k, scales, cos_TE, sin_TE, gradient_BTX, 1.2)
expected_BTX = torch.autograd.grad(expected, qkv_BTX, slopes)[0]
torch.testing.assert_close(gradient_BTX, expected_BTX, rtol=1e-4, atol=1e-5)
scale = expected_BTX.abs().max() / 57344
rounded_BTX = torch.full_like(gradient_BTX, float("nan"), dtype=torch.float8_e5m2)
heads_kernel.join_gradients(*slopes, q, k, scales, cos_TE, sin_TE, rounded_BTX, 1.2, scale)
near = (rounded_BTX.float() * scale - expected_BTX).abs() <= 0.126 * expected_BTX.abs()
assert near.float().mean() > 0.85  # the interpreter rounds 1.9 to 1: what carries into the exponent is lost
"""


def projection(*, B: int, T: int, H: int, K: int, D: int) -> tuple[torch.Tensor, ...]:
    qkv_BTX = torch.randn(B, T, (H + 2 * K) * D, generator=torch.Generator().manual_seed(0))
    return qkv_BTX.requires_grad_(), *rotary_tables(T, head_dim=D, base=1e4)


def split_in_torch(qkv_BTX, cos_TE, sin_TE, *, H: int, K: int) -> tuple[torch.Tensor, ...]:
    q, k, v = qkv_BTX.unflatten(-1, (H + 2 * K, -1)).split((H, K, K), dim=2)
    q, k = (1.2 * F.rms_norm(rotate(one, cos_TE, sin_TE), one.shape[-1:]) for one in (q, k))
    return q, k, v


@pytest.mark.skipif(
    not importlib.util.find_spec("triton"), reason="needs Triton, which torch brings on Linux"
)
def test_the_kernel_of_heads_equals_its_twin_in_tritons_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, check=True, timeout=120)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("H", "K", "D"), [(6, 6, 128), (4, 1, 64)])
def test_heads_equal_float32_on_the_gpu(H: int, K: int, D: int):
    inputs = [one.detach().cuda() for one in projection(B=3, T=77, H=H, K=K, D=D)]
    wide, narrow = inputs[0].clone().requires_grad_(), inputs[0].bfloat16().requires_grad_()
    expected = split_in_torch(wide, *inputs[1:], H=H, K=K)
    tables = [one.bfloat16() for one in inputs[1:]]
    found = heads.split_heads(narrow, *tables, heads=H, kv_heads=K, qk_scale=1.2)
    slopes = [torch.randn_like(one) for one in expected]
    expected_gradient = torch.autograd.grad(expected, wide, slopes)[0]
    found_gradient = torch.autograd.grad(found, narrow, [one.bfloat16() for one in slopes])[0]
    for one, other in zip((*found, found_gradient), (*expected, expected_gradient), strict=True):
        assert (one.float() - other).norm() / other.norm() < 1e-2


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_the_mlp_equals_float32_on_the_gpu(compiled: bool):
    """With a number of rows that no tile divides."""
    if not mlp.has_kernel(torch.device("cuda"), torch.bfloat16):
        pytest.skip("the kernel is for Hopper")
    torch._dynamo.reset()
    torch.manual_seed(0)
    x_BTC = torch.randn(3, 333, 192, device="cuda")
    weights = [torch.randn(shape, device="cuda") * 192**-0.5 for shape in ((768, 192), (192, 768))]
    slope_BTC = torch.randn_like(x_BTC)

    def run(function, x_BTC: torch.Tensor) -> list[torch.Tensor]:
        leaves = [one.clone().requires_grad_() for one in (x_BTC, *weights)]
        y_BTC = function(*leaves)
        return [y_BTC, *torch.autograd.grad(y_BTC, leaves, slope_BTC.to(y_BTC.dtype))]

    fused = torch.compile(mlp.fused_mlp, fullgraph=True) if compiled else mlp.fused_mlp
    for one, other in zip(run(fused, x_BTC.bfloat16()), run(mlp.relu_squared_mlp, x_BTC), strict=True):
        assert (one.float() - other).norm() / other.norm() < 1e-2
