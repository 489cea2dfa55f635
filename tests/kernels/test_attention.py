"""Attention against its definition, written out slowly."""

import importlib.util
import math
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch

from nanolit.kernels import attention, attention_flash, attention_flex, layout
from nanolit.kernels.attention import FUSED, agrees, attend, choose_backend, rotary_tables, rotate


def attend_slowly(q_BTHD, k_BSKD, v_BSKD, *, window):
    """The oracle: one query at a time, one head at a time."""
    B, T, H, D = q_BTHD.shape
    S, K = k_BSKD.shape[1:3]
    y_BTHD = torch.zeros_like(q_BTHD)
    for b in range(B):
        for t in range(T):
            stop = S - T + t + 1
            start = 0 if window is None else max(0, stop - 1 - window)
            for h in range(H):
                k_SD, v_SD = k_BSKD[b, start:stop, h * K // H], v_BSKD[b, start:stop, h * K // H]
                y_BTHD[b, t, h] = (k_SD @ q_BTHD[b, t, h] / math.sqrt(D)).softmax(0) @ v_SD
    return y_BTHD


@pytest.mark.parametrize("window", [None, 0, 3, 8, 9, 20])
@pytest.mark.parametrize(("T", "S"), [(9, 9), (1, 9), (4, 9), (1, 1)])
@pytest.mark.parametrize("K", [1, 2, 4])
def test_attention_equals_its_definition(T, S, K, window):
    generator = torch.Generator().manual_seed(T + S + K)
    q_BTHD = torch.randn(2, T, 4, 6, generator=generator)
    k_BSKD, v_BSKD = torch.randn(2, 2, S, K, 6, generator=generator)
    torch.testing.assert_close(
        attend(q_BTHD, k_BSKD, v_BSKD, window=window), attend_slowly(q_BTHD, k_BSKD, v_BSKD, window=window)
    )


def test_rotated_scores_depend_on_the_distance_alone():
    cos_TE, sin_TE = rotary_tables(50, head_dim=8, base=10_000.0)
    q_D, k_D = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    q_TD, k_TD = (rotate(x.expand(1, 50, 1, 8), cos_TE, sin_TE)[0, :, 0] for x in (q_D, k_D))
    scores_TT = q_TD @ k_TD.T
    for distance in (0, 1, 7, 30):
        diagonal = scores_TT.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


def test_rotation_turns_by_minus_the_angle():
    """nanochat's direction: at position 1 the first channel pair (1, 0) becomes (cos 1, -sin 1)."""
    cos_TE, sin_TE = rotary_tables(2, head_dim=4, base=10_000.0)
    x_BTHD = torch.tensor([1.0, 0, 0, 0]).expand(1, 2, 1, 4)
    rotated = rotate(x_BTHD, cos_TE, sin_TE)[0, 1, 0].tolist()
    assert rotated == pytest.approx([math.cos(1), 0, -math.sin(1), 0])


def test_a_cpu_and_float32_take_sdpa():
    assert choose_backend(torch.device("cpu"), torch.bfloat16, 128) == "sdpa"
    assert choose_backend(torch.device("cuda"), torch.float32, 128) == "sdpa"


def test_a_kernel_that_fails_is_not_chosen(monkeypatch: pytest.MonkeyPatch):
    """What an older GPU does: every fused kernel fails when it is tried."""

    def refuse(_backend):
        raise RuntimeError("no kernel for this GPU")

    monkeypatch.setattr(attention, "_fused", refuse)
    assert not agrees("flash", torch.device("cpu"), torch.bfloat16, 16)


@pytest.mark.parametrize(
    ("works", "chosen"),
    [
        (set(FUSED), "flash3"),
        ({"flash4", "cudnn", "flash", "flex"}, "flash4"),
        ({"cudnn", "flash", "flex"}, "cudnn"),
        ({"flash", "flex"}, "flash"),
        ({"flex"}, "flex"),
        (set(), "sdpa"),
    ],
)
def test_the_fastest_kernel_that_agrees_is_chosen(works, chosen, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "agrees", lambda backend, *_: backend in works)
    assert choose_backend.__wrapped__(torch.device("cuda"), torch.bfloat16, 128) == chosen


def test_a_kernel_that_answers_wrongly_is_not_chosen(monkeypatch: pytest.MonkeyPatch):
    """A window that is one position too short, as a library that counts otherwise would have it."""

    def too_short(q_BTHD, k_BTKD, v_BTKD, *, window):
        shorter = window and window - 1
        return attention.attend_by_sdpa(q_BTHD, k_BTKD, v_BTKD, window=shorter)

    monkeypatch.setattr(attention, "_fused", lambda _backend: too_short)
    assert not agrees("flash", torch.device("cpu"), torch.bfloat16, 16)


def test_a_kernel_that_answers_rightly_may_be_chosen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "_fused", lambda _backend: attention.attend_by_sdpa)
    assert agrees("flash", torch.device("cpu"), torch.bfloat16, 16)


