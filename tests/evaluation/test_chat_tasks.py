"""Scores of chat tasks equal counting by hand, on any number of ranks."""

import itertools
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed

from nanolit.evaluation import chat_tasks
from nanolit.evaluation.chat_tasks import (
    CHAT_CORE,
    Problem,
    Score,
    evaluate_categorical,
    evaluate_generative,
    evaluate_task,
    evaluate_tasks,
    part_of,
    pass_at_k,
)
from nanolit.evaluation.items import ItemFile
from nanolit.evaluation.scores import read_items
from nanolit.inference.engine import Engine
from nanolit.inference.request import Handle, Request
from nanolit.machine.device import derived_seed
from nanolit.machine.paths import read_json
from nanolit.model.gpt import GPT, GPTConfig
from nanolit.model.nanochat import build_model, read_checkpoint
from nanolit.tasks.arc import ARC
from nanolit.tasks.gsm8k import GSM8K
from nanolit.tasks.humaneval import HumanEval
from nanolit.tasks.sandbox import walls
from nanolit.tasks.task import MultipleChoice, Task, choice_conversation
from nanolit.tokenizer.bpe import Tokenizer
from nanolit.tokenizer.conversation import render_prompt
from nanolit.tokenizer.nanochat import read_tokenizer
from tests.ranks import run_ranks


class Numbers:
    """Rows 0 … size-1."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.size:
            raise IndexError(index)
        return {"number": index}

    def place(self, index: int) -> str:
        return f"row {index}"


class Choices(MultipleChoice):
    """Questions of different lengths, some with three letters."""

    def conversation(self, row: dict) -> dict:
        number = row["number"]
        letters = "ABCD"[: 3 + number % 2]
        return choice_conversation(
            "which one" + "?" * (number % 7),
            choices=[f"choice {number}{letter}" for letter in letters],
            letters=list(letters),
            answer=letters[number % 3],
        )


class LongChoices(Choices):
    """The same, each of more tokens than the model has positions for."""

    def conversation(self, row: dict) -> dict:
        conversation = super().conversation(row)
        conversation["messages"][0]["content"] = "long " * 130 + conversation["messages"][0]["content"]
        return conversation


def is_right(completion: str) -> bool:
    """A third of all random completions are."""
    return sum(map(ord, completion)) % 3 == 0


class Lucky(Task):
    """Questions that a model with random weights answers rightly now and then."""

    evaluation_type = "generative"

    def conversation(self, row: dict) -> dict:
        question = "say " + "xyzuv"[row["number"] % 5] * (row["number"] % 5 + 1)
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "e"}]}

    def evaluate(self, conversation: dict, completion: str) -> bool:
        return is_right(completion)


def make_engine() -> Engine:
    """Two layers of width 32 with large random weights, so that prompts matter; every rank makes the same."""
    model = GPT(
        GPTConfig(
            depth=2,
            width=32,
            heads=2,
            kv_heads=2,
            vocab_size=265,
            context=64,
            rope_base=10_000.0,
            window_pattern="L",
            value_embeddings=False,
            residual_scalars=False,
            smear=False,
            backout=False,
            qk_scale=1.0,
            softcap=60.0,  # far from saturation
            initialization="classic",
            vocab_multiple=64,
            rope_dtype="compute",
            softcap_dtype="float32",
        )
    )
    generator = torch.Generator().manual_seed(1)
    model.prepare(dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        model.embedding.weight.normal_(generator=generator)
    return Engine(model, Tokenizer([bytes([byte]) for byte in range(256)]))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine()


def choose_letters(engine: Engine, task: Task, folder: Path) -> list[str]:
    file = ItemFile(folder / "choices.jsonl")
    evaluate_categorical(engine, task, file=file)
    return [file.items[index]["replies"][0] for index in range(len(task))]


def test_chosen_letters_equal_one_forward_pass_per_problem(engine, tmp_path):
    """Oracle: each prompt alone, unpadded, and the largest of its letters' logits by hand."""
    expected = []
    for conversation in Choices(Numbers(11)):
        with torch.no_grad():
            logits = engine.model(torch.tensor([render_prompt(conversation, engine.tokenizer)]))[0, -1]
        expected.append(max(conversation["letters"], key=lambda letter: logits[ord(letter)].item()))
    assert choose_letters(engine, Choices(Numbers(11)), tmp_path) == expected
    assert len(set(expected)) > 1


