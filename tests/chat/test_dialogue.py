"""A dialogue's prompts are those that the model was trained on, and never longer than its context."""

from itertools import chain

import pytest

from nanolit.chat.dialogue import ReplyText, Talker, as_parts, usual_max_tokens, without_empty
from nanolit.inference.engine import Engine
from nanolit.tokenizer.conversation import render_prompt

GREEDY = {"temperature": 0.0, "top_k": None, "seed": 0}


def said(question: str, reply: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]


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


def test_the_second_prompt_equals_the_rendered_conversation(talker):
    """Oracle: the training data's rendering of the same conversation, given to the engine itself."""
    history = said("Hello", "".join(talker.reply([], "Hello", max_tokens=40, **GREEDY)))
    second = talker.reply(history, "Sum?", max_tokens=20, **GREEDY)
    text = "".join(second)
    prompt = render_prompt({"messages": [*history, *said("Sum?", "")[:1]]}, talker.engine.tokenizer)
    (completion,) = talker.engine.complete(prompt, max_tokens=20, temperature=0)
    shown = ReplyText(talker.engine.tokenizer)
    assert text == "".join(map(shown.push, completion.body_ids)) + shown.flush()


def test_a_calculator_call_is_a_call_again_in_the_next_prompt(talker):
    """Oracle: the rendering of the parts that the model was trained on."""
    history = said("Sum?", "It is [12*3][= 36] in all. [x][y]")
    parts = [("text", "It is "), ("python", "12*3"), ("python_output", "36"), ("text", " in all. [x][y]")]
    content = [{"type": type, "text": text} for type, text in parts]
    assert as_parts(history[1]) == {"role": "assistant", "content": content}
    question = {"role": "user", "content": "Hello"}
    conversation = {"messages": [history[0], {"role": "assistant", "content": content}, question]}
    prompt, _ = talker.prompt([*history, question], max_tokens=9)
    assert prompt == render_prompt(conversation, talker.engine.tokenizer)
    assert talker.prompt(conversation["messages"], max_tokens=9)[0] == prompt


@pytest.mark.parametrize("reply", ["x [ ][= 3] y", "x [3][=  ] y", "x [\n3][= 3] y"])
def test_a_blank_call_is_text_in_the_next_prompt(talker, reply):
    """A model may write one, and its conversation goes on."""
    question = {"role": "user", "content": "b"}
    prompt, _ = talker.prompt([*said("a", reply), question], max_tokens=9)
    assert prompt == render_prompt({"messages": [*said("a", reply), question]}, talker.engine.tokenizer)


def test_a_system_message_stays_when_the_oldest_leave(talker):
    system = {"role": "system", "content": "Be brief."}
    history = [system, *said("one", "x" * 60), *said("two", "y")]
    question = {"role": "user", "content": "Hello"}
    prompt, dropped = talker.prompt([*history, question], max_tokens=40)
    assert dropped == 1
    kept = {"messages": [system, *said("two", "y"), question]}
    assert prompt == render_prompt(kept, talker.engine.tokenizer)


def test_an_exchange_without_a_reply_is_left_out():
    """Stopped before the first word."""
    question = {"role": "user", "content": "three"}
    assert without_empty([*said("one", "1"), *said("two", ""), question]) == [*said("one", "1"), question]


@pytest.mark.parametrize(
    "messages",
    [None, 5, [], [5], [{"role": "user"}], [{"content": ""}], [None, {"role": "assistant", "content": ""}]],
)
def test_what_is_no_conversation_is_one_line(talker, messages):
    with pytest.raises(ValueError, match="conversation"):
        talker.prompt(messages, max_tokens=4)


def test_a_reply_that_was_stopped_keeps_what_came(talker):
    reply = talker.reply([], "Hello", max_tokens=40, **GREEDY)
    pieces = iter(reply)
    assert next(pieces) + next(pieces) == "Hi" == reply.text


def test_the_oldest_turns_leave_when_the_context_is_full(talker):
    """Oracle: adding another exchange at the front of what was kept would not fit."""
    turns = [said(f"question {number}", "a reply") for number in range(9)]
    question = {"role": "user", "content": "Hello"}
    prompt, dropped = talker.prompt([*chain(*turns), question], max_tokens=40)
    assert 0 < dropped < 9
    assert len(prompt) + 40 <= talker.engine.context
    more = {"messages": [*chain(*turns[dropped - 1 :]), question]}
    assert len(render_prompt(more, talker.engine.tokenizer)) + 40 > talker.engine.context


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
    reply = talker.reply(said("Hello", "Hi"), "Once", max_tokens=10, **GREEDY)
    text = "".join(reply)
    prompt = [byte_tokenizer.bos_id, *b"Once"]
    (completion,) = talker.engine.complete(prompt, max_tokens=10, temperature=0)
    shown = ReplyText(byte_tokenizer)
    assert text == "".join(map(shown.push, completion.body_ids)) + shown.flush()
    assert reply.dropped_turns == 0


def test_the_usual_reply_length_leaves_room_in_small_contexts():
    assert usual_max_tokens(2048) == 256
    assert usual_max_tokens(128) == 64
