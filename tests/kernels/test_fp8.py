"""Products in fp8 beside float32, on a CPU with torch's own arithmetic, on a GPU with the kernels."""

import functools

import pytest
import torch
import torch.nn.functional as F

from nanolit.kernels import fp8, fp8_block, mlp
from nanolit.kernels import loss as loss_module
from nanolit.kernels.attention import rotary_tables
from nanolit.kernels.loss import summed_loss
from nanolit.model.gpt import GPT, GPTConfig
from tests.kernels.test_twins import split_in_torch
from tests.model.tiny_gpt import EVERYTHING

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(
                not torch.cuda.is_available() or bool(fp8.unavailable(torch.device("cuda"))),
                reason="needs a GPU with fp8",
            ),
        ],
    ),
]
# A rounding to e4m3 has a relative error of 2.6% in the mean square, to e5m2 of 5.1%
OF_VALUES, OF_GRADIENTS = 0.045, 0.065


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def gradients(function, *inputs: torch.Tensor, slope: torch.Tensor) -> list[torch.Tensor]:
    leaves = [one.clone().requires_grad_() for one in inputs]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, slope.to(y.dtype))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [fp8.VALUES, fp8.GRADIENTS])
def test_rounding_uses_the_range_and_clamps_what_lies_outside(device, dtype):
    torch.manual_seed(0)
    x_RS = torch.randn(130, 48, device=device).bfloat16() * 1000
    scale = fp8.scale_of(fp8.largest(x_RS), dtype)
    found = fp8.rounded(x_RS, scale, dtype)
    assert found.float().abs().max() == torch.finfo(dtype).max
    assert error(found.float() * scale, x_RS) < (0.03 if dtype == fp8.VALUES else 0.06)
    clamped = fp8.rounded(x_RS, scale / 4, dtype).float() * scale / 4
    torch.testing.assert_close(clamped.abs().max(), x_RS.abs().max().float() / 4)


@pytest.mark.parametrize("device", DEVICES)
def test_zeros_stay_zeros(device):
    zeros = torch.zeros(16, 32, device=device)
    scale = fp8.scale_of(fp8.largest(zeros), fp8.GRADIENTS)
    assert scale > 0
    assert fp8.rounded(zeros, scale, fp8.GRADIENTS).float().abs().max() == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(16, 16), (144, 48), (48, 400), (1024, 1536)])
def test_columns_are_the_rows_turned_over(device, shape):
    every_byte = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    turned = fp8.transposed(every_byte.to(device).view(fp8.VALUES)).view(torch.uint8)
    assert turned.is_contiguous()
    assert torch.equal(turned.cpu(), every_byte.t())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_layer_and_its_gradients_are_near_float32(device, compiled):
    torch.manual_seed(0)
    x_BTC, weight_FC = torch.randn(2, 64, 256, device=device), torch.randn(384, 256, device=device) / 16
    slope = torch.randn(2, 64, 384, device=device)
    function = torch.compile(fp8.linear, fullgraph=True, backend="aot_eager") if compiled else fp8.linear
    expected = gradients(F.linear, x_BTC, weight_FC, slope=slope)
    found = gradients(function, x_BTC.bfloat16(), weight_FC, slope=slope)
    assert [one.dtype for one in found] == [torch.bfloat16, torch.bfloat16, torch.float32]
    for one, other, most in zip(found, expected, (OF_VALUES, OF_GRADIENTS, OF_GRADIENTS), strict=True):
        assert 0 < error(one, other) < most


def test_operators_describe_their_results_truly():
    """torch's own check of shapes and dtypes; the others compute with fp8 numbers, which torch can't."""
    checks, scale = "test_faketensor", torch.ones(())
    x8_NC, weight8_FC, back8_CF = (
        torch.randn(shape).to(fp8.VALUES) for shape in ((32, 128), (256, 128), (128, 256))
    )
    weight8_CF, hidden8_NF = back8_CF.t().contiguous(), torch.rand(32, 256).to(fp8.VALUES)
    ops = torch.ops.nanolit
    for op, inputs in (
        (ops.fp8_transposed, (x8_NC,)),
        (ops.fp8_product, (x8_NC, scale, weight8_FC, scale, torch.bfloat16)),
        (ops.fp8_hidden, (x8_NC, scale, weight8_FC, scale, scale, False)),
        (
            ops.fp8_before_activation,
            (x8_NC.float().to(fp8.GRADIENTS), scale, weight8_CF, scale, hidden8_NF, scale, scale, False),
        ),
    ):
        torch.library.opcheck(op.default, inputs, test_utils=checks)