@pytest.mark.parametrize("parent", ["there", "missing"])
@pytest.mark.parametrize("backend", ["flash3", "cudnn", "flash4"])
def test_a_missing_package_is_not_chosen_nor_imported(backend, parent, monkeypatch: pytest.MonkeyPatch):
    def find_spec(name, *_):
        if parent == "missing":
            raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(attention, "_fused", lambda _backend: pytest.fail("it was tried"))
    assert not agrees(backend, torch.device("cpu"), torch.bfloat16, 16)


def stand_in_forward(q_BTHD, k_BTKD, v_BTKD, softmax_scale, left):
    """FlashAttention's promise, on a CPU: mixed values, and the logarithm of each query's sum."""
    T, repeats = q_BTHD.size(1), q_BTHD.size(2) // k_BTKD.size(2)
    k_BTHD, v_BTHD = (one.repeat_interleave(repeats, 2) for one in (k_BTKD, v_BTKD))
    scores_BHTT = torch.einsum("bthd,bshd->bhts", q_BTHD, k_BTHD) * softmax_scale
    back_TT = torch.arange(T)[:, None] - torch.arange(T)
    scores_BHTT[..., (back_TT < 0) | (back_TT > (T if left is None else left))] = -torch.inf
    out_BTHD = torch.einsum("bhts,bshd->bthd", scores_BHTT.softmax(-1), v_BTHD)
    return out_BTHD.contiguous(), scores_BHTT.logsumexp(-1), scores_BHTT


