"""A dialogue's prompts are those that the model was trained on, and never longer than its context."""

import pytest

from nanolit.chat.dialogue import Talker, usual_max_tokens
from nanolit.chat.web import as_markdown, turns_of
from nanolit.inference.engine import Engine
from nanolit.tokenizer.conversation import render_prompt

GREEDY = {"temperature": 0.0, "top_k": None, "seed": 0}


@pytest.fixture
def talker(taught_model, byte_tokenizer) -> Talker:
    return Talker(Engine(taught_model, byte_tokenizer))


def test_a_reply_streams_the_taught_text_in_whole_characters(talker):
    pieces = list(talker.reply([], "Hello", max_tokens=40, **GREEDY))
    assert "".join(pieces) == "Hi! I am tiny 😀."
    assert "😀" in pieces


def test_a_calculator_call_is_shown_with_its_answer(talker):
    text = "".join(talker.reply([], "Sum?", max_tokens=60, **GREEDY))
    assert text.startswith("It is [12*3][= 36]")


def test_the_page_rebuilds_the_turns_that_it_shows(talker):
    """The second message was stopped before its first word; the third is not known to the server."""
    said = [
        ("user", "one"),
        ("assistant", "1"),
        ("user", "two"),
        ("user", "3"),
        ("assistant", "`[2*3*4][= 24]`"),
    ]
    history = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]
    expected = [[7], [], talker.turn("3", "[2*3*4][= 24]")]
    assert turns_of(history, [[7]], talker) == expected
    assert turns_of(history[:3], [[7], [8], [9]], talker) == [[7], [8]]
    assert turns_of([], [[7]], talker) == []
    assert turns_of(history, [], talker) == [talker.turn("one", "1"), *expected[1:]]


def test_a_calculator_call_is_code_on_the_page(talker):
    assert as_markdown("It is [2*3*4][= 24]. *So*") == "It is `[2*3*4][= 24]`. *So*"


def test_the_second_prompt_equals_the_rendered_conversation(talker):
    """Oracle: the training data's rendering of the same conversation, given to the engine itself."""
    first = talker.reply([], "Hello", max_tokens=40, **GREEDY)
    answer = "".join(first)
    second = talker.reply([first.turn], "Sum?", max_tokens=20, **GREEDY)
    list(second)
    messages = [("user", "Hello"), ("assistant", answer), ("user", "Sum?")]
    conversation = {"messages": [{"role": role, "content": text} for role, text in messages]}
    prompt = render_prompt(conversation, talker.engine.tokenizer)
    (completion,) = talker.engine.complete(prompt, max_tokens=20, temperature=0)
    assert second.ids == completion.body_ids
    assert first.turn == talker.turn("Hello", answer)


def test_a_reply_that_was_stopped_keeps_what_came(talker):
    reply = talker.reply([], "Hello", max_tokens=40, **GREEDY)
    pieces = iter(reply)
    heard = next(pieces) + next(pieces)
    assert reply.turn == talker.turn("Hello", heard)


def test_the_oldest_turns_leave_when_the_context_is_full(talker):
    turns = [talker.turn(f"question {number}", "a reply") for number in range(9)]
    reply = talker.reply(turns, "Hello", max_tokens=40, **GREEDY)
    room = talker.engine.context - 1 - len(talker.question("Hello")) - 40
    kept = turns[reply.dropped_turns :]
    assert 0 < len(kept) < 9
    assert sum(map(len, kept)) <= room < sum(map(len, turns[reply.dropped_turns - 1 :]))


def test_a_message_that_leaves_no_room_is_refused_with_the_numbers(talker):
    with pytest.raises(ValueError, match=r"message \(203 tokens\) and max_tokens \(40\).*context \(128\)"):
        talker.reply([], "x" * 200, max_tokens=40, **GREEDY)


def test_the_longest_message_that_is_accepted_fills_the_context(talker):
    longest = "x" * (talker.engine.context - 1 - 3 - 40)
    assert list(talker.reply([], longest, max_tokens=40, **GREEDY)) is not None
    with pytest.raises(ValueError, match="shorten"):
        talker.reply([], longest + "x", max_tokens=40, **GREEDY)


def test_a_base_model_continues_the_bare_text(taught_model, byte_tokenizer):
    """Oracle: the engine, given <|bos|> and the text."""
    talker = Talker(Engine(taught_model, byte_tokenizer), continues_text=True)
    reply = talker.reply([[1, 2, 3]], "Once", max_tokens=10, **GREEDY)
    list(reply)
    prompt = [byte_tokenizer.bos_id, *b"Once"]
    (completion,) = talker.engine.complete(prompt, max_tokens=10, temperature=0)
    assert reply.ids == completion.body_ids
    assert reply.dropped_turns == 0


def test_the_usual_reply_length_leaves_room_in_small_contexts():
    assert usual_max_tokens(2048) == 256
    assert usual_max_tokens(128) == 64
