"""Chat tasks to scores: multiple choice by the letters' logits, everything else by what the model writes.

Collective: problems are dealt out to the ranks and all items gathered, so every rank must call and gets the
same scores. What is asked and what counts as right is nanochat's (tasks/, conversation.py).
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nanolit.evaluation.items import ItemFile, checksum_of, on_all_ranks, overlap
from nanolit.evaluation.scores import Item
from nanolit.evaluation.spans import Group, OwnScorer
from nanolit.inference.engine import Engine
from nanolit.inference.request import Handle, Request
from nanolit.machine.device import derived_seed, rank, world_size
from nanolit.machine.numbers import chunked
from nanolit.machine.paths import write_json
from nanolit.machine.system import cores_of_rank
from nanolit.tasks.task import Conversation, Task
from nanolit.tokenizer.conversation import render_prompt

CHAT_CORE = ("ARC-Easy", "ARC-Challenge", "MMLU", "GSM8K", "HumanEval")
MEAN = "mean above guessing"
SHUFFLED_BY = 42  # nanochat's seed for the order of a part
SHOWN = {"text": "%s", "python": "[%s]", "python_output": "[= %s]"}  # a calculator call, as the chat shows it
STEPS = 16  # of the engine between two looks at what has ended: each looks at hundreds of replies
PROBLEMS = 512  # asked together and then kept: the engine sorts them by length, and interruptions cost less


@dataclass(frozen=True)
class Score:
    """A model's scores on one task, as fractions of `num_problems`.

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
        """Return the chance that one answer is right: pass@1."""
        return self.pass_at[0]

    @property
    def centered(self) -> float:
        """Return the accuracy above guessing: 0 for guessing, 1 for all right."""
        return (self.accuracy - self.baseline) / (1 - self.baseline)


class Problem(NamedTuple):
    """A task's problem as a conversation, and the ids after which the model answers."""

    index: int
    conversation: Conversation
    prompt: list[int]

    def item(self) -> Item:
        """Return what is kept of it, with the question and the reference answer for people to read."""
        *_, question, answer = (message["content"] for message in self.conversation["messages"])
        text = (
            answer
            if isinstance(answer, str)
            else "".join(SHOWN[part["type"]] % part["text"] for part in answer)
        )
        asked = {"index": self.index, "prompt": checksum_of(self.prompt)}
        return {**asked, "question": str(question), "expected": text}


def evaluate_tasks(
    engine: Engine,
    tasks: Iterable[Task],
    *,
    max_per_task: int | None = None,
    max_tokens: int = 512,
    folder: Path | None = None,
    about: Mapping[str, Any] | None = None,
) -> Iterator[tuple[str, float]]:
    """Yield (task name, accuracy) per task as each is done, then (its name, mean accuracy above guessing).

    Greedy, one sample a problem, as nanochat's chat evaluation. The mean is ChatCORE where it is of
    nanochat's five tasks, all problems of each; other means don't compare with it. `folder` gets the items,
    from which an interrupted evaluation of the same `about` resumes, and in the end chat.json, the scores.
    """
    scores, whole = dict[str, Score](), True
    for task in tasks:
        header = {"task": task.name, "max_tokens": max_tokens, "baseline": task.baseline, **(about or {})}
        header |= {"conditions": task.conditions} if task.conditions else {}
        if folder is not None:
            header |= {"questions": questions_of(task), "of": len(task.rows)}
        file = ItemFile(folder and folder / f"{task.name}.jsonl", header)
        score = evaluate_task(engine, task, max_per_task=max_per_task, max_tokens=max_tokens, file=file)
        scores[task.name] = score
        whole = whole and score.num_problems == len(task.rows)
        yield score.task, score.accuracy
    engine.release()
    if scores:
        name = "ChatCORE" if whole and scores.keys() == set(CHAT_CORE) else MEAN
        mean = sum(score.centered for score in scores.values()) / len(scores)
        if folder is not None and rank() == 0:
            metrics = {task: score.accuracy for task, score in scores.items()} | {name: mean}
            asked = {task: score.num_problems for task, score in scores.items()}
            write_json(folder / "chat.json", {"format": 1, "metrics": metrics, "asked": asked})
        yield name, mean


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
    max_per_task: int | None = None,
    max_tokens: int = 512,
    file: ItemFile | None = None,
) -> Score:
    """Return the score of one task as its `evaluation_type` says; ValueError if it is only to learn from."""
    if task.evaluation_type == "categorical":
        return evaluate_categorical(engine, task, max_per_task=max_per_task, file=file)
    if task.evaluation_type == "generative":
        limits = {"max_per_task": max_per_task, "max_tokens": max_tokens}
        return evaluate_generative(engine, task, file=file, **limits)
    raise ValueError(f"{task.name} is for training and has no right answers; evaluate another task")


def evaluate_categorical(
    engine: Engine, task: Task, *, max_per_task: int | None = None, file: ItemFile | None = None
) -> Score:
    """Score multiple choice: the answer is the likeliest next token of the letters that a problem allows."""
    scorer = OwnScorer(engine.model)

    def answer(asked: Sequence[Problem]) -> Callable[[], list[Item]]:
        wait = scorer.start(
            [letters_after(engine, prompt, problem["letters"]) for _, problem, prompt in asked]
        )

        def finish() -> list[Item]:
            said = []
            for (_, problem, _), spans in zip(asked, wait(), strict=True):
                losses = {letter: span.loss for letter, span in zip(problem["letters"], spans, strict=True)}
                chosen = min(losses, key=losses.__getitem__)
                rights = [task.evaluate(problem, chosen)]
                said.append({"losses": losses, "replies": [chosen], "rights": rights})
            return said

        return finish

    return _ask(engine, task, max_per_task, file, answer)