def stand_in_backward(d_out, q, k, v, out, sums_BHT, dq, dk, dv, softmax_scale, left):
    """As the kernels do it: the weights from the kept sums, the softmax's slope from the kept values."""
    B, T, H, D = q.shape
    K = k.size(2)
    scores_BHTT = stand_in_forward(q, k, v, softmax_scale, left)[2]
    weights_BHTT = (scores_BHTT - sums_BHT[..., None]).exp()
    v_BTHD, k_BTHD = (one.repeat_interleave(H // K, 2) for one in (v, k))
    d_weights_BHTT = torch.einsum("bthd,bshd->bhts", d_out, v_BTHD)
    mean_BHT1 = (d_out * out).sum(-1).transpose(1, 2)[..., None]
    d_scores_BHTT = weights_BHTT * (d_weights_BHTT - mean_BHT1) * softmax_scale
    dq.copy_(torch.einsum("bhts,bshd->bthd", d_scores_BHTT, k_BTHD))
    dk.copy_(torch.einsum("bhts,bthd->bshd", d_scores_BHTT, q).view(B, T, K, H // K, D).sum(3))
    dv.copy_(torch.einsum("bhts,bthd->bshd", weights_BHTT, d_out).view(B, T, K, H // K, D).sum(3))
    return dq, dk, dv


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both libraries, with the names and the order of their arguments: 3 says -1 for no window, 4 None."""

    def module(name: str) -> ModuleType:
        made = ModuleType(name)
        made.__spec__, made.__path__ = ModuleSpec(name, None), []
        monkeypatch.setitem(sys.modules, name, made)
        return made

    def fwd(q, k, v, *, softmax_scale, is_causal, window_size_left, window_size_right, num_splits):
        assert is_causal
        assert (window_size_right, num_splits) == (0, 1)
        left = None if window_size_left == -1 else window_size_left
        return *stand_in_forward(q, k, v, softmax_scale, left)[:2], None, None

    def bwd(
        dout,
        q,
        k,
        v,
        out,
        softmax_lse,
        dq,
        dk,
        dv,
        *,
        softmax_scale,
        is_causal,
        window_size_left,
        window_size_right,
    ):
        assert is_causal
        assert window_size_right == 0
        left = None if window_size_left == -1 else window_size_left
        return stand_in_backward(dout, q, k, v, out, softmax_lse, dq, dk, dv, softmax_scale, left)

    def _flash_attn_fwd(q, k, v, *, softmax_scale, causal, window_size_left, window_size_right, return_lse):
        assert causal
        assert return_lse
        assert window_size_right == 0
        return *stand_in_forward(q, k, v, softmax_scale, window_size_left)[:2], None, None, None

    def _flash_attn_bwd(
        q, k, v, out, dout, lse, *, softmax_scale, causal, window_size_left, window_size_right, dq, dk, dv
    ):
        assert causal
        assert window_size_right == 0
        return stand_in_backward(dout, q, k, v, out, lse, dq, dk, dv, softmax_scale, window_size_left)

    module("flash_attn_interface")
    monkeypatch.setattr(torch.ops, "flash_attn_3", SimpleNamespace(fwd=fwd, bwd=bwd), raising=False)
    for name in ("flash_attn", "flash_attn.cute", "flash_attn.cute.interface"):
        made = module(name)
    made._flash_attn_fwd, made._flash_attn_bwd = _flash_attn_fwd, _flash_attn_bwd
    attention_flash._flash4.cache_clear()  # it may hold another test's stand-in
    yield
    attention_flash._flash4.cache_clear()


def forward_with_gradients(function, K: int, *, compiled: bool = False, **choice) -> tuple[torch.Tensor, ...]:
    """From slices of a merged projection, so that q, k and v are strided."""

    def run(merged: torch.Tensor) -> torch.Tensor:
        return function(*merged.split([4, K, K], dim=2), **choice)

    leaf = torch.randn(2, 9, 4 + 2 * K, 16, generator=torch.Generator().manual_seed(K), requires_grad=True)
    y_BTHD = (torch.compile(run, fullgraph=True, backend="aot_eager") if compiled else run)(leaf)
    (y_BTHD * torch.linspace(-1, 1, y_BTHD.numel()).view_as(y_BTHD)).sum().backward()
    return y_BTHD.detach(), leaf.grad


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("window", [None, 0, 3, 20])
@pytest.mark.parametrize("K", [1, 2, 4])
@pytest.mark.parametrize("backend", ["flash3", "flash4"])
def test_flash_libraries_are_called_as_they_ask(backend, K, window, compiled):
    """Oracle: the definition; forward and gradients. Compiled: what the fake tensors say is traced too."""
    torch._dynamo.reset()
    found = forward_with_gradients(attend, K, compiled=compiled, window=window, backend=backend)
    torch.testing.assert_close(found, forward_with_gradients(attend_slowly, K, window=window))


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("backend", ["flash3", "flash4"])
def test_an_installed_flash_library_may_be_chosen(backend):
    assert agrees(backend, torch.device("cpu"), torch.float32, 16)


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("version", [3, 4])
def test_flash_operators_are_sound(version):
    """Oracle: torch's own check of fake tensors, of the gradient's registration and of what is mutated."""
    q_BTHD, k_BTKD, v_BTKD = (torch.randn(1, 5, heads, 8, requires_grad=True) for heads in (4, 2, 2))
    torch.library.opcheck(attention_flash._forward, (q_BTHD, k_BTKD, v_BTKD, 3, version))


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("backend", ["flash3", "flash4"])
def test_flash_libraries_are_asked_to_add_in_order(backend, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def asking(backward):
        def record(*arguments, deterministic, **others):
            asked.append(deterministic)
            return backward(*arguments, **others)

        return record

    interface = sys.modules["flash_attn.cute.interface"]
    monkeypatch.setattr(torch.ops.flash_attn_3, "bwd", asking(torch.ops.flash_attn_3.bwd))
    monkeypatch.setattr(interface, "_flash_attn_bwd", asking(interface._flash_attn_bwd))
    monkeypatch.setattr(layout, "in_order", lambda: True)
    found = forward_with_gradients(attend, 2, window=3, backend=backend)
    torch.testing.assert_close(found, forward_with_gradients(attend_slowly, 2, window=3))
    assert asked == [True]


def test_under_torchs_flag_its_own_flash_is_not_chosen(deterministic_algorithms, monkeypatch):
    monkeypatch.setattr(attention, "agrees", lambda backend, *_: backend in ("flash", "flex"))
    choose = attention.choose_backend.__wrapped__
    assert choose(torch.device("cuda"), torch.bfloat16, 128) == "flex"


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("window", [None, 0, 3, 20])
@pytest.mark.parametrize("K", [1, 2, 4])
def test_flex_equals_the_definition(K, window, compiled, monkeypatch: pytest.MonkeyPatch):
    """Forward alone: torch has no backward pass of it for CPUs."""
    torch._dynamo.reset()
    monkeypatch.setattr(attention_flex, "_compiled", lambda: attention_flex.flex_attention)
    q_BTHD, k_BTKD, v_BTKD = torch.randn(2, 9, 4 + 2 * K, 16).split([4, K, K], dim=2)
    function = torch.compile(attend, fullgraph=True, backend="aot_eager") if compiled else attend
    y_BTHD = function(q_BTHD, k_BTKD, v_BTKD, window=window, backend="flex")
    torch.testing.assert_close(y_BTHD, attend_slowly(q_BTHD, k_BTKD, v_BTKD, window=window))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore::Warning:cutlass|flash_attn|quack|torch|tvm_ffi")  # of compiling
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("window", [None, 0, 5, 128, 200])
@pytest.mark.parametrize(("K", "D"), [(4, 128), (2, 64)])
@pytest.mark.parametrize("backend", FUSED)
def test_fused_kernels_equal_float32(backend, K, D, window, compiled):
    """Oracle: the same attention by torch in float32; forward and gradients, strided inputs as well."""
    if not agrees(backend, torch.device("cuda"), torch.bfloat16, D):
        pytest.skip(f"{backend} does not run here")
    torch._dynamo.reset()
    generator = torch.Generator("cuda").manual_seed(D)
    merged = torch.randn(2, 200, 4 + 2 * K, D, generator=generator, device="cuda").bfloat16()
    slope = torch.randn(2, 200, 4, D, generator=generator, device="cuda").bfloat16()

    def run(x: torch.Tensor, backend) -> tuple[torch.Tensor, torch.Tensor]:
        def attend_to(merged: torch.Tensor) -> torch.Tensor:
            return attend(*merged.split([4, K, K], dim=2), window=window, backend=backend)

        leaf = x.clone().requires_grad_()
        is_compiled = compiled and backend != "sdpa"
        y_BTHD = (torch.compile(attend_to, fullgraph=True) if is_compiled else attend_to)(leaf)
        (y_BTHD * slope.to(y_BTHD.dtype)).sum().backward()
        return y_BTHD.detach(), leaf.grad

    for one, other in zip(run(merged, backend), run(merged.float(), "sdpa"), strict=True):
        assert (one.float() - other).norm() / other.norm() < 1e-2
