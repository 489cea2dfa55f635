"""Prompts for reinforcement learning: the same problems per step on any number of ranks."""

from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from nanolit.data.prompts import Prompt, PromptStream
from nanolit.tasks.sums import Sums
from nanolit.tokenizer.conversation import render_prompt
from nanolit.tokenizer.nanochat import read_tokenizer

TOKENIZER = read_tokenizer(Path(__file__).parents[1] / "fixtures" / "nanochat_2026" / "tokenizer")
SUMS = Sums(split="train", size=21)


def stream(**changes: Any) -> PromptStream:
    return PromptStream(SUMS, TOKENIZER, **{"prompts": 4, "max_prompt_tokens": 64, "seed": 1, **changes})


def prompts(steps: list[Any]) -> list[list[Prompt]]:
    return [step.prompts for step in steps]


def test_an_epoch_asks_every_problem_at_most_once() -> None:
    questions = [
        prompt.conversation["messages"][0]["content"] for step in stream() for prompt in step.prompts
    ]
    assert stream().num_steps == 5
    assert len(set(questions)) == len(questions) == 20


def test_ids_are_the_prompt_for_a_completion() -> None:
    for step in stream():
        for place, prompt in enumerate(step.prompts):
            assert prompt.ids == render_prompt(prompt.conversation, TOKENIZER)
            assert prompt.place == place


def test_ranks_share_the_same_problems() -> None:
    """Oracle: one rank."""
    whole = prompts(list(stream(max_steps=12)))
    for world in (2, 4):
        ranks = [prompts(list(stream(max_steps=12, rank=rank, world=world))) for rank in range(world)]
        assert [list(chain(*shares)) for shares in zip(*ranks, strict=True)] == whole


def test_resume_is_exact() -> None:
    whole = list(stream(max_steps=12))
    resumed = stream(max_steps=12, rank=1, world=2)
    resumed.load_position([whole[6].position])
    assert prompts(list(resumed)) == [step.prompts[2:] for step in whole[7:]]


def test_seed_and_epoch_change_the_order() -> None:
    assert prompts(list(stream())) != prompts(list(stream(seed=2)))
    two = prompts(list(stream(prompts=7, max_steps=6)))
    assert len(two) == 6
    assert two[:3] != two[3:]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"prompts": 5, "world": 2}, "multiple of the ranks"),
        ({"prompts": 22}, "has 21 prompts, fewer than the 22 of one step; try 21"),
        ({"max_prompt_tokens": 3}, "every prompt is longer than 3 tokens"),
    ],
)
def test_bad_settings_say_what_to_do(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        stream(**changes)


def test_a_position_of_other_settings_is_refused() -> None:
    step = next(iter(stream()))
    with pytest.raises(ValueError, match="order would differ: seed was 1, is 2; resume"):
        stream(seed=2).load_position([step.position])
