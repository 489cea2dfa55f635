"""The policy's loss against REINFORCE written out, what rounding may do to it, and what it is taken of."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from nanolit.data.prompts import Prompt
from nanolit.inference.request import Completion, Request
from nanolit.phases import rl
from nanolit.phases.rl import ReinforcementLearning, Rollout

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


def test_only_sampled_tokens_are_targets():
    """Not the prompt, what the calculator said, or padding; an answer like all of its group has no row."""
    called = Completion(ids=[5, 6, 7, 8], sampled=[True, False, False, True])
    short = Completion(ids=[9], sampled=[True])
    rollouts = [
        Rollout([1, 2], called, reward=1.0, advantage=0.75),
        Rollout([1, 2], called, reward=0.0, advantage=0.0),
        Rollout([3], short, reward=0.0, advantage=-0.25),
    ]
    gpt, tokenizer = SimpleNamespace(context=6), SimpleNamespace(bos_id=0)
    policy: Any = SimpleNamespace(micro_batch=2, gpt=gpt, tokenizer=tokenizer, device=torch.device("cpu"))
    ((ids_BT, targets_BT, advantages_B),) = ReinforcementLearning.micro_batches(policy, rollouts)
    assert ids_BT.tolist() == [[1, 2, 5, 6, 7], [3, 9, 0, 0, 0]]
    assert targets_BT.tolist() == [[-1, 5, -1, -1, 8], [9, -1, -1, -1, -1]]
    assert advantages_B.tolist() == [0.75, -0.25]


def test_micro_batches_take_what_fits_in_their_contexts():
    """By length, each answer once; none larger than two contexts of 10 tokens."""
    rollouts = [
        Rollout([1], Completion(ids=[n] * n, sampled=[True] * n), reward=0.0, advantage=float(n))
        for n in (2, 9, 3, 2, 10, 2, 4)
    ]
    gpt, tokenizer = SimpleNamespace(context=10), SimpleNamespace(bos_id=0)
    policy: Any = SimpleNamespace(micro_batch=2, gpt=gpt, tokenizer=tokenizer, device=torch.device("cpu"))
    batches = [*ReinforcementLearning.micro_batches(policy, rollouts)]
    assert [ids_BT.shape for ids_BT, _, _ in batches] == [(2, 10), (5, 4)]
    advantages = [advantages_B.tolist() for _, _, advantages_B in batches]
    assert advantages == [[10, 9], [4, 3, 2, 2, 2]]
    learned = [(targets_BT >= 0).sum(dim=1).tolist() for _, targets_BT, _ in batches]
    assert learned == advantages  # an answer's length is its advantage here


class Answers:
    """A policy that answers any prompt with 0 to 3, of which 0 is right, and keeps what it was asked."""

    samples, max_new_tokens, temperature, top_k, seed = 4, 1, TEMPERATURE, TOP_K, 3

    def __init__(self) -> None:
        self.finished_steps, self.asked, self.calls = 0, list[Request](), list[str]()
        self.engine = SimpleNamespace(
            complete_all=self.complete_all,
            refresh=lambda: self.calls.append("refresh"),
            release=lambda: self.calls.append("release"),
        )
        self.task = SimpleNamespace(reward=lambda _, text: float(text == "0"))
        self.tokenizer = SimpleNamespace(decode=lambda ids: str(ids[0]))
        policy: Any = self
        self.judge = lambda *group: ReinforcementLearning.judge(policy, *group)

    def complete_all(self, requests: list[Request]) -> list[list[Completion]]:
        self.asked.extend(requests)
        self.calls.append("complete")
        return [[Completion(ids=[n], sampled=[True]) for n in range(4)] for _ in requests]

    def roll_out(self, *places: int) -> list[Rollout]:
        policy: Any = self
        prompts = [Prompt(place=place, ids=[place], conversation={}) for place in places]
        return ReinforcementLearning.roll_out(policy, prompts)


def test_an_answer_counts_by_how_much_better_than_its_group_it_is():
    rollouts = Answers().roll_out(0, 1)
    assert [rollout.advantage for rollout in rollouts] == 2 * [0.75, -0.25, -0.25, -0.25]
    assert [rollout.prompt_ids for rollout in rollouts] == 4 * [[0]] + 4 * [[1]]


def test_rollouts_are_of_the_newest_weights_and_leave_their_memory_to_the_update():
    answers = Answers()
    answers.roll_out(0, 1, 2)
    assert answers.calls == ["refresh", "complete", "release"]


def test_every_step_and_prompt_has_random_numbers_of_its_own():
    answers = Answers()
    for answers.finished_steps in range(3):
        answers.roll_out(*range(4))
    assert len({asked.seed for asked in answers.asked}) == 12


def test_a_step_is_divided_by_the_sampled_tokens_of_all_ranks(monkeypatch: pytest.MonkeyPatch):
    """The reduction stands in for a second rank, which sampled six tokens in two answers, both right."""

    def all_reduce(counts: Tensor) -> None:
        counts += torch.tensor([6.0, 2.0, 2.0])

    monkeypatch.setattr(rl, "world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    policy = MagicMock(device="cpu", finished_steps=0)
    sampled = Completion(ids=[2], sampled=[True])
    policy.roll_out.return_value = [Rollout([1], sampled, reward, reward - 0.5) for reward in (1.0, 0.0)]
    policy.micro_batches.return_value = [(None, None, None)]
    policy.policy_loss.return_value = torch.tensor(4.0)
    ReinforcementLearning.training_step(policy, MagicMock(prompts=[None]), 0)
    assert (policy.step_loss.item(), policy.num_tokens) == (4 / 8, 8)
    assert policy.metrics == {"reward": 3 / 4, "sequence_length": 8 / 4}
