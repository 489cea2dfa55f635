"""The policy's loss against REINFORCE written out, and what rounding may do to it."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from nanolit.phases.rl import ReinforcementLearning

TEMPERATURE, TOP_K = 0.7, 4


def policy_loss(logits_BTV: Tensor, targets_BT: Tensor, advantages_B: Tensor) -> Tensor:
    policy = SimpleNamespace(gpt=lambda _ids: logits_BTV, temperature=TEMPERATURE, top_k=TOP_K)
    return ReinforcementLearning.policy_loss(policy, targets_BT, targets_BT, advantages_B)  # pyright: ignore


def test_the_loss_and_its_gradient_are_those_of_reinforce():
    """Oracle: advantage · -log of the renormalised probability, token by token; better answers gain."""
    torch.manual_seed(0)
    logits_BTV = torch.randn(2, 3, 9, requires_grad=True)
    likely_BT = logits_BTV.topk(TOP_K, dim=-1).indices
    targets_BT = torch.stack([likely_BT[0, :, 1], likely_BT[1, :, 3]])
    targets_BT[0, 0] = -1  # the prompt
    advantages_B = torch.tensor([0.75, -0.25])

    expected = torch.zeros(())
    for row in range(2):
        for position in range(3):
            if targets_BT[row, position] >= 0:
                logits_V = logits_BTV[row, position]
                weights = (logits_V[likely_BT[row, position]] / TEMPERATURE).exp()
                chosen = (logits_V[targets_BT[row, position]] / TEMPERATURE).exp()
                expected = expected - advantages_B[row] * (chosen / weights.sum()).log()
    loss = policy_loss(logits_BTV, targets_BT, advantages_B)
    torch.testing.assert_close(loss, expected)
    (found,), (gradient,) = (
        torch.autograd.grad(loss, [logits_BTV]),
        torch.autograd.grad(expected, [logits_BTV]),
    )
    torch.testing.assert_close(found, gradient)
    assert found[0, 1, targets_BT[0, 1]] < 0, "a step down the gradient makes the better answer likelier"
    assert found[1, 1, targets_BT[1, 1]] > 0


def test_a_token_that_rounding_moved_out_of_the_top_k_teaches_nothing():
    logits_BTV = torch.arange(9.0).expand(1, 2, 9).clone().requires_grad_()
    targets_BT = torch.tensor([[8, 2]])  # the second is the seventh largest
    loss = policy_loss(logits_BTV, targets_BT, torch.ones(1))
    alone = policy_loss(logits_BTV[:, :1], targets_BT[:, :1], torch.ones(1))
    assert loss.item() == pytest.approx(alone.item())
    (gradient,) = torch.autograd.grad(loss, [logits_BTV])
    assert gradient.isfinite().all()
    assert not gradient[0, 1].any()
