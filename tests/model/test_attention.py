"""Attention against its definition, written out slowly."""

import math

import pytest
import torch

from nanolit.model import attention
from nanolit.model.attention import agrees, attend, choose_backend, rotary_tables, rotate


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
    ("works", "chosen"), [({"cudnn", "flash"}, "cudnn"), ({"flash"}, "flash"), (set(), "sdpa")]
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("window", [None, 0, 5, 128, 200])
@pytest.mark.parametrize(("K", "D"), [(4, 128), (2, 64)])
@pytest.mark.parametrize("backend", ["cudnn", "flash"])
def test_fused_kernels_equal_float32(backend, K, D, window, compiled):
    """Oracle: the same attention by torch in float32; forward and gradients, strided inputs as well."""
    if not agrees(backend, torch.device("cuda"), torch.bfloat16, D):
        pytest.skip(f"{backend} does not run here")
    torch._dynamo.reset()
    generator = torch.Generator("cuda").manual_seed(D)
    merged = torch.randn(2, 200, 4 + 2 * K, D, generator=generator, device="cuda").bfloat16()
    slope = torch.randn(2, 200, 4, D, generator=generator, device="cuda").bfloat16()

    def run(x: torch.Tensor, backend) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = x.clone().requires_grad_()
        q_BTHD, k_BTKD, v_BTKD = leaf.split([4, K, K], dim=2)
        function = torch.compile(attend, fullgraph=True) if compiled and backend != "sdpa" else attend
        y_BTHD = function(q_BTHD, k_BTKD, v_BTKD, window=window, backend=backend)
        (y_BTHD * slope.to(y_BTHD.dtype)).sum().backward()
        return y_BTHD.detach(), leaf.grad

    for one, other in zip(run(merged, backend), run(merged.float(), "sdpa"), strict=True):
        assert (one.float() - other).norm() / other.norm() < 1e-2
