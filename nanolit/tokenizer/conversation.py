"""A conversation to token ids and the mask of what is learned.

A conversation is a plain dict, {"messages": [{"role", "content"}, …]}: optionally a system message, then
user and assistant in turn. An assistant's content is text or a list of parts {"type", "text"} with type
text, python (a tool call) or python_output (what the tool answered); with "weight": 0 it isn't learned.
The layout is nanochat's (https://github.com/karpathy/nanochat): learned are the assistant's words, its
tool calls with their brackets, and its end token; the tool's answers and all other tokens are not.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from nanolit.machine.system import ENCODERS
from nanolit.tokenizer.bpe import Tokenizer

ROLES = ("system", "user", "assistant")
BRACKETS = {  # part type → the special tokens around it, and whether the part is learned
    "text": (None, None, True),
    "python": ("<|python_start|>", "<|python_end|>", True),
    "python_output": ("<|output_start|>", "<|output_end|>", False),
}
Conversation = Mapping[str, Any]  # that `check_conversation` has passed
Piece = tuple[bool, str, bool]  # is it a special token, its name or text, is it learned


def check_conversation(conversation: object, *, place: str = "conversation") -> None:
    """ValueError, opening with `place`, unless the conversation can be rendered."""
    messages = conversation.get("messages") if isinstance(conversation, Mapping) else None
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError(
            f"{place}: no messages; a conversation is "
            '{"messages": [{"role", "content"}, …]} or just that list'
        )
    for number, message in enumerate(messages, start=1):
        here = f"{place}, message {number}"
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise ValueError(f"{here}: got {_shown(message)}; a message is an object with role and content")
        if message["role"] not in ROLES:
            raise ValueError(f"{here}: unknown role {message['role']!r}; allowed: {', '.join(ROLES)}")
        if message["role"] == "assistant" and not isinstance(message["content"], str):
            _check_parts(message["content"], here)
        else:
            _check_text(message["content"], here, message["role"])
        if message.get("weight", 1) not in (0, 1):
            raise ValueError(
                f"{here}: weight is {message['weight']!r}; it is 1, or 0 for text not trained on"
            )
    _check_turns([message["role"] for message in messages], place)


def render_batch(
    conversations: Sequence[Conversation], tokenizer: Tokenizer, *, threads: int = ENCODERS
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Render conversations: ids (int32) and mask (bool) of each; they must have passed `check_conversation`.

    All texts are encoded at once and put between the special tokens as whole arrays: less than a third
    of the time of `render` for each (LOG.md). The results are views of two arrays.
    """
    pieces = [list(_pieces(conversation)) for conversation in conversations]
    flat = list(chain.from_iterable(pieces))
    is_text = np.array([not special for special, _, _ in flat], dtype=bool)
    ids, offsets = tokenizer.encode_flat([text for special, text, _ in flat if not special], threads=threads)
    lengths = np.ones(len(flat), dtype=np.int64)
    lengths[is_text] = np.diff(offsets)
    ends = np.cumsum(lengths)
    rendered = np.empty(int(lengths.sum()), dtype=np.int32)
    rendered[np.repeat(is_text, lengths)] = ids
    rendered[(ends - 1)[~is_text]] = [tokenizer.special_id(name) for special, name, _ in flat if special]
    learned = np.repeat(np.array([learn for _, _, learn in flat], dtype=bool), lengths)
    borders = ends[np.cumsum([len(one) for one in pieces]) - 1]
    starts = [0, *borders[:-1]]
    return [(rendered[a:b], learned[a:b]) for a, b in zip(starts, borders, strict=True)]


def render_prompt(conversation: Conversation, tokenizer: Tokenizer) -> list[int]:
    """Return the ids after which the assistant speaks: up to its start after the last user message.

    A last assistant message (the reference answer) is left out. ValueError when the conversation is
    malformed.
    """
    check_conversation(conversation)
    messages = list(conversation["messages"])
    if messages[-1]["role"] == "assistant":
        messages.pop()
    ids, _ = render({"messages": messages}, tokenizer)
    return [*ids.tolist(), tokenizer.special_id("<|assistant_start|>")]


def render(conversation: Conversation, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Render a conversation that passed `check_conversation`: ids (int32), mask (bool, True = learned)."""
    ids: list[int] = []
    learned: list[bool] = []
    for special, text, learn in _pieces(conversation):
        piece = [tokenizer.special_id(text)] if special else tokenizer.encode(text)
        ids += piece
        learned += [learn] * len(piece)
    return np.array(ids, dtype=np.int32), np.array(learned, dtype=bool)


def _pieces(conversation: Conversation) -> Iterator[Piece]:
    yield True, "<|bos|>", False
    messages = list(conversation["messages"])
    instruction = messages.pop(0)["content"] + "\n\n" if messages[0]["role"] == "system" else ""
    for message in messages:
        if message["role"] == "user":
            yield True, "<|user_start|>", False
            yield False, instruction + message["content"], False
            yield True, "<|user_end|>", False
            instruction = ""
            continue
        yield True, "<|assistant_start|>", False
        content, weighs = message["content"], message.get("weight", 1) != 0
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            start, end, is_learned = BRACKETS[part["type"]]
            learned = is_learned and weighs
            if start is not None:
                yield True, start, learned
            yield False, part["text"], learned
            if end is not None:
                yield True, end, learned
        yield True, "<|assistant_end|>", weighs


def _check_text(text: object, here: str, what: str) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{here}: the {what}'s content is {_shown(text)}; it must be text")
    if not text.strip():
        raise ValueError(f"{here}: the {what}'s content is empty; give it text or leave the conversation out")
    _check_characters(text, here)


def _check_characters(text: str, here: str) -> None:
    """JSON can hold half of a surrogate pair (an emoji cut in two), which no encoding of text has."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise ValueError(f"{here}: half a character (\\u{code:04x}) at {error.start}; remove it") from None


def _check_parts(parts: object, here: str) -> None:
    if not isinstance(parts, Sequence) or not parts:
        raise ValueError(
            f"{here}: the assistant's content is {_shown(parts)}; it must be text or a list of parts"
        )
    types = []
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") not in list(BRACKETS):  # a type may be a list
            raise ValueError(
                f"{here}: got the part {_shown(part)}; a part has text and type {', '.join(BRACKETS)}"
            )
        if part["type"] != "text":  # text between two calls may be blank: one newline, one space
            _check_text(part.get("text"), here, f"{part['type']} part")
        elif not isinstance(part.get("text"), str) or not part["text"]:
            raise ValueError(
                f"{here}: a text part holds {_shown(part.get('text'))}; give it text or leave it out"
            )
        else:
            _check_characters(part["text"], here)
        types.append(part["type"])
    for position, kind in enumerate(types):
        if kind == "python" and types[position + 1 : position + 2] != ["python_output"]:
            raise ValueError(f"{here}: a python part without output; follow it with a python_output part")
        if kind == "python_output" and types[max(position - 1, 0)] != "python":
            raise ValueError(f"{here}: a python_output part without its call; put a python part before it")


def _check_turns(roles: list[str], place: str) -> None:
    first = 1 if roles[0] == "system" else 0
    for number, role in enumerate(roles[first:]):
        wanted = "user" if number % 2 == 0 else "assistant"
        if role != wanted:
            raise ValueError(
                f"{place}, message {first + number + 1}: got role {role}, expected {wanted}; "
                "after an optional system message, user and assistant must alternate, the user first"
            )
    if len(roles) == first:
        raise ValueError(f"{place}: only a system message; at least one user message must follow")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
