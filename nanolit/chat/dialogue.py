"""Messages to prompts and tokens to text: what the terminal, the page, the API and `nanolit.load` share.

A conversation is a list of messages {"role", "content"}, all text: optionally a system message, then user and
assistant in turn. A calculator call is shown as [12*3][= 36], and becomes the call it was in the next prompt.
Nothing else is kept between two replies, so any conversation can continue anywhere. The oldest exchanges are
dropped when the context is full.
"""

import contextlib
import re
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Protocol

from nanolit.inference.engine import Sampling
from nanolit.inference.request import TextStream, Token
from nanolit.tokenizer.bpe import Tokenizer
from nanolit.tokenizer.conversation import check_conversation, render, render_prompt

Messages = Sequence[dict[str, Any]]
_SHOWN = {
    "<|python_start|>": "[",
    "<|python_end|>": "]",
    "<|output_start|>": "[= ",
    "<|output_end|>": "]",
}
_FILLED = r"[^\S\n]*[^\s\[\]][^\[\]\n]*"  # more than blanks: an empty part is no call
CALL = re.compile(rf"\[({_FILLED})\]\[= ({_FILLED})\]")


class Generates(Protocol):
    """The part of an engine that a talker needs; chat/service.py has it too."""

    tokenizer: Tokenizer
    context: int
    end_ids: frozenset[int]

    def generate(self, prompt_ids: Sequence[int], **sampling: Any) -> Generator[list[Token | None]]: ...


class ReplyText:
    """Tokens to the text that a person reads, as they come."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._stream = TextStream(tokenizer)
        self._shown = {tokenizer.special_id(name): text for name, text in _SHOWN.items()}

    def push(self, id: int) -> str:
        """Return the text that this token completes: often none in the middle of a character."""
        shown = self._shown.get(id)
        return self._stream.push(id) if shown is None else self._stream.flush() + shown

    def flush(self) -> str:
        return self._stream.flush()


class Reply:
    """One reply: iterate over it for the text of each token; `text` is what came so far."""

    def __init__(
        self, steps: Generator[list[Token | None]], engine: Generates, *, dropped_turns: int
    ) -> None:
        self.dropped_turns = dropped_turns
        self.text = ""
        self._steps, self._engine = steps, engine

    def __iter__(self) -> Iterator[str]:
        shown = ReplyText(self._engine.tokenizer)
        with contextlib.closing(self._steps):  # a reply that is stopped frees its slot at once
            for (token,) in self._steps:
                if token is None or token.id in self._engine.end_ids:
                    break
                piece = shown.push(token.id)
                self.text += piece
                yield piece
        if piece := shown.flush():
            self.text += piece
            yield piece


class Talker:
    """Turns conversations into prompts for the engine and the engine's tokens into text.

    With `continues_text` (a base model, which knows no roles) the last message is the beginning of a text,
    the reply is its continuation, and everything else is ignored. `questions` are the ones that the release
    suggests.
    """

    def __init__(
        self, engine: Generates, *, continues_text: bool = False, questions: Sequence[str] = ()
    ) -> None:
        self.engine, self.questions = engine, questions
        self.continues_text = continues_text

    def reply(self, history: Messages, message: str, **sampling: Any) -> Reply:
        """Return the reply to `message` after `history`; see `answer`."""
        return self.answer([*history, {"role": "user", "content": message}], **sampling)

    def answer(self, messages: Messages, **sampling: Any) -> Reply:
        """Return the reply to a conversation; its `dropped_turns` oldest exchanges did not fit.

        ValueError when the last message alone leaves no room for `max_tokens`. `Sampling` has the rest.
        """
        prompt_ids, dropped_turns = self.prompt(messages, max_tokens=sampling["max_tokens"])
        steps = self.engine.generate(prompt_ids, **self.sampling(**sampling))
        return Reply(steps, self.engine, dropped_turns=dropped_turns)

    def sampling(self, **sampling: Any) -> Sampling:
        """Return what the engine is asked: to keep a conversation's slot for its next turn, too."""
        return Sampling(**sampling, keep=not self.continues_text)

    def prompt(self, messages: Messages, *, max_tokens: int) -> tuple[list[int], int]:
        """Return the ids after which the model speaks, and how many exchanges were dropped to make room."""
        tokenizer, context = self.engine.tokenizer, self.engine.context
        if self.continues_text:
            prompt_ids = [tokenizer.bos_id, *tokenizer.encode(messages[-1]["content"])]
            self._check_room(len(prompt_ids) - 1, max_tokens)
            return prompt_ids, 0
        messages = without_empty(messages)
        check_conversation({"messages": messages})
        system = list(messages[:1]) if messages[0]["role"] == "system" else []
        exchanges, question = messages[len(system) : -1], messages[-1]
        if question["role"] != "user":
            raise ValueError("the last message must be from the user")
        shortest = render_prompt({"messages": [*system, question]}, tokenizer)
        self._check_room(len(shortest) - 1, max_tokens)
        room, dropped = context - len(shortest) - max_tokens, 0
        sizes = [self._size(exchanges[start : start + 2]) for start in range(0, len(exchanges), 2)]
        while sum(sizes[dropped:]) > room:
            dropped += 1
        kept = [as_parts(message) for message in exchanges[2 * dropped :]]
        return render_prompt({"messages": [*system, *kept, question]}, tokenizer), dropped

    def _size(self, exchange: Messages) -> int:
        messages = [as_parts(message) for message in exchange]
        return len(render({"messages": messages}, self.engine.tokenizer)[0]) - 1  # without <|bos|>

    def _check_room(self, num_ids: int, max_tokens: int) -> None:
        if num_ids + 1 + max_tokens > self.engine.context:
            raise ValueError(
                f"the message ({num_ids:,} tokens) and max_tokens ({max_tokens:,}) don't fit the "
                f"model's context ({self.engine.context:,}); shorten the message or lower max_tokens"
            )