def test_categorical_accuracy_counts_right_letters(engine, tmp_path):
    task = Choices(Numbers(11))
    right = [
        chosen == conversation["messages"][-1]["content"]
        for conversation, chosen in zip(task, choose_letters(engine, task, tmp_path), strict=True)
    ]
    score = evaluate_task(engine, task)
    assert score.num_problems == 11
    assert score.accuracy == pytest.approx(sum(right) / 11)
    assert 0 < sum(right) < 11
    assert score.centered == pytest.approx((sum(right) / 11 - 0.25) / 0.75)


def test_generative_scores_equal_counting_the_samples_by_hand(engine):
    """Oracle: the same samples, drawn problem by problem, and all ways to choose k of them."""
    task, num_samples = Lucky(Numbers(6)), 4
    settings = {"max_tokens": 12, "temperature": 1.0, "top_k": 50}
    score = evaluate_generative(engine, task, num_samples=num_samples, seed=5, **settings)
    verdicts: list[Sequence[bool]] = []
    for index in range(6):
        prompt = render_prompt(task[index], engine.tokenizer)
        seed = derived_seed(5, "problem", index)
        samples = engine.complete(prompt, num_samples=num_samples, seed=seed, **settings)
        verdicts.append([is_right(engine.tokenizer.decode(sample.body_ids)) for sample in samples])
    assert 0 < sum(map(sum, verdicts)) < 24
    for k in range(1, num_samples + 1):
        choices = [list(map(any, itertools.combinations(verdict, k))) for verdict in verdicts]
        assert score.pass_at[k - 1] == pytest.approx(sum(sum(c) / len(c) for c in choices) / 6)
        assert score.any_of_first[k - 1] == pytest.approx(sum(any(v[:k]) for v in verdicts) / 6)


@pytest.mark.parametrize(("n", "c"), [(1, 0), (1, 1), (5, 0), (5, 2), (8, 8)])
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one(n, c):
    """Oracle: all draws of k samples, listed."""
    samples = [True] * c + [False] * (n - c)
    for k in range(1, n + 1):
        draws = list(map(any, itertools.combinations(samples, k)))
        assert pass_at_k(n, c, k=k) == pytest.approx(sum(draws) / len(draws))


def test_pass_at_k_beyond_the_samples_is_refused():
    with pytest.raises(ValueError, match="between 1 and the number of samples"):
        pass_at_k(4, 1, k=5)


def test_all_tasks_give_their_accuracies_and_the_mean_above_guessing(engine):
    tasks = [Choices(Numbers(11)), Lucky(Numbers(3))]
    scores = dict(evaluate_tasks(engine, tasks, max_tokens=6))
    assert list(scores) == ["Choices", "Lucky", "mean above guessing"]
    expected = ((scores["Choices"] - 0.25) / 0.75 + scores["Lucky"]) / 2
    assert scores["mean above guessing"] == pytest.approx(expected)


def test_the_tasks_of_the_sample_are_asked_and_graded():
    """Real questions, nanochat's tiny trained model and tokenizer: every problem is counted, none raises."""
    folder = Path(__file__).parents[1] / "fixtures" / "nanochat_2026"
    content = read_json(folder / "base_checkpoints/d3/meta_000020.json")
    state = read_checkpoint(folder / "base_checkpoints/d3/model_000020.pt")
    model, _ = build_model(state, content["model_config"], origin="fixture")
    engine = Engine(model, read_tokenizer(folder / "tokenizer"))
    easy = ARC(subset="ARC-Easy", split="test", source="sample")
    score = evaluate_task(engine, easy, max_per_task=16)
    assert score.num_problems == 16
    assert score.accuracy * 16 in range(1, 16)
    gsm8k = evaluate_task(engine, GSM8K(split="test", source="sample"), max_per_task=2, max_tokens=8)
    assert (gsm8k.num_problems, gsm8k.accuracy) == (2, 0.0)


