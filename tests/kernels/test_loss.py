"""The chunked loss against logits held whole: torch's own cross-entropy of the softcapped product."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanolit.kernels import loss as head
from nanolit.kernels.loss import summed_loss, to_gradient, to_gradient_in_torch, token_losses

SOFTCAP = 15.0


def make_inputs(num_tokens: int, *, width: int = 8, vocab: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    """Logits that reach into the cap, and targets of which a few are ignored; float64."""
    generator = torch.Generator().manual_seed(num_tokens)
    x_NC = torch.randn(num_tokens, width, generator=generator, dtype=torch.float64)
    weight_VC = 3 * torch.randn(vocab, width, generator=generator, dtype=torch.float64)
    targets_N = torch.randint(vocab, (num_tokens,), generator=generator)
    targets_N[1::5] = -1
    return x_NC, weight_VC, targets_N


def whole(x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, reduction: str = "sum") -> Tensor:
    """The oracle."""
    logits_NV = SOFTCAP * torch.tanh(x_NC @ weight_VC.t() / SOFTCAP)
    return F.cross_entropy(logits_NV, targets_N, ignore_index=-1, reduction=reduction)


def gradients(loss, x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, **settings) -> tuple[Tensor, ...]:
    x_NC, weight_VC = x_NC.clone().requires_grad_(), weight_VC.clone().requires_grad_()
    value = 0.5 * loss(x_NC, weight_VC, targets_N, **settings)
    return value.detach(), *torch.autograd.grad(value, (x_NC, weight_VC))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch):
    """Seven tokens of fifty float64 logits: several chunks, the last one of another size."""
    monkeypatch.setitem(head.CHUNK_BYTES, "cpu", 7 * 50 * 8)


@pytest.mark.parametrize("num_tokens", [1, 7, 20])
@pytest.mark.usefixtures("small_chunks")
def test_loss_and_gradients_equal_those_of_whole_logits(num_tokens: int):
    inputs = make_inputs(num_tokens)
    expected = gradients(whole, *inputs)
    for one, other in zip(gradients(summed_loss, *inputs, softcap=SOFTCAP), expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=1e-6)  # sums are in float32


@pytest.mark.usefixtures("small_chunks")
def test_token_losses_equal_those_of_whole_logits():
    inputs = make_inputs(20)
    nats_N = token_losses(*inputs, softcap=SOFTCAP)
    torch.testing.assert_close(nats_N.double(), whole(*inputs, reduction="none"), rtol=1e-6, atol=1e-6)


def test_without_gradients_the_sum_is_the_same():
    inputs = make_inputs(20)
    with_gradients = gradients(summed_loss, *inputs, softcap=SOFTCAP)[0]
    torch.testing.assert_close(0.5 * summed_loss(*inputs, softcap=SOFTCAP), with_gradients)


def test_ignored_tokens_alone_give_no_loss_and_no_gradient():
    x_NC, weight_VC, targets_N = make_inputs(9)
    for one in gradients(summed_loss, x_NC, weight_VC, torch.full_like(targets_N, -1), softcap=SOFTCAP):
        assert one.abs().sum() == 0


def test_the_loss_compiles_into_one_graph():
    x_NC, weight_VC, targets_N = (one.float() if one.is_floating_point() else one for one in make_inputs(20))
    compiled = torch.compile(summed_loss, backend="aot_eager", fullgraph=True)
    plain = gradients(summed_loss, x_NC, weight_VC, targets_N, softcap=SOFTCAP)
    for one, other in zip(
        gradients(compiled, x_NC, weight_VC, targets_N, softcap=SOFTCAP), plain, strict=True
    ):
        torch.testing.assert_close(one, other)


def test_the_operator_describes_its_results_truly():
    """torch's own check of a custom operator: fake tensors, autograd, aliasing."""
    x_NC, weight_VC, targets_N = (one.float() if one.is_floating_point() else one for one in make_inputs(6))
    inputs = (x_NC.requires_grad_(), weight_VC.requires_grad_(), targets_N, SOFTCAP, [])
    torch.library.opcheck(torch.ops.nanolit.loss_and_gradients.default, inputs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("vocab", [50, 4096, 32_768, 65_537])
def test_the_kernel_equals_its_twin(vocab: int):
    """On bfloat16 logits, by relative error; the twin works in float32 and rounds at the end."""
    generator = torch.Generator("cuda").manual_seed(vocab)
    logits_MV = 10 * torch.randn(64, vocab, generator=generator, device="cuda")
    targets_M = torch.randint(vocab, (64,), generator=generator, device="cuda")
    targets_M[3] = -1
    logits_MV = logits_MV.bfloat16()
    twin_MV, kernel_MV = logits_MV.float(), logits_MV.clone()
    expected, twin_factors_M = to_gradient_in_torch(twin_MV, targets_M, softcap=SOFTCAP)
    nats_M, factors_M = to_gradient(kernel_MV, targets_M, softcap=SOFTCAP)
    torch.testing.assert_close(nats_M, expected, rtol=2e-3, atol=1e-2)
    found_MV, twin_MV = factors_M[:, None] * kernel_MV, twin_factors_M[:, None] * twin_MV
    assert (found_MV - twin_MV).norm() / twin_MV.norm() < 4e-3
    assert factors_M[3] == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bfloat16_on_the_gpu_equals_whole_float32_logits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(head.CHUNK_BYTES, "cuda", 100 * 4096 * 2)
    x_NC, weight_VC, targets_N = (one.cuda() for one in make_inputs(256, width=64, vocab=4096))
    x_NC, weight_VC = x_NC.float(), weight_VC.float() / 8
    expected = gradients(whole, x_NC, weight_VC, targets_N)
    found = gradients(summed_loss, x_NC.bfloat16(), weight_VC, targets_N, softcap=SOFTCAP)
    assert abs(found[0] - expected[0]) / expected[0] < 2e-3
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert (one.float() - other).norm() / other.norm() < 1e-2
