"""Chat tasks to scores: multiple choice by the letters' logits, everything else by what the model writes.

Collective: problems are dealt out to the ranks and all items gathered, so every rank must call and gets the
same scores. What is asked and what counts as right is nanochat's (tasks/, conversation.py).
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

from nanolit.evaluation.items import ItemFile, checksum_of, on_all_ranks
from nanolit.evaluation.scores import Item
from nanolit.inference.engine import Engine
from nanolit.inference.request import Request
from nanolit.machine.device import derived_seed, rank, world_size
from nanolit.machine.system import cores_of_rank
from nanolit.tasks.task import Conversation, Task
from nanolit.tokenizer.conversation import render_prompt

CHAT_CORE = ("ARC-Easy", "ARC-Challenge", "MMLU", "GSM8K", "HumanEval")
MEAN = "mean above guessing"
SHUFFLED_BY = 42  # nanochat's seed for the order of a part
PROBLEMS = 512  # asked together and then kept: the engine sorts them by length, and interruptions cost less


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
    folder: Path | None = None,
    about: Mapping[str, Any] | None = None,
) -> Iterator[tuple[str, float]]:
    """Yield (task name, accuracy) per task as each is done, then (its name, mean accuracy above guessing).

    Greedy, one sample a problem, as nanochat's chat evaluation. The mean is ChatCORE where it is of
    nanochat's five tasks, all problems of each; other means don't compare with it. Items go to `folder`; an
    interrupted evaluation of the same `about` resumes there.
    """
    centered, asked = [], []
    for task in tasks:
        header = {"task": task.name, "max_tokens": max_tokens, "baseline": task.baseline, **(about or {})}
        header |= {"conditions": task.conditions} if task.conditions else {}
        if folder is not None:
            header |= {"questions": questions_of(task), "of": len(task.rows)}
        file = ItemFile(folder and folder / f"{task.name}.jsonl", header)
        score = evaluate_task(engine, task, max_problems=max_problems, max_tokens=max_tokens, file=file)
        centered.append(score.centered)
        asked.append(score.task)
        yield score.task, score.accuracy
    engine.release()
    if centered:
        whole = sorted(asked) == sorted(CHAT_CORE) and max_problems is None
        yield "ChatCORE" if whole else MEAN, sum(centered) / len(centered)


def questions_of(task: Task) -> str:
    """Return a checksum of every problem: items of others are not taken for these."""
    digest = hashlib.sha256()
    for conversation in task:
        digest.update(json.dumps(conversation, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:12]


def evaluate_task(
    engine: Engine,
    task: Task,
    *,
    max_problems: int | None = None,
    max_tokens: int = 512,
    file: ItemFile | None = None,
) -> Score:
    """Return the score of one task as its `evaluation_type` says; ValueError if it is only to learn from."""
    if task.evaluation_type == "categorical":
        return evaluate_categorical(engine, task, max_problems=max_problems, file=file)
    if task.evaluation_type == "generative":
        limits = {"max_problems": max_problems, "max_tokens": max_tokens}
        return evaluate_generative(engine, task, file=file, **limits)
    raise ValueError(f"{task.name} is to learn from and has no right answers; evaluate another task")


def evaluate_categorical(
    engine: Engine, task: Task, *, max_problems: int | None = None, file: ItemFile | None = None
) -> Score:
    """Of the letters that a problem allows, the likeliest next token is the answer."""

    def answer(indices: Sequence[int]) -> list[Item]:
        conversations = [task[index] for index in indices]
        items = []
        for index, problem, losses in zip(
            indices, conversations, letter_losses(engine, conversations), strict=True
        ):
            chosen = min(losses, key=losses.__getitem__)
            items.append(
                {
                    "index": index,
                    "prompt": checksum_of(render_prompt(problem, engine.tokenizer)),
                    **as_text(problem),
                    "losses": losses,
                    "replies": [chosen],
                    "rights": [task.evaluate(problem, chosen)],
                }
            )
        return items

    return _ask(task, max_problems, file, answer)


def letter_losses(engine: Engine, conversations: Sequence[Conversation]) -> Iterator[dict[str, float]]:
    """Yield for each conversation its letters with their losses after its prompt, in nats."""
    prompts = [
        render_prompt(conversation, engine.tokenizer)[-engine.max_positions :]
        for conversation in conversations
    ]
    for logits_V, conversation in zip(engine.next_logits(prompts), conversations, strict=True):
        ids = [_letter_id(engine, letter) for letter in conversation["letters"]]
        losses = -logits_V.log_softmax(-1)[ids]
        yield dict(zip(conversation["letters"], losses.tolist(), strict=True))


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
    file: ItemFile | None = None,
) -> Score:
    """Each problem is answered `num_samples` times; the task says which answers are right.

    Prompts that leave no room for `max_tokens` lose their beginning.
    """
    room = engine.max_positions - max_tokens
    if room < 1:
        raise ValueError(
            f"max_tokens ({max_tokens:,}) must be less than the model's positions ({engine.max_positions:,})"
        )

    def answer(indices: Sequence[int]) -> list[Item]:
        problems = [task[index] for index in indices]
        prompts = [render_prompt(problem, engine.tokenizer) for problem in problems]
        requests = [
            Request(
                prompt_ids=prompt[-room:],
                num_samples=num_samples,
                max_tokens=max_tokens,
                temperature=temperature,
                top_k=top_k,
                seed=derived_seed(seed, "problem", index),
            )
            for index, prompt in zip(indices, prompts, strict=True)
        ]
        replies = [
            [engine.tokenizer.decode(completion.body_ids) for completion in completions]
            for completions in engine.complete_all(requests)
        ]
        # Threads: to judge a program is to wait for the process that runs it
        with ThreadPoolExecutor(max_workers=cores_of_rank()) as pool:
            judging = [
                [pool.submit(task.evaluate, problem, reply) for reply in of_problem]
                for problem, of_problem in zip(problems, replies, strict=True)
            ]
            rights = [[verdict.result() for verdict in of_problem] for of_problem in judging]
        return [
            {
                "index": index,
                "prompt": checksum_of(prompt),
                **as_text(problem),
                "replies": of_problem,
                "extracted": [task.extract(reply) for reply in of_problem],
                "rights": right,
            }
            for index, problem, prompt, of_problem, right in zip(
                indices, problems, prompts, replies, rights, strict=True
            )
        ]

    return _ask(task, max_problems, file, answer)


def as_text(conversation: Conversation) -> dict[str, str]:
    """Return a problem and its reference answer, for people to read."""
    *_, question, answer = (message["content"] for message in conversation["messages"])
    text = answer if isinstance(answer, str) else "".join(part["text"] for part in answer)
    return {"question": str(question), "expected": text}


def pass_at_k(num_samples: int, num_right: int, *, k: int) -> float:
    """The chance that k of the samples, drawn without replacement, hold a right one.

    The unbiased estimator of Chen et al. 2021 (https://arxiv.org/abs/2107.03374), 1 - C(n-c, k) / C(n, k).
    Looking at the first k alone has the same mean and more noise.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k ({k}) must be between 1 and the number of samples ({num_samples})")
    return 1 - comb(num_samples - num_right, k) / comb(num_samples, k)


def _ask(
    task: Task,
    max_problems: int | None,
    file: ItemFile | None,
    answer: Callable[[Sequence[int]], list[Item]],
) -> Score:
    """Ask what the file lacks, each rank its share of every chunk; return the score of all items."""
    file, indices, world = file or ItemFile(), part_of(task, max_problems), world_size()
    missing = [index for index in indices if index not in file.items]
    for first in range(0, len(missing), PROBLEMS * world):
        items = on_all_ranks(answer(missing[first : first + PROBLEMS * world][rank() :: world]))
        file.add({**item, "right": item["rights"][0]} for item in items)
    rights = [file.items[index]["rights"] for index in indices]
    samples = range(1, len(rights[0]) + 1)
    return Score(
        task.name,
        task.baseline,
        len(rights),
        tuple(sum(pass_at_k(len(right), sum(right), k=k) for right in rights) / len(rights) for k in samples),
        tuple(sum(any(right[:k]) for right in rights) / len(rights) for k in samples),
    )


def part_of(task: Task, max_problems: int | None) -> list[int]:
    """Return the indices of the problems to ask; a part is nanochat's, drawn from the whole task.

    The first 200 of MMLU would be two subjects of 57.
    """
    if max_problems is None or max_problems >= len(task):
        return list(range(len(task)))
    return np.random.default_rng(SHUFFLED_BY).permutation(len(task))[:max_problems].tolist()


def _letter_id(engine: Engine, letter: str) -> int:
    ids = engine.tokenizer.encode(letter)
    if len(ids) != 1:
        raise ValueError(f"the answer {letter!r} is {len(ids)} tokens; allowed are answers of one token")
    return ids[0]