def test_the_bound_of_normed_rows_costs_no_precision():
    torch.manual_seed(0)
    x_NC = F.rms_norm(torch.randn(64, 256), (256,))
    found = []
    for scale in (fp8.normed_scale(x_NC), fp8.scale_of(fp8.largest(x_NC), fp8.VALUES)):
        found.append(error(fp8.rounded(x_NC, scale, fp8.VALUES).float() * scale, x_NC))
    assert found[0] == pytest.approx(found[1], rel=0.05)


def test_tokens_that_are_no_whole_multiple_go_without_fp8():
    x_NC, weight_FC = torch.randn(15, 128), torch.randn(256, 128)
    assert torch.equal(fp8.linear(x_NC, weight_FC), F.linear(x_NC, weight_FC))
    contract_CF = torch.randn(128, 256)
    torch.testing.assert_close(
        fp8_block.mlp(x_NC, weight_FC, contract_CF, fused=True),
        mlp.relu_squared_mlp(x_NC, weight_FC, contract_CF),
    )


def normed_input(*shape: int, device: str) -> torch.Tensor:
    """Rows as a norm leaves them, a few numbers far from the rest."""
    x = torch.randn(shape, device=device)
    x[..., 3] *= 20
    return F.rms_norm(x, shape[-1:])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("gradient_scale", [1e-9, 1.0])
