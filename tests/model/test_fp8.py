"""Products in fp8 beside float32, on a CPU with torch's own arithmetic, on a GPU with the kernels."""

import pytest
import torch
import torch.nn.functional as F
from tiny_gpt import EVERYTHING

from nanolit.model import fp8, fp8_mlp, mlp
from nanolit.model.gpt import GPT
from nanolit.model.loss import summed_loss

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
@pytest.mark.parametrize("shape", [(16, 16), (130, 48), (384, 640)])
def test_rounding_keeps_rows_columns_and_the_largest_number(device, dtype, shape):
    torch.manual_seed(0)
    x_RS = torch.randn(shape, device=device).bfloat16() * 1000
    found = fp8.rounded(x_RS, dtype)
    assert found.rows_RS.dtype == dtype
    assert torch.equal(found.rows_RS.float(), found.columns_SR.t().float())
    assert found.rows_RS.float().abs().max() == torch.finfo(dtype).max
    assert error(found.rows_RS.float() * found.scale, x_RS) < (0.03 if dtype == fp8.VALUES else 0.06)
    twin = fp8.rounded_in_torch(x_RS, dtype, x_RS.abs().max().float())
    assert (found.rows_RS.float() != twin.rows_RS.float()).float().mean() < 1e-3, "ties apart"


@pytest.mark.parametrize("device", DEVICES)
def test_zeros_stay_zeros(device):
    found = fp8.rounded(torch.zeros(16, 32, device=device), fp8.GRADIENTS)
    assert found.rows_RS.float().abs().max() == 0
    assert found.scale > 0


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


def test_the_operator_describes_its_results_truly():
    """torch's own checks of a custom operator, but the one that sums all results, which fp8 can't."""
    inputs = (torch.randn(32, 128).requires_grad_(), torch.randn(256, 128).requires_grad_())
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.nanolit.fp8_linear.default, inputs, test_utils=checks)


def test_tokens_that_are_no_whole_multiple_go_without_fp8():
    x_NC, weight_FC = torch.randn(15, 128), torch.randn(256, 128)
    assert torch.equal(fp8.linear(x_NC, weight_FC), F.linear(x_NC, weight_FC))
    contract_CF = torch.randn(128, 256)
    torch.testing.assert_close(
        fp8_mlp.fused(x_NC, weight_FC, contract_CF), mlp.relu_squared_mlp(x_NC, weight_FC, contract_CF)
    )


@pytest.mark.parametrize("device", DEVICES)
def test_the_mlp_is_near_float32(device):
    torch.manual_seed(0)
    x_BTC, slope = torch.randn(3, 48, 256, device=device), torch.randn(3, 48, 256, device=device)
    weights = [torch.randn(shape, device=device) / 16 for shape in ((1024, 256), (256, 1024))]
    expected = gradients(mlp.relu_squared_mlp, x_BTC, *weights, slope=slope)
    has_kernel = mlp.has_kernel(torch.device(device), torch.bfloat16)
    for function in (fp8_mlp.plain, fp8_mlp.fused) if has_kernel else (fp8_mlp.plain,):
        found = gradients(function, x_BTC.bfloat16(), *weights, slope=slope)
        for one, other in zip(found, expected, strict=True):
            assert error(one, other) < 0.12, function


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or not mlp.has_kernel(torch.device("cuda"), torch.bfloat16),
    reason="needs Hopper",
)
@pytest.mark.parametrize("compiled", [False, True])
def test_the_fused_mlp_equals_its_twin(compiled):
    """But for numbers that bfloat16 and float32 bring to neighbours in fp8."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    x_BTC, slope = torch.randn(5, 208, 384, device="cuda"), torch.randn(5, 208, 384, device="cuda")
    weights = [torch.randn(shape, device="cuda") / 20 for shape in ((1536, 384), (384, 1536))]
    fused = torch.compile(fp8_mlp.fused, fullgraph=True) if compiled else fp8_mlp.fused
    expected = gradients(fp8_mlp.plain, x_BTC.bfloat16(), *weights, slope=slope)
    for one, other in zip(gradients(fused, x_BTC.bfloat16(), *weights, slope=slope), expected, strict=True):
        assert error(one, other) < 0.08


@pytest.mark.parametrize("device", DEVICES)
def test_the_loss_is_near_float32(device):
    torch.manual_seed(0)
    x_NC, weight_VC = torch.randn(200, 128, device=device), torch.randn(512, 128, device=device) / 8
    targets_N = torch.randint(512, (200,), device=device)
    targets_N[7] = -1

    def loss(*leaves: torch.Tensor, in_fp8: bool) -> torch.Tensor:
        return summed_loss(*leaves, targets_N, softcap=15, in_fp8=in_fp8)

    slope = torch.ones((), device=device)
    expected = gradients(lambda *leaves: loss(*leaves, in_fp8=False), x_NC, weight_VC, slope=slope)
    found = gradients(lambda *leaves: loss(*leaves, in_fp8=True), x_NC.bfloat16(), weight_VC, slope=slope)
    assert error(found[0], expected[0]) < 2e-3
    assert found[1][7].abs().max() == 0
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert 0 < error(one, other) < 0.08


def test_a_model_uses_fp8_for_its_large_products_and_only_where_gradients_are_wanted(monkeypatch):
    monkeypatch.setattr(fp8, "unavailable", lambda device: "")
    sizes = EVERYTHING | {"width": 128, "vocab_size": 256, "kv_heads": 4, "context": 32}
    gpt, plain = GPT(**sizes), GPT(**sizes)
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
    errors = {name: error(one.grad, other.grad) for (name, one), other in pairs}
    assert max(errors.values()) < 0.25, errors
    with torch.no_grad():
        assert torch.equal(gpt(ids_BT), plain(ids_BT))


def test_a_cpu_is_refused_with_what_helps():
    gpt = GPT(**EVERYTHING)
    gpt.initialize(torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="this is cpu: give precision=bf16"):
        gpt.use_fp8()
