"""A conversation to ids and mask, as nanochat does it; malformed ones are refused."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanolit.tokenizer.bpe import Tokenizer
from nanolit.tokenizer.conversation import check_conversation, render, render_batch, render_prompt
from nanolit.tokenizer.nanochat import read_tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures" / "nanochat_2026"
CASES = json.loads((FIXTURES / "eval" / "conversations.json").read_text(encoding="utf-8"))["conversations"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return TOKENIZER


TOKENIZER = read_tokenizer(FIXTURES / "tokenizer")
SPECIALS = ("bos", "user_start", "user_end", "assistant_start", "assistant_end", "output_start", "output_end")
NAMES = ["<|bos|>", "<|assistant_start|>", "<|assistant_end|>", "<|output_end|>", "<|python_start|>"]
ANY_TEXT = st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.strip)
TEXT = st.one_of(ANY_TEXT, st.sampled_from([*NAMES, "a<|user_end|>b", "12*3", " ", "\n"]).filter(str.strip))
CALL = st.tuples(TEXT, TEXT).map(lambda call: [part("python", call[0]), part("python_output", call[1])])
BLOCK = st.one_of(CALL, st.one_of(TEXT, st.sampled_from([" ", "\n"])).map(lambda text: [part("text", text)]))
ANSWER = st.one_of(TEXT, st.lists(BLOCK, min_size=1, max_size=4).map(lambda blocks: [*chain(*blocks)]))
CONVERSATION = st.tuples(
    st.none() | TEXT, st.lists(st.tuples(TEXT, ANSWER), max_size=4), st.none() | TEXT
).filter(lambda drawn: drawn[1] or drawn[2])


def turns_of(drawn: Any) -> dict[str, Any]:
    """(system, [(question, answer)], last question) as a conversation."""
    system, pairs, last = drawn
    turns = [("system", system)] if system else []
    for question, answer in pairs:
        turns += [("user", question), ("assistant", answer)]
    return say(*turns, *([("user", last)] if last else []))


def say(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def part(kind: str, text: str = "1") -> dict[str, str]:
    return {"type": kind, "text": text}


def written_out(drawn: Any) -> tuple[str, str]:
    """The oracle of a rendering: all of a conversation as text with its special tokens, and what of it is
    learned."""
    system, pairs, last = drawn
    whole, learned = "<|bos|>", ""
    merged = f"{system}\n\n" if system else ""
    for question, answer in [*pairs, *([(last, None)] if last else [])]:
        whole += f"<|user_start|>{merged}{question}<|user_end|>"
        merged = ""
        if answer is None:
            break
        whole += "<|assistant_start|>"
        for one in [part("text", answer)] if isinstance(answer, str) else answer:
            if one["type"] == "python_output":
                whole += f"<|output_start|>{one['text']}<|output_end|>"
                continue
            said = f"<|python_start|>{one['text']}<|python_end|>" if one["type"] == "python" else one["text"]
            whole, learned = whole + said, learned + said
        whole, learned = whole + "<|assistant_end|>", learned + "<|assistant_end|>"
    return whole, learned


@settings(max_examples=200)
@given(drawn=CONVERSATION)
def test_any_conversation_is_rendered_whole_and_only_the_assistants_part_is_learned(drawn: Any) -> None:
    """Oracle: the conversation written out by hand, read back from all ids and from the learned ones."""
    ids, learned = render(turns_of(drawn), TOKENIZER)
    whole, said = written_out(drawn)
    assert TOKENIZER.decode(ids.tolist()) == whole
    assert TOKENIZER.decode(ids[learned].tolist()) == said


@settings(max_examples=100)
@given(drawn=CONVERSATION)
def test_the_mask_follows_from_the_special_tokens_alone(drawn: Any) -> None:
    """Oracle: a walk over the ids. What a text says, special names included, never moves it."""
    name_of = {TOKENIZER.special_id(f"<|{name}|>"): name for name in SPECIALS}
    ids, learned = render(turns_of(drawn), TOKENIZER)
    speaking = tool = False
    for token, is_learned in zip(ids.tolist(), learned.tolist(), strict=True):
        name = name_of.get(token)
        speaking = speaking and name != "bos"
        tool = tool or name == "output_start"
        assert is_learned == (speaking and not tool)
        speaking = (speaking or name == "assistant_start") and name != "assistant_end"
        tool = tool and name != "output_end"


@settings(max_examples=50)
@given(many=st.lists(CONVERSATION, min_size=1, max_size=5))
def test_any_batch_equals_one_at_a_time(many: list[Any]) -> None:
    conversations = [turns_of(drawn) for drawn in many]
    for conversation, (ids, learned) in zip(
        conversations, render_batch(conversations, TOKENIZER), strict=True
    ):
        alone_ids, alone_learned = render(conversation, TOKENIZER)
        assert ids.tolist() == alone_ids.tolist()
        assert learned.tolist() == alone_learned.tolist()


@settings(max_examples=100)
@given(drawn=CONVERSATION)
def test_a_prompt_is_the_beginning_of_the_whole(drawn: Any) -> None:
    conversation = turns_of(drawn)
    ids, _ = render(conversation, TOKENIZER)
    prompt = render_prompt(conversation, TOKENIZER)
    start = TOKENIZER.special_id("<|assistant_start|>")
    assert prompt == [*ids.tolist(), start][: len(prompt)]
    assert prompt[-1] == start


@pytest.mark.parametrize("case", CASES, ids=[f"{case['task']}-{n}" for n, case in enumerate(CASES)])
def test_ids_and_mask_equal_nanochats(case: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Oracle: nanochat's own rendering, cut at 2,048 tokens."""
    ids, learned = render(case["conversation"], tokenizer)
    assert ids[:2048].tolist() == case["ids"]
    assert learned[:2048].astype(int).tolist() == case["mask"]


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
        (say(("system", "a")), "only a system message"),
        (say(("tool", "a")), "unknown role 'tool'; allowed: system, user, assistant"),
        (say(("user", " \n")), "message 1: the user's content is empty"),
        (say(("user", None)), "message 1: the user's content is None"),
        (say(("user", [part("text")])), "the user's content is \\["),
        (say(("user", "a"), ("assistant", "")), "message 2: the assistant's content is empty"),
        (say(("user", "a"), ("assistant", [])), "message 2: the assistant's content is \\[\\]"),
        (say(("user", "a"), ("assistant", [part("image")])), "got the part"),
        (say(("user", "a"), ("assistant", [{"type": ["text"], "text": "b"}])), "got the part"),
        (say(("user", "a"), ("assistant", [part("text", "")])), "a text part holds ''"),
        (say(("user", "a"), ("assistant", [part("python")])), "a python part without output"),
        (say(("user", "a"), ("assistant", [part("python"), part("text")])), "a python part without output"),
        (say(("user", "a"), ("assistant", [part("python"), part("python_output", "")])), "content is empty"),
        (say(("user", "a"), ("assistant", [part("python_output")])), "without its call"),
        (say(("user", "a"), ("assistant", [part("text"), part("python_output")])), "without its call"),
        (say(("user", "a\ud83d")), r"message 1: half a character \(\\ud83d\) at 1"),
        (say(("user", "a"), ("assistant", [part("text", "\ude00")])), "message 2: half a character"),
        ({"messages": None}, "no messages"),
        ({"messages": [None]}, "message 1: got None"),
        (say((None, "a")), "unknown role None"),
        (say(("user", "a"), ("assistant", None)), "message 2: the assistant's content is None"),
        (say(("user", "a"), ("assistant", [None])), "message 2: got the part None"),
        (say(("user", "a"), ("assistant", [{"type": "text", "text": None}])), "a text part holds None"),
    ],
)
def test_a_malformed_conversation_is_refused_with_its_place(conversation: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=rf"chats\.jsonl line 7.*{complaint}"):
        check_conversation(conversation, place="chats.jsonl line 7")


def test_a_prompt_of_what_the_check_refuses_is_refused(tokenizer: Tokenizer) -> None:
    wrong = say(("user", "a"), ("user", "b"))
    with pytest.raises(ValueError, match="expected assistant"):
        render_prompt(wrong, tokenizer)
