"""Attention against its definition, written out slowly."""

import math

import pytest
import torch

from nanolit.model.attention import attend, rotary_tables, rotate


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
