"""A conversation to ids and mask, as nanochat does it; malformed ones are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from nanolit.tokenizer.bpe import Tokenizer
from nanolit.tokenizer.conversation import check_conversation, render, render_batch, render_prompt
from nanolit.tokenizer.nanochat import read_tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures" / "nanochat_2026"
CASES = json.loads((FIXTURES / "eval" / "conversations.json").read_text(encoding="utf-8"))["conversations"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return read_tokenizer(FIXTURES / "tokenizer")


@pytest.mark.parametrize("case", CASES, ids=[f"{case['task']}-{n}" for n, case in enumerate(CASES)])
def test_ids_and_mask_equal_nanochats(case: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Oracle: nanochat's own rendering, cut at 2,048 tokens."""
    ids, learned = render(case["conversation"], tokenizer, max_tokens=2048)
    assert ids.tolist() == case["ids"]
    assert learned.astype(int).tolist() == case["mask"]


@pytest.mark.parametrize("case", [case for case in CASES if "completion_prompt" in case])
def test_the_prompt_for_a_completion_equals_nanochats(case: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Oracle: nanochat's own prompt."""
    assert render_prompt(case["conversation"], tokenizer) == case["completion_prompt"]


def test_a_batch_equals_one_at_a_time(tokenizer: Tokenizer) -> None:
    conversations = [case["conversation"] for case in CASES]
    for conversation, (ids, learned) in zip(
        conversations, render_batch(conversations, tokenizer), strict=True
    ):
        alone = render(conversation, tokenizer)
        assert ids.tolist() == alone[0].tolist()
        assert learned.tolist() == alone[1].tolist()


def test_only_the_assistants_own_tokens_are_learned(tokenizer: Tokenizer) -> None:
    """What is learned, read back as text: words, tool calls with brackets, end tokens; no question, no
    output."""
    parts = [
        {"type": "text", "text": "It is "},
        {"type": "python", "text": "6*7"},
        {"type": "python_output", "text": "42"},
        {"type": "text", "text": "so much"},
    ]
    turns = [
        ("system", "Be brief"),
        ("user", "hello"),
        ("assistant", "Hi"),
        ("user", "6*7?"),
        ("assistant", parts),
    ]
    conversation = {"messages": [{"role": role, "content": content} for role, content in turns]}
    ids, learned = render(conversation, tokenizer)
    assert tokenizer.decode(ids[learned].tolist()) == (
        "Hi<|assistant_end|>It is <|python_start|>6*7<|python_end|>so much<|assistant_end|>"
    )


def test_special_tokens_in_a_text_stay_text(tokenizer: Tokenizer) -> None:
    conversation = {"messages": [{"role": "user", "content": "<|assistant_end|><|bos|>"}]}
    ids, _ = render(conversation, tokenizer)
    specials = [token for token in ids.tolist() if token >= tokenizer.bos_id]
    assert specials == [tokenizer.special_id(name) for name in ("<|bos|>", "<|user_start|>", "<|user_end|>")]


def say(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def part(kind: str, text: str = "1") -> dict[str, str]:
    return {"type": kind, "text": text}


@pytest.mark.parametrize(
    ("conversation", "complaint"),
    [
        ({}, "no messages"),
        ([], "no messages"),
        ({"messages": []}, "no messages"),
        ({"messages": "hello"}, "no messages"),
        ({"messages": ["hello"]}, "message 1: got 'hello'"),
        ({"messages": [{"role": "user"}]}, "message 1: got {'role': 'user'}"),
        (say(("user", "a"), ("user", "b")), "message 2: got role user, expected assistant"),
        (say(("assistant", "a")), "message 1: got role assistant, expected user"),
        (say(("user", "a"), ("system", "b")), "message 2: got role system, expected assistant"),
        (say(("system", "a")), "a system message alone"),
        (say(("tool", "a")), "unknown role 'tool'; allowed: system, user, assistant"),
        (say(("user", " \n")), "message 1: the user's content is empty"),
        (say(("user", None)), "message 1: the user's content is None"),
        (say(("user", [part("text")])), "the user's content is \\["),
        (say(("user", "a"), ("assistant", "")), "message 2: the assistant's content is empty"),
        (say(("user", "a"), ("assistant", [])), "message 2: the assistant's content is \\[\\]"),
        (say(("user", "a"), ("assistant", [part("image")])), "got the part"),
        (say(("user", "a"), ("assistant", [part("text", "")])), "a text part holds ''"),
        (say(("user", "a"), ("assistant", [part("python")])), "a python part without output"),
        (say(("user", "a"), ("assistant", [part("python"), part("text")])), "a python part without output"),
        (say(("user", "a"), ("assistant", [part("python"), part("python_output", "")])), "content is empty"),
        (say(("user", "a"), ("assistant", [part("python_output")])), "without its call"),
        (say(("user", "a"), ("assistant", [part("text"), part("python_output")])), "without its call"),
    ],
)
def test_a_malformed_conversation_is_refused_with_its_place(conversation: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=rf"chats\.jsonl line 7.*{complaint}"):
        check_conversation(conversation, place="chats.jsonl line 7")


def test_rendering_refuses_what_the_check_refuses(tokenizer: Tokenizer) -> None:
    wrong = say(("user", "a"), ("user", "b"))
    with pytest.raises(ValueError, match="expected assistant"):
        render(wrong, tokenizer)
    with pytest.raises(ValueError, match="expected assistant"):
        render_prompt(wrong, tokenizer)