def test_a_part_of_a_task_is_nanochats(engine):
    """Oracle: numpy's permutation with seed 42, which is what `datasets` shuffles by."""
    assert evaluate_categorical(engine, Choices(Numbers(11)), max_per_task=5).num_problems == 5
    expected = np.random.default_rng(42).permutation(11)[:5].tolist()
    assert part_of(Choices(Numbers(11)), 5) == expected
    assert part_of(Choices(Numbers(11)), None) == list(range(11))


class Named(Lucky):
    """A task of another name."""

    name = ""


def named(name: str) -> Task:
    task = Named(Numbers(3))
    task.name = name
    return task


def test_the_mean_of_the_five_whole_tasks_alone_is_chatcore_and_all_are_stored(engine, tmp_path):
    five = [named(name) for name in CHAT_CORE]
    whole = dict(evaluate_tasks(engine, five, max_tokens=2, folder=tmp_path))
    assert [*whole][-1] == "ChatCORE"
    assert read_json(tmp_path / "chat.json") == {
        "format": 1,
        "metrics": whole,
        "asked": dict.fromkeys(CHAT_CORE, 3),
    }
    assert [*dict(evaluate_tasks(engine, five[:4], max_tokens=2))][-1] == "mean above guessing"
    assert [*dict(evaluate_tasks(engine, five, max_tokens=2, max_per_task=2))][-1] == "mean above guessing"
    five[0] = Named(Numbers(3), max_rows=2)
    five[0].name = "ARC-Easy"
    assert [*dict(evaluate_tasks(engine, five, max_tokens=2))][-1] == "mean above guessing"


class Slow(Lucky):
    """Judging waits until the engine has written the last reply: it never would between two batches."""

    def __init__(self, engine: Engine, size: int) -> None:
        super().__init__(Numbers(size))
        self.engine, self.written = engine, threading.Event()

    def evaluate(self, conversation: dict, completion: str) -> bool:
        assert self.written.wait(timeout=60)
        return is_right(completion)


def test_replies_are_judged_while_the_next_ones_are_written(engine, monkeypatch):
    monkeypatch.setattr(chat_tasks, "PROBLEMS", 2)
    task, submit, asked = Slow(engine, 6), Engine.submit, []

    def count(self: Engine, request: Request) -> Handle:
        asked.append(request)
        if len(asked) == 4:  # the second batch has begun
            task.written.set()
        return submit(self, request)

    monkeypatch.setattr(Engine, "submit", count)
    assert evaluate_generative(engine, task, max_tokens=6).num_problems == 6


def test_items_are_kept_and_an_interrupted_evaluation_resumes_there(engine, tmp_path, monkeypatch):
    """The second evaluation finds half of the items and asks the other half alone."""
    monkeypatch.setattr(chat_tasks, "PROBLEMS", 2)
    settings = {"max_tokens": 6, "folder": tmp_path, "about": {"weights": "a"}}
    scores = dict(evaluate_tasks(engine, [Lucky(Numbers(7))], **settings))
    path = tmp_path / "Lucky.jsonl"
    header, items = read_items(path)
    assert (header["task"], header["weights"], len(items)) == ("Lucky", "a", 7)
    assert sum(item["right"] for item in items) / 7 == scores["Lucky"]
    assert all(isinstance(item["replies"][0], str) for item in items)
    path.write_text("\n".join(path.read_text().split("\n")[:5]) + "\n")
    asked, submit = [], Engine.submit
    monkeypatch.setattr(
        Engine, "submit", lambda self, request: asked.append(request) or submit(self, request)
    )
    assert dict(evaluate_tasks(engine, [Lucky(Numbers(7))], **settings)) == scores
    assert len(asked) == 3
    asked.clear()
    dict(evaluate_tasks(engine, [Lucky(Numbers(6))], **settings))
    assert len(asked) == 6  # items of other questions are not taken for these
    dict(evaluate_tasks(engine, [Lucky(Numbers(7))], **settings))
    assert read_items(path)[1] == items