def test_the_mlp_is_near_float32(device, gradient_scale):
    torch.manual_seed(0)
    x_BTC = normed_input(3, 48, 256, device=device)
    slope = torch.randn(3, 48, 256, device=device) * gradient_scale
    slope *= torch.logspace(-3, 0, 48, device=device)[:, None]  # tokens learn by unequal amounts
    weights = [torch.randn(shape, device=device) / 16 for shape in ((1024, 256), (256, 1024))]
    expected = gradients(mlp.relu_squared_mlp, x_BTC, *weights, slope=slope)
    for fused in {False, mlp.has_kernel(torch.device(device), torch.bfloat16)}:
        found = gradients(
            functools.partial(fp8_block.mlp, fused=fused), x_BTC.bfloat16(), *weights, slope=slope
        )
        for one, other in zip(found, expected, strict=True):
            assert error(one, other) < 0.12, fused


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or not mlp.has_kernel(torch.device("cuda"), torch.bfloat16),
    reason="needs Hopper",
)
@pytest.mark.parametrize("compiled", [False, True])
def test_the_fused_mlp_equals_its_twin(compiled):
    """But for numbers that sums in another order bring to neighbours in fp8."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    x_BTC = normed_input(5, 208, 384, device="cuda").bfloat16()
    slope = torch.randn(5, 208, 384, device="cuda")
    weights = [torch.randn(shape, device="cuda") / 20 for shape in ((1536, 384), (384, 1536))]
    fused = functools.partial(fp8_block.mlp, fused=True)
    found = gradients(
        torch.compile(fused, fullgraph=True) if compiled else fused, x_BTC, *weights, slope=slope
    )
    twin = gradients(functools.partial(fp8_block.mlp, fused=False), x_BTC, *weights, slope=slope)
    for one, other in zip(found, twin, strict=True):
        assert error(one, other) < 0.02


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("H", "K", "D"), [(6, 6, 128), (4, 2, 64)])
def test_heads_are_near_float32(H, K, D, compiled):
    torch._dynamo.reset()
    torch.manual_seed(0)
    x_BTC = normed_input(3, 80, 256, device="cuda")
    weight_XC = torch.randn((H + 2 * K) * D, 256, device="cuda") / 16
    tables = [one.cuda() for one in rotary_tables(80, head_dim=D, base=1e4)]

    def expected(x_BTC, weight_XC):
        return split_in_torch(F.linear(x_BTC, weight_XC), *tables, H=H, K=K)

    def found(x_BTC, weight_XC):
        return fp8_block.project(x_BTC, weight_XC, *tables, heads=H, kv_heads=K, qk_scale=1.2)

    leaves = [one.clone().requires_grad_() for one in (x_BTC, weight_XC)]
    narrow = [one.detach().bfloat16().requires_grad_() for one in leaves]
    results = expected(*leaves), (torch.compile(found, fullgraph=True) if compiled else found)(*narrow)
    slopes = [torch.randn_like(one) * 1e-4 for one in results[0]]
    gradients = torch.autograd.grad(results[0], leaves, slopes)
    narrow_gradients = torch.autograd.grad(results[1], narrow, [one.bfloat16() for one in slopes])
    for one, other in zip((*results[1], *narrow_gradients), (*results[0], *gradients), strict=True):
        assert 0 < error(one.detach(), other.detach()) < 0.08


@pytest.mark.parametrize("device", DEVICES)
def test_the_loss_is_near_float32(device, monkeypatch):
    """By chunks of 64 tokens, the last of 16."""
    monkeypatch.setitem(loss_module.CHUNK_BYTES, device, 64 * 512 * 2)
    torch.manual_seed(0)
    x_NC, weight_VC = torch.randn(208, 128, device=device), torch.randn(512, 128, device=device) / 8
    targets_N = torch.randint(512, (208,), device=device)
    targets_N[7] = -1

    def loss(*leaves: torch.Tensor, in_fp8: bool) -> torch.Tensor:
        return summed_loss(*leaves, targets_N, softcap=15, in_fp8=in_fp8)

    slope = torch.ones((), device=device)
    expected = gradients(lambda *leaves: loss(*leaves, in_fp8=False), x_NC, weight_VC, slope=slope)
    found = gradients(lambda *leaves: loss(*leaves, in_fp8=True), x_NC.bfloat16(), weight_VC, slope=slope)
    assert error(found[0], expected[0]) < 2e-3
    assert found[1][7].abs().max() == 0
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert 0.02 < error(one, other) < 0.08


@pytest.mark.parametrize("device", DEVICES)
def test_the_gradient_by_the_heads_input_keeps_its_size(device):
    """Logits near zero, so that each id but the target has 1 / V: small terms that a fast sum cuts down."""
    generator = torch.Generator().manual_seed(0)
    x_NC, weight_VC = (torch.randn(n, 256, generator=generator).to(device) for n in (512, 4096))
    x_NC, weight_VC = F.rms_norm(x_NC, (256,)).requires_grad_(), 0.0012 * weight_VC
    targets_N = torch.randint(4096, (512,), generator=generator).to(device)
    norms = []
    for in_fp8 in (False, True):
        x_NC.grad = None
        inputs = x_NC.bfloat16() if in_fp8 else x_NC
        summed_loss(inputs, weight_VC, targets_N, softcap=15.0, in_fp8=in_fp8).backward()
        assert x_NC.grad is not None
        norms.append(x_NC.grad.norm().item())
    assert norms[1] == pytest.approx(norms[0], rel=0.01)


def test_a_model_uses_fp8_for_its_large_products_and_only_where_gradients_are_wanted(monkeypatch):
    monkeypatch.setattr(fp8, "unavailable", lambda device: "")
    sizes = EVERYTHING | {"width": 128, "vocab_size": 256, "kv_heads": 4, "context": 32}
    gpt, plain = GPT(GPTConfig(**sizes)), GPT(GPTConfig(**sizes))
    for one in (gpt, plain):
        one.initialize(torch.Generator().manual_seed(0))
        for name, parameter in one.named_parameters():  # outputs are zero at first
            if "output" in name or "contract" in name:
                torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(1))
    gpt.use_fp8()
    assert not any(getattr(module, "in_fp8", False) for name, module in gpt.named_modules() if "gate" in name)
    ids_BT = torch.randint(256, (2, 32), generator=torch.Generator().manual_seed(2))
    losses = [one(ids_BT, ids_BT) for one in (gpt, plain)]
    assert 0 < abs(losses[0] - losses[1]) / losses[1] < 2e-2
    for loss in losses:
        loss.backward()
    pairs = zip(gpt.named_parameters(), plain.parameters(), strict=True)
    errors = {name: error(one.grad, other.grad) for (name, one), other in pairs if other.grad.any()}
    assert len(errors) == len(list(gpt.parameters())) - 1, "all but the smear gate, whose factor is zero yet"
    for name, found in errors.items():  # scalars are sums of numbers that cancel
        assert found < (0.4 if name.endswith("scalars") else 0.15), (name, found)
    with torch.no_grad():
        assert torch.equal(gpt(ids_BT), plain(ids_BT))


def test_a_cpu_is_refused_with_what_helps():
    gpt = GPT(GPTConfig(**EVERYTHING))
    gpt.initialize(torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="this is cpu: give precision=bf16"):
        gpt.use_fp8()