def as_parts(message: dict[str, Any]) -> dict[str, Any]:
    """Return a reply's message with its calculator calls as parts; other messages as they are."""
    content = message["content"]
    if message["role"] != "assistant" or not isinstance(content, str) or not CALL.search(content):
        return message
    texts = iter(CALL.split(content))
    parts = [{"type": "text", "text": next(texts)}]
    for call, output, text in zip(texts, texts, texts, strict=True):
        parts += [
            {"type": "python", "text": call},
            {"type": "python_output", "text": output},
            {"type": "text", "text": text},
        ]
    return {"role": "assistant", "content": [part for part in parts if part["text"]]}


def without_empty(messages: Messages) -> list[dict[str, Any]]:
    """Drop exchanges without a reply (stopped before the first word), and an empty system message."""
    kept: list[dict[str, Any]] = []
    for message in messages if isinstance(messages, Sequence) else ():
        content, role = _value(message, "content"), _value(message, "role")
        blank = isinstance(content, str) and not content.strip()
        if blank and role == "assistant" and kept and _value(kept[-1], "role") == "user":
            kept.pop()
        elif not (blank and role == "system"):
            kept.append(message)
    return kept


def _value(message: Any, key: str) -> Any:
    """Return a message's value, None if it lacks one: `check_conversation` checks its form later."""
    return message.get(key) if isinstance(message, dict) else None


def room_for(max_tokens: int, context: int) -> int:
    """Return the reply's length limit; ValueError where a context has no room for it."""
    if max_tokens < context:
        return max_tokens
    raise ValueError(f"max_tokens ({max_tokens:,}) must be below the model's context ({context:,})")


def left_out(num_exchanges: int) -> str:
    """Return what to say of the oldest exchanges that a prompt had no room for."""
    which = "exchange was" if num_exchanges == 1 else f"{num_exchanges} exchanges were"
    return f"the context is full: the oldest {which} left out"


def usual_max_tokens(context: int) -> int:
    """Return the default length limit of a reply: nanochat's 256, or half of a smaller context."""
    return min(256, context // 2)