def test_calculator_calls_of_a_reference_answer_are_stored_as_the_chat_shows_them():
    parts = [("text", "1+1 = "), ("python", "1+1"), ("python_output", "2"), ("text", "2 teams")]
    answer = [{"type": type, "text": text} for type, text in parts]
    messages = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": answer}]
    assert Problem(0, {"messages": messages}, [1]).item()["expected"] == "1+1 = [1+1][= 2]2 teams"


def test_no_pipe_among_the_items_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "Lucky.jsonl")
    with pytest.raises(ValueError, match=r"Lucky\.jsonl is not a file; delete it and evaluate again"):
        read_items(tmp_path / "Lucky.jsonl")


def test_a_prompt_longer_than_the_model_has_positions_for_loses_its_beginning(engine, tmp_path):
    """Oracle: the model on the prompt's last positions but one, which the letter needs."""
    conversation = LongChoices(Numbers(1))[0]
    prompt = render_prompt(conversation, engine.tokenizer)
    assert len(prompt) > engine.max_positions
    with torch.no_grad():
        logits = engine.model(torch.tensor([prompt[1 - engine.max_positions :]]))[0, -1]
    expected = max(conversation["letters"], key=lambda letter: logits[ord(letter)].item())
    assert choose_letters(engine, LongChoices(Numbers(1)), tmp_path) == [expected]


def test_a_long_question_leaves_room_for_the_answer(engine, monkeypatch):
    asked, submit = [], Engine.submit
    monkeypatch.setattr(
        Engine, "submit", lambda self, request: asked.append(request) or submit(self, request)
    )
    task = LongChoices(Numbers(1))
    evaluate_generative(engine, task, max_tokens=12)
    assert [request.prompt_ids for request in asked] == [render_prompt(task[0], engine.tokenizer)[-628:]]


class ToLearnFrom(Task):
    def conversation(self, row):
        return row


def test_a_task_to_learn_from_is_refused(engine):
    with pytest.raises(ValueError, match="no right answers"):
        evaluate_task(engine, ToLearnFrom(Numbers(1)))


def scores_of_this_rank(rank: int, world: int, rendezvous: str) -> list[Score]:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world
    )
    try:
        engine = make_engine()
        return [
            evaluate_categorical(engine, Choices(Numbers(11))),
            evaluate_generative(
                engine, Lucky(Numbers(5)), num_samples=2, max_tokens=8, temperature=1.0, seed=1
            ),
        ]
    finally:
        torch.distributed.destroy_process_group()


def rank_process(rank: int, rendezvous: str, folder: str) -> None:
    scores = scores_of_this_rank(rank, 2, rendezvous)
    with open(os.path.join(folder, str(rank)), "w") as file:
        file.write(repr(scores))
    os._exit(0)  # gloo now and then aborts a process that shuts Python down (torch 2.11)


def test_scores_are_the_same_on_two_ranks_as_on_one(engine, tmp_path):
    run_ranks(rank_process, str(tmp_path / "meet"), str(tmp_path), world=2)
    alone = [
        evaluate_categorical(engine, Choices(Numbers(11))),
        evaluate_generative(engine, Lucky(Numbers(5)), num_samples=2, max_tokens=8, temperature=1.0, seed=1),
    ]
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() == repr(alone)


def test_the_walls_of_the_sandbox_are_stored_with_the_items(engine, tmp_path):
    """Oracle: the sandbox's own list of what it raised."""
    dict(evaluate_tasks(engine, [HumanEval(source="sample", max_rows=1)], max_tokens=2, folder=tmp_path))
    header, _ = read_items(tmp_path / "HumanEval.jsonl")
    assert header["conditions"] == f"sandbox: {', '.join(walls())}"
