"""Messages and replies as token ids: what the terminal and the page share.

A history is a list of turns; a turn is the ids of one message and its reply, as the model saw and wrote them
(calculator calls included). The oldest turns leave when the context is full.
"""

import contextlib
from collections.abc import Generator, Sequence

from nanolit.inference.engine import Engine
from nanolit.inference.request import TextStream, Token

# how a calculator call is shown: [12*3][= 36]
_SHOWN = {
    "<|python_start|>": "[",
    "<|python_end|>": "]",
    "<|output_start|>": "[= ",
    "<|output_end|>": "]",
}


class Reply:
    """One reply: iterate over it for pieces of text; stop early and `turn` still holds what came so far."""

    def __init__(
        self,
        talker: "Talker",
        question_ids: list[int],
        *,
        steps: Generator[list[Token | None]],
        dropped_turns: int,
    ) -> None:
        self.talker = talker
        self.question_ids = question_ids
        self.dropped_turns = dropped_turns
        self.ids: list[int] = []
        self._steps = steps

    @property
    def turn(self) -> list[int]:
        """The message and the reply so far, closed with <|assistant_end|>: what the history keeps."""
        return [*self.question_ids, *self.ids, self.talker.special_id("<|assistant_end|>")]

    def __iter__(self) -> Generator[str]:
        text = TextStream(self.talker.engine.tokenizer)
        with contextlib.closing(self._steps):  # a reply that is stopped frees its slot at once
            for (token,) in self._steps:
                if token is None or token.id in self.talker.engine.end_ids:
                    break
                self.ids.append(token.id)
                shown = self.talker.shown.get(token.id)
                piece = text.push(token.id) if shown is None else text.flush() + shown
                if piece:
                    yield piece
        if piece := text.flush():
            yield piece


class Talker:
    """Turns a message into a prompt for the engine and the engine's tokens into text.

    With `continues_text` (a base model, which knows no roles) a message is the beginning of a text, the reply
    its continuation, and no history is kept.
    """

    def __init__(self, engine: Engine, *, continues_text: bool = False) -> None:
        self.engine = engine
        self.continues_text = continues_text
        self.special_id = engine.tokenizer.special_id
        self.shown = {self.special_id(name): text for name, text in _SHOWN.items()}

    def reply(
        self,
        turns: Sequence[list[int]],
        message: str,
        *,
        temperature: float,
        top_k: int | None,
        max_tokens: int,
        seed: int,
    ) -> Reply:
        """The reply to `message` after `turns` (not changed); its `dropped_turns` oldest did not fit.

        ValueError when the message alone leaves no room for `max_tokens`.
        """
        question_ids = self.question(message)
        room = self.engine.context - 1 - len(question_ids) - max_tokens
        if room < 0:
            raise ValueError(
                f"the message ({len(question_ids):,} tokens) and max_tokens ({max_tokens:,}) don't fit the "
                f"model's context ({self.engine.context:,}); shorten the message or lower max_tokens"
            )
        kept = list(turns) if not self.continues_text else []
        while sum(map(len, kept)) > room:
            kept.pop(0)
        prompt_ids = [self.engine.tokenizer.bos_id, *(id for turn in kept for id in turn), *question_ids]
        steps = self.engine.generate(
            prompt_ids,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            keep=not self.continues_text,  # the next prompt begins with this one and its reply
        )
        dropped_turns = 0 if self.continues_text else len(turns) - len(kept)
        return Reply(self, question_ids, steps=steps, dropped_turns=dropped_turns)

    def question(self, message: str) -> list[int]:
        """The ids of one message, up to and with <|assistant_start|> (a base model: the bare text)."""
        ids = self.engine.tokenizer.encode(message)
        if self.continues_text:
            return ids
        return [
            self.special_id("<|user_start|>"),
            *ids,
            self.special_id("<|user_end|>"),
            self.special_id("<|assistant_start|>"),
        ]

    def turn(self, message: str, reply: str) -> list[int]:
        """A turn rebuilt from its text alone; calculator calls come back as the text that was shown."""
        reply_ids = self.engine.tokenizer.encode(reply)
        return [*self.question(message), *reply_ids, self.special_id("<|assistant_end|>")]


def usual_max_tokens(context: int) -> int:
    """The reply's length limit when nobody sets one: nanochat's 256, or half of a smaller context."""
    return min(256, context // 2)
