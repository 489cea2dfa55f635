"""Chat tasks to scores: multiple choice by the letters' logits, everything else by what the model writes.

Collective: problem i belongs to rank i mod world size, and the sums are all-reduced, so every rank must call
and gets the same scores. What is asked and what counts as right is nanochat's (tasks/, conversation.py).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import torch

from nanolit.inference.engine import Engine
from nanolit.inference.request import Request
from nanolit.machine.device import derived_seed, rank, world_size
from nanolit.tasks.task import Task
from nanolit.tokenizer.conversation import render_prompt

CHAT_CORE = ("ARC-Easy", "ARC-Challenge", "MMLU", "GSM8K", "HumanEval")
MEAN = "mean above guessing"
SHUFFLED_BY = 42  # nanochat's seed for the order of a part
PROBLEMS = 256  # multiple-choice problems rendered and asked together: the engine sorts them by length


@dataclass(frozen=True)
class Score:
    """What a model made of one task; fractions of `num_problems`.

    `pass_at[k-1]` is pass@k by the unbiased estimator, `any_of_first[k-1]` the share of problems that one of
    the first k samples solves, which is what nanochat logs; both have one entry per sample drawn.
    """

    task: str
    baseline: float
    num_problems: int
    pass_at: tuple[float, ...]
    any_of_first: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """The chance that one answer is right: pass@1."""
        return self.pass_at[0]

    @property
    def centered(self) -> float:
        """Accuracy above guessing: 0 for guessing, 1 for all right."""
        return (self.accuracy - self.baseline) / (1 - self.baseline)


def evaluate_tasks(
    engine: Engine,
    tasks: Iterable[Task],
    *,
    max_problems: int | None = None,
    max_tokens: int = 512,
) -> Iterator[tuple[str, float]]:
    """Yield (task name, accuracy) per task as each is done, then (its name, mean accuracy above guessing).

    Greedy, one sample a problem, as nanochat's chat evaluation. The mean is ChatCORE where it is of
    nanochat's five tasks, all problems of each; other means don't compare with it.
    """
    centered, asked = [], []
    for task in tasks:
        score = evaluate_task(engine, task, max_problems=max_problems, max_tokens=max_tokens)
        centered.append(score.centered)
        asked.append(score.task)
        yield score.task, score.accuracy
    engine.release()
    if centered:
        whole = sorted(asked) == sorted(CHAT_CORE) and max_problems is None
        yield "ChatCORE" if whole else MEAN, sum(centered) / len(centered)


def evaluate_task(
    engine: Engine, task: Task, *, max_problems: int | None = None, max_tokens: int = 512
) -> Score:
    """The score of one task as its `evaluation_type` says; ValueError if it is only to learn from."""
    if task.evaluation_type == "categorical":
        return evaluate_categorical(engine, task, max_problems=max_problems)
    if task.evaluation_type == "generative":
        return evaluate_generative(engine, task, max_problems=max_problems, max_tokens=max_tokens)
    raise ValueError(f"{task.name} is to learn from and has no right answers; evaluate another task")


def evaluate_categorical(engine: Engine, task: Task, *, max_problems: int | None = None) -> Score:
    """Of the letters that a problem allows, the likeliest next token is the answer."""
    mine = _dealt(task, max_problems)
    num_right = 0
    for first in range(0, len(mine), PROBLEMS):
        conversations = [task[index] for index in mine[first : first + PROBLEMS]]
        answers = choose_letters(engine, conversations)
        num_right += sum(map(task.evaluate, conversations, answers))
    return _score(engine, task, num_problems=len(mine), sums=[num_right, num_right])


def choose_letters(engine: Engine, conversations: Sequence[dict]) -> list[str]:
    """For each conversation the one of its `letters` with the largest logit after its prompt."""
    prompts = [
        render_prompt(conversation, engine.tokenizer)[-engine.max_positions :]
        for conversation in conversations
    ]
    answers = []
    for logits_V, conversation in zip(engine.next_logits(prompts), conversations, strict=True):
        ids = [_letter_id(engine, letter) for letter in conversation["letters"]]
        answers.append(conversation["letters"][int(logits_V[ids].argmax())])
    return answers


def evaluate_generative(
    engine: Engine,
    task: Task,
    *,
    num_samples: int = 1,
    max_problems: int | None = None,
    max_tokens: int = 512,
    temperature: float = 0.0,
    top_k: int | None = 50,
    seed: int = 42,
) -> Score:
    """Each problem is answered `num_samples` times; the task says which answers are right.

    Prompts that leave no room for `max_tokens` lose their beginning.
    """
    mine = _dealt(task, max_problems)
    sums = [0.0] * (2 * num_samples)
    room = engine.max_positions - max_tokens
    requests = [
        Request(
            prompt_ids=render_prompt(task[index], engine.tokenizer)[-room:],
            num_samples=num_samples,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=derived_seed(seed, "problem", index),
        )
        for index in mine
    ]
    for index, completions in zip(mine, engine.complete_all(requests), strict=True):
        conversation = task[index]
        right = [
            task.evaluate(conversation, engine.tokenizer.decode(completion.body_ids))
            for completion in completions
        ]
        for k in range(1, num_samples + 1):
            sums[k - 1] += pass_at_k(num_samples, sum(right), k=k)
            sums[num_samples + k - 1] += any(right[:k])
    return _score(engine, task, num_problems=len(mine), sums=sums)


def pass_at_k(num_samples: int, num_right: int, *, k: int) -> float:
    """The chance that k of the samples, drawn without replacement, hold a right one.

    The unbiased estimator of Chen et al. 2021 (https://arxiv.org/abs/2107.03374), 1 - C(n-c, k) / C(n, k).
    Looking at the first k alone has the same mean and more noise.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k ({k}) must be between 1 and the number of samples ({num_samples})")
    return 1 - comb(num_samples - num_right, k) / comb(num_samples, k)


def _dealt(task: Task, max_problems: int | None) -> list[int]:
    """Return the indices of this rank's problems; a part is nanochat's, drawn from the whole task.

    The first 200 of MMLU would be two subjects of 57.
    """
    indices = list(range(len(task)))
    if max_problems is not None and max_problems < len(task):
        indices = np.random.default_rng(SHUFFLED_BY).permutation(len(task))[:max_problems].tolist()
    return indices[rank() :: world_size()]


def _score(engine: Engine, task: Task, *, num_problems: int, sums: Sequence[float]) -> Score:
    """The score from this rank's sums (pass@1…n, then any of the first 1…n), added over all ranks."""
    # float32 is exact for counts up to 2^24 and exists on every device
    totals = torch.tensor([num_problems, *sums], dtype=torch.float32, device=engine.model.device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(totals)
    shares = (totals[1:] / totals[0].clamp(min=1)).tolist()
    half = len(shares) // 2
    return Score(task.name, task.baseline, int(totals[0]), tuple(shares[:half]), tuple(shares[half:]))


def _letter_id(engine: Engine, letter: str) -> int:
    ids = engine.tokenizer.encode(letter)
    if len(ids) != 1:
        raise ValueError(f"the answer {letter!r} is {len(ids)} tokens; allowed are answers of one token")
    return ids[0]
