"""Reinforcement learning: sample answers, reward the right ones, follow the policy gradient.

REINFORCE with the group's mean as baseline (GRPO's advantage without dividing by the deviation, no KL
term, no clipping), as nanochat does: one update per step on its own samples. Differences: log-probabilities
are those of the distribution that was sampled from (temperature and top-k included), and the sum over sampled
tokens is divided by the step's number of them over all ranks, so that neither ranks nor micro-batches change
the update.

Optimization is manual here and nowhere else: the micro-batches exist only after sampling.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanolit.config.build import build
from nanolit.config.schema import Job
from nanolit.data.prompts import Prompt, PromptStep, PromptStream
from nanolit.evaluation.evaluators import Passes
from nanolit.inference.decode import batches_of
from nanolit.inference.engine import Engine
from nanolit.inference.request import Completion, Request
from nanolit.inference.sampling import log_probabilities
from nanolit.machine.device import IGNORED, derived_seed, world_size
from nanolit.phases.core import Inputs, Phase, Training
from nanolit.planning.rl import MAX_PASSES, RLPlan
from nanolit.tasks.task import Task
from nanolit.tokenizer.bpe import Tokenizer


@dataclass(frozen=True)
class Rollout:
    """A sampled answer to a prompt, and how much better it was than the others of its group."""

    prompt_ids: list[int]
    completion: Completion
    reward: float
    advantage: float


class ReinforcementLearning(Phase):
    """The policy gradient of the reward of `task`, over groups of `samples` answers to each prompt."""

    log_every = 1  # sampling waits for the device anyway

    def __init__(
        self,
        *args: Any,
        task: Task,
        tokenizer: Tokenizer,
        samples: int,
        temperature: float,
        top_k: int | None,
        max_new_tokens: int,
        micro_batch: int,
        seed: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False
        self.task, self.tokenizer = task, tokenizer
        self.samples, self.max_new_tokens = samples, max_new_tokens
        self.temperature, self.top_k = temperature, top_k
        self.micro_batch, self.seed = micro_batch, seed
        self.engine = Engine(self.gpt, tokenizer)

    def training_step(self, batch: PromptStep, _index: int) -> None:
        self.set_multipliers()
        self.gpt.eval()
        rollouts = self.roll_out(batch.prompts)
        self.gpt.train()
        sampled = sum(sum(rollout.completion.sampled) for rollout in rollouts)
        counts = torch.tensor(
            [sampled, len(rollouts), sum(rollout.reward for rollout in rollouts)], dtype=torch.float64
        ).to(self.device, torch.float32)
        if world_size() > 1:
            torch.distributed.all_reduce(counts)
        num_tokens, num_rollouts, reward = counts.tolist()
        total = torch.zeros((), device=self.device)
        for ids_BT, targets_BT, advantages_B in self.micro_batches(rollouts):
            loss = self.policy_loss(ids_BT, targets_BT, advantages_B) / max(num_tokens, 1)
            self.manual_backward(loss)
            total = total + loss.detach()
        optimizer: Any = self.optimizers()
        optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.finished_steps += 1
        self.step_loss, self.num_tokens, self.position = total, int(num_tokens), batch.position
        self.num_processed = self.num_tokens  # sampling is not counted
        self.metrics = {"reward": reward / num_rollouts, "sequence_length": num_tokens / num_rollouts}

    def roll_out(self, prompts: Sequence[Prompt]) -> list[Rollout]:
        """Return a group of answers to each prompt; random numbers are keyed by (seed, step, place)."""
        requests = [
            Request(
                prompt_ids=prompt.ids,
                num_samples=self.samples,
                max_tokens=self.max_new_tokens,
                temperature=self.temperature,
                top_k=self.top_k,
                seed=derived_seed(self.seed, "rollout", self.finished_steps, prompt.place),
            )
            for prompt in prompts
        ]
        self.engine.refresh()  # the optimizer has changed the weights
        groups = self.engine.complete_all(requests)
        self.engine.release()  # the update needs the memory
        return [
            rollout
            for prompt, group in zip(prompts, groups, strict=True)
            for rollout in self.judge(prompt, group)
        ]

    def judge(self, prompt: Prompt, group: list[Completion]) -> Iterator[Rollout]:
        """Yield the answers to one prompt, each with its reward and its advantage over the group's mean."""
        rewards = [
            self.task.reward(prompt.conversation, self.tokenizer.decode(completion.body_ids))
            for completion in group
        ]
        mean = sum(rewards) / len(rewards)
        for completion, reward in zip(group, rewards, strict=True):
            yield Rollout(prompt.ids, completion, reward, reward - mean)

    def micro_batches(self, rollouts: list[Rollout]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(ids_BT, targets_BT, advantages_B) of the answers with something to learn from, by length.

        Targets are -1 except for sampled tokens: the prompt and what the calculator said are not learned.
        Each has as many answers as take no more tokens than `micro_batch` whole contexts.
        """
        learned = [rollout for rollout in rollouts if rollout.advantage]
        # A GPU plans attention again for each new shape: few shapes, padded with positions that learn nothing
        grains = (16, 64) if self.device.type == "cuda" else (1, 1)
        lengths = [
            rounded_up(len(rollout.prompt_ids) + len(rollout.completion.ids) - 1, grains[1])
            for rollout in learned
        ]
        num_tokens = self.micro_batch * self.gpt.context
        for places in batches_of(lengths, num_tokens):
            group, length = [learned[place] for place in places], lengths[places[0]]
            rows = max(len(group), min(rounded_up(len(group), grains[0]), num_tokens // length))
            ids_BT = torch.full((rows, length + 1), self.tokenizer.bos_id)
            targets_BT = torch.full((rows, length + 1), IGNORED)
            advantages_B = torch.zeros(rows)
            advantages_B[: len(group)] = torch.tensor([rollout.advantage for rollout in group])
            for row, rollout in enumerate(group):
                ids = torch.tensor(rollout.prompt_ids + rollout.completion.ids)
                sampled = torch.tensor([False] * len(rollout.prompt_ids) + rollout.completion.sampled)
                ids_BT[row, : len(ids)] = ids
                targets_BT[row, : len(ids)] = torch.where(sampled, ids, IGNORED)
            yield (
                ids_BT[:, :-1].to(self.device),
                targets_BT[:, 1:].to(self.device),
                advantages_B.to(self.device),
            )

    def policy_loss(self, ids_BT: Tensor, targets_BT: Tensor, advantages_B: Tensor) -> Tensor:
        """-Σ advantage · log π(token) over sampled tokens, under the distribution they were drawn from."""
        logits_BTV = self.gpt(ids_BT)
        keep_BT = targets_BT != IGNORED
        log_probs_NV = log_probabilities(logits_BTV[keep_BT], temperature=self.temperature, top_k=self.top_k)
        log_probs_N = log_probs_NV.gather(-1, targets_BT[keep_BT][:, None])[:, 0]
        # Rounding can move a sampled token out of the top k of this other pass: nothing is learned from it
        log_probs_N = log_probs_N.masked_fill(log_probs_N.isinf(), 0.0)
        return -(log_probs_N * advantages_B[:, None].expand_as(keep_BT)[keep_BT]).sum()


def rounded_up(count: int, grain: int) -> int:
    """Return the next multiple of `grain`."""
    return -(-count // grain) * grain


def rl_evaluator(plan: RLPlan) -> Passes:
    """Return pass@1 and pass@k of held-out questions, sampled as the rollouts are."""
    return Passes(
        build(plan.validation),
        num_samples=min(plan.samples, MAX_PASSES),
        temperature=plan.temperature,
        top_k=plan.top_k,
        max_tokens=plan.max_new_tokens,
    )


def build_rl(job: Job, plan: RLPlan, inputs: Inputs) -> Training:
    """Data: the task's questions, one epoch of prompts. Evaluation: pass@1 and pass@k of held-out ones."""
    task, tokenizer = build(plan.task), inputs.tokenizer
    task.check_rewards()
    stream = PromptStream(
        task,
        tokenizer,
        prompts=plan.questions,
        max_prompt_tokens=plan.gpt["context"],
        seed=job["seed"],
        max_steps=plan.num_steps,
        rank=inputs.rank,
        world=plan.ranks,
    )
    phase = ReinforcementLearning.of(
        job,
        plan,
        inputs,
        num_steps=stream.num_steps,
        task=task,
        tokenizer=tokenizer,
        samples=plan.samples,
        temperature=plan.temperature,
        top_k=plan.top_k,
        max_new_tokens=plan.max_new_tokens,
        micro_batch=plan.micro_batch,
        seed=job["seed"],
    )
    left_out = (
        f"left out of {task.name}: {stream.num_left_out:,} of {len(task):,} prompts, which are longer than "
        f"the context of {plan.gpt['context']:,} tokens"
    )
    return Training(
        phase=phase,
        stream=stream,
        evaluator=rl_evaluator(plan),
        left_out=left_out if stream.num_left_out else "",
    )