def letters_after(engine: Engine, prompt: Sequence[int], letters: Sequence[str]) -> Group:
    """Return the texts that end in one letter each, which is what is scored of them.

    A prompt that leaves no position for the letter loses its beginning.
    """
    prompt = prompt[-(engine.max_positions - 1) :]
    return Group(
        [np.array([*prompt, _letter_id(engine, letter)]) for letter in letters], [len(prompt)] * len(letters)
    )


def evaluate_generative(
    engine: Engine,
    task: Task,
    *,
    num_samples: int = 1,
    max_per_task: int | None = None,
    max_tokens: int = 512,
    temperature: float = 0.0,
    top_k: int | None = 50,
    seed: int = 42,
    file: ItemFile | None = None,
) -> Score:
    """Score free answers: each problem is answered `num_samples` times, and the task says which are right.

    Prompts that leave no room for `max_tokens` lose their beginning.
    """
    room = engine.max_positions - max_tokens
    if room < 1:
        raise ValueError(
            f"max_tokens ({max_tokens:,}) must be below the model's {engine.max_positions:,} positions"
        )
    sampling: Any = {"num_samples": num_samples, "temperature": temperature, "top_k": top_k}

    def request(problem: Problem) -> Request:
        drawn = derived_seed(seed, "problem", problem.index)
        return Request(prompt_ids=problem.prompt[-room:], max_tokens=max_tokens, seed=drawn, **sampling)

    def answer(asked: Sequence[Problem]) -> Callable[[], list[Item]]:
        return judge_beside(engine, task, asked, map(request, asked), pool)

    # Threads: to judge a program is to wait for the process that runs it. One core is left to the engine
    pool = ThreadPoolExecutor(max_workers=max(1, cores_of_rank() - 1))
    try:
        return _ask(engine, task, max_per_task, file, answer)
    finally:
        pool.shutdown(cancel_futures=True)


def judge_beside(
    engine: Engine, task: Task, asked: Sequence[Problem], requests: Iterable[Request], pool: Executor
) -> Callable[[], list[Item]]:
    """Write every reply and begin to judge each when it ends; what is returned waits for the verdicts.

    A GPU never waits for a sandbox.
    """
    handles, replies = dict[int, Handle](), dict[int, list[str]]()
    verdicts: dict[int, list[Future[bool]]] = {}
    try:
        for place, request in enumerate(requests):
            handles[place] = engine.submit(request)
        while handles:
            for _ in range(STEPS):
                engine.step()
            for place in [place for place, handle in handles.items() if handle.done]:
                problem, completions = asked[place].conversation, handles.pop(place).completions
                replies[place] = [engine.tokenizer.decode(completion.body_ids) for completion in completions]
                verdicts[place] = [pool.submit(task.evaluate, problem, reply) for reply in replies[place]]
    finally:
        for handle in handles.values():
            engine.cancel(handle)

    def finish() -> list[Item]:
        said = []
        for place in range(len(asked)):
            rights = [verdict.result() for verdict in verdicts[place]]
            extracted = [task.extract(reply) for reply in replies[place]]
            said.append({"replies": replies[place], "extracted": extracted, "rights": rights})
        return said

    return finish


def pass_at_k(num_samples: int, num_right: int, *, k: int) -> float:
    """Return the chance that k of the samples, drawn without replacement, include a right one.

    The unbiased estimator of Chen et al. 2021 (https://arxiv.org/abs/2107.03374), 1 - C(n-c, k) / C(n, k).
    Looking at the first k alone has the same mean and more noise.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k ({k}) must be between 1 and the number of samples ({num_samples})")
    return 1 - comb(num_samples - num_right, k) / comb(num_samples, k)


def _ask(
    engine: Engine,
    task: Task,
    max_per_task: int | None,
    file: ItemFile | None,
    answer: Callable[[Sequence[Problem]], Callable[[], list[Item]]],
) -> Score:
    """Ask what the file lacks, each rank its share of every chunk; return the score of all items.

    `answer` begins to judge what the model says, and what it returns waits for that: once the next chunk has
    been asked.
    """
    file, indices, world = file or ItemFile(), part_of(task, max_per_task), world_size()
    missing = [index for index in indices if index not in file.items]

    def ask_chunk(chunk: Sequence[int]) -> Iterator[None]:
        mine = [(index, task[index]) for index in chunk[rank() :: world]]
        asked = [Problem(index, problem, render_prompt(problem, engine.tokenizer)) for index, problem in mine]
        wait = answer(asked)
        yield
        items = [problem.item() | said for problem, said in zip(asked, wait(), strict=True)]
        file.add({**item, "right": item["rights"][0]} for item in on_all_ranks(items))

    overlap(map(ask_chunk, chunked(missing, PROBLEMS * world)))
    rights = [file.items[index]["rights"] for index in indices]
    samples = range(1, len(rights[0]) + 1)
    return Score(
        task.name,
        task.baseline,
        len(rights),
        tuple(sum(pass_at_k(len(right), sum(right), k=k) for right in rights) / len(rights) for k in samples),
        tuple(sum(any(right[:k]) for right in rights) / len(rights) for k in samples),
    )


def part_of(task: Task, max_per_task: int | None) -> list[int]:
    """Return the indices of the problems to ask; a part is nanochat's, drawn from the whole task.

    The first 200 of MMLU would be two subjects of 57.
    """
    if max_per_task is None or max_per_task >= len(task):
        return list(range(len(task)))
    return np.random.default_rng(SHUFFLED_BY).permutation(len(task))[:max_per_task].tolist()


def _letter_id(engine: Engine, letter: str) -> int:
    ids = engine.tokenizer.encode(letter)
    if len(ids) != 1:
        raise ValueError(f"the answer {letter!r} is {len(ids)} tokens; it must be one token")
    return ids[0]
