"""Conversations in the forms that other programs write, as messages of role and content."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from nanolit.tasks.rows import Row

Message = dict[str, Any]
# ShareGPT's names of roles, and OpenAI's for the system message of newer models
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}
LISTS = ("messages", "conversations", "conversation")  # OpenAI and TRL, ShareGPT
# A question and its answer: Alpaca (also Dolly), TRL and OpenAI of old, and what else is common
PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
)
MORE = ("input", "context")  # what a question is about, behind it
SYSTEM = ("system", "system_prompt")  # a row's own system message, beside any of these
SKIP = "malformed: skip in a mixture's YAML file leaves out such conversations"


def messages_of(row: Row) -> list[Message]:
    """Return the messages of a row; ValueError says what would make it readable."""
    for key in LISTS:
        if isinstance(row.get(key), Sequence) and not isinstance(row[key], str):
            return _joined(row, row[key])
    for question, answer in PAIRS:
        if row.get(question) is not None and row.get(answer) is not None:
            return _pair(row, question, answer)
    has = ", ".join(row) or "nothing"
    text = "; text without roles is for base: data=FILE" if "text" in row else ""
    raise ValueError(
        f"not a conversation; it has {has}: name the fields messages, conversations, instruction and output, "
        f"or prompt and completion{text}"
    )


def _pair(row: Row, question: str, answer: str) -> list[Message]:
    if row.get("history") not in (None, "", "[]", []):
        raise ValueError(f"earlier turns in history are not read; write all turns as messages; {SKIP}")
    if isinstance(row[question], Sequence) and not isinstance(row[question], str):  # TRL: lists of messages
        answers = row[answer] if isinstance(row[answer], list) else [_said("assistant", row[answer])]
        return _joined(row, [*row[question], *answers])
    asked = [row[question], *(text for key in MORE if (text := _field(row, key)))]
    odd = [part for part in asked if not isinstance(part, str | int | float) or isinstance(part, bool)]
    text = odd[0] if odd else "\n\n".join(map(str, asked))  # what is no text is left to check_conversation
    return [*_system(row), _said("user", text), _said("assistant", row[answer])]


def _system(row: Row) -> list[Message]:
    return [_said("system", text) for key in SYSTEM if (text := _field(row, key))]


def _field(row: Row, key: str) -> str | None:
    """Return the text of a field that a row may have; ValueError for one that holds other things."""
    value = row.get(key)
    if not value or isinstance(value, str):
        return value if value and value.strip() else None
    if isinstance(value, Sequence | Mapping):
        raise ValueError(f"its {key} is no text; write it as text, or leave the field out; {SKIP}")
    return None if isinstance(value, bool) else str(value)


def _said(role: str, content: object) -> Message:
    return {"role": role, "content": content}


def _message(message: object) -> Message:
    """Return a message with our names; what is no message is left to check_conversation."""
    if not isinstance(message, Mapping):
        return message  # type: ignore[return-value]
    if "from" in message and "value" in message:
        message = {**message, "role": message["from"], "content": message["value"]}
    if message.get("tool_calls") or message.get("role") in ("tool", "function"):
        raise ValueError(f"tool calls in this form cannot be trained on; {SKIP}")
    role, content = message.get("role"), message.get("content")
    found: Message = {"content": content} if "content" in message else {}
    if isinstance(content, list) and role != "assistant":  # an assistant's may be calls of the calculator
        found = {"content": "".join(map(_text_of, content))}
    if "role" in message:
        found["role"] = ROLES.get(role, role) if isinstance(role, str) else role
    if message.get("weight") is not None:
        found["weight"] = message["weight"]
    return found


def _text_of(part: object) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else part
    if kind != "text" or not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
        raise ValueError(f"a part of a message is {kind!r}, but only text can be trained on; {SKIP}")
    return part["text"]


def _joined(row: Row, listed: Sequence[object]) -> list[Message]:
    """Return a row's messages after its own system message, all system messages at the beginning in one.

    OpenAI's may have a system and a developer message.
    """
    messages = [_message(message) for message in listed]
    messages = [*(message for message in _system(row) if message not in messages), *messages]
    system = takewhile(lambda one: isinstance(one, Mapping) and one.get("role") == "system", messages)
    texts = [message.get("content") for message in system]
    if len(texts) < 2 or not all(isinstance(text, str) for text in texts):
        return messages
    return [_said("system", "\n\n".join(map(str, texts))), *messages[len(texts) :]]
