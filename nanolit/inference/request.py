"""What is asked of an engine and what it answers: requests, completions, and the text being written.

A row takes the tokens drawn for it, answers calculator calls, and decides when its text ends.
"""

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from nanolit.inference.calculator import calculate
from nanolit.inference.sampling import check_settings
from nanolit.machine.device import derived_seed
from nanolit.tokenizer.bpe import Tokenizer

TURN_TOKENS = ("<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>")


class Token(NamedTuple):
    """An emitted token; `sampled` is False for tokens that the calculator forced."""

    id: int
    sampled: bool


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt and how to continue it, `num_samples` times."""

    prompt_ids: Sequence[int]
    max_tokens: int
    num_samples: int = 1
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()
    stop_texts: tuple[str, ...] = ()  # a sample ends with the token that completes one of them
    log_probs: bool = False
    keep: bool = False  # the slot, for a later prompt that begins with this prompt and its reply

    def check(self, *, max_positions: int) -> None:
        """Raise ValueError for invalid settings or a text longer than `max_positions`."""
        check_settings(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
        )
        if len(self.prompt_ids) < 1:
            raise ValueError("the prompt has no tokens; start it with <|bos|>")
        if self.num_samples < 1 or self.max_tokens < 1:
            raise ValueError(
                f"num_samples ({self.num_samples}) and max_tokens ({self.max_tokens}) must each be 1 or more"
            )
        if self.positions > max_positions:
            raise ValueError(
                f"prompt ({len(self.prompt_ids):,} tokens) + max_tokens ({self.max_tokens:,}) is "
                f"{self.positions:,}; the model has {max_positions:,} positions: shorten the prompt or lower "
                "max_tokens"
            )

    @property
    def positions(self) -> int:
        """The most tokens that prompt and reply can have together."""
        return len(self.prompt_ids) + self.max_tokens


@dataclass
class Completion:
    """All tokens of one sample, including an end token; `ids` and `sampled` are parallel.

    `ended` is True if the last id is an end token (else `max_tokens` or a stop text ended the sample).
    `log_probs` is parallel too if the request asked for it, see sampling.sample; 0 for a forced token.
    """

    ids: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    ended: bool = False
    log_probs: list[float] = field(default_factory=list)

    @property
    def body_ids(self) -> list[int]:
        """The ids without the end token, for showing and grading."""
        return self.ids[:-1] if self.ended else self.ids

    def token(self, number: int) -> Token | None:
        """Return a token by index, None beyond the last."""
        return Token(self.ids[number], self.sampled[number]) if number < len(self.ids) else None


class Handle:
    """A submitted request: its completions grow with every `Engine.step` until `done`."""

    def __init__(self, request: Request, tokenizer: Tokenizer, end_ids: frozenset[int]) -> None:
        self.request, self.error = request, ""
        self.completions = [Completion() for _ in range(request.num_samples)]
        self.rows = [Row(self, number, tokenizer, end_ids) for number in range(request.num_samples)]

    @property
    def done(self) -> bool:
        """Whether all samples have ended or were cancelled. Raises ValueError if they failed."""
        if self.error:
            raise ValueError(self.error)
        return all(row.finished for row in self.rows)


class Row:
    """A sample being written, with the state of its tool call and the tokens that are still forced."""

    def __init__(self, handle: Handle, number: int, tokenizer: Tokenizer, end_ids: frozenset[int]) -> None:
        self.handle, self.request, self.completion = handle, handle.request, handle.completions[number]
        self.tokenizer, self.end_ids = tokenizer, end_ids | handle.request.stop_ids
        self.start_id, self.end_id = map(tokenizer.special_id, ("<|python_start|>", "<|python_end|>"))
        self.start = len(handle.request.prompt_ids)  # the position of the first token
        self.seed = derived_seed(handle.request.seed, "sample", number)
        self.finished, self.forced = False, deque[int]()
        self.began_with = self  # the sample of the same prompt whose slot was copied
        self.expression: list[int] | None = None
        self.stream, self.tail = TextStream(tokenizer), ""

    def known(self, number: int) -> int:
        """Return the id at `number` if it needs no draw (already taken, or forced next), else -1."""
        if number < len(self.completion.ids):
            return self.completion.ids[number]
        return self.forced[0] if self.forced else -1

    def take(self, drawn_id: int, log_prob: float = 0.0) -> Token:
        """Add and return the token of this step: the next forced one, else `drawn_id`."""
        if self.forced:
            token = Token(self.forced.popleft(), sampled=False)
        else:
            token = Token(drawn_id, sampled=True)
            self._follow_call(drawn_id)
        completion = self.completion
        completion.ids.append(token.id)
        completion.sampled.append(token.sampled)
        if self.request.log_probs:
            completion.log_probs.append(log_prob if token.sampled else 0.0)
        completion.ended = token.sampled and token.id in self.end_ids
        stopped = self.request.stop_texts and self._completes_a_stop(token.id)
        self.finished = bool(completion.ended or stopped or len(completion.ids) == self.request.max_tokens)
        return token

    def _follow_call(self, id: int) -> None:
        """Collect the tokens of a tool call; at its end, queue the answer if there is one."""
        if id == self.start_id:
            self.expression = []
        elif id == self.end_id and self.expression is not None:
            answer = calculate(self.tokenizer.decode(self.expression))
            self.expression = None
            if answer is not None:
                self.forced.append(self.tokenizer.special_id("<|output_start|>"))
                self.forced.extend(self.tokenizer.encode(answer))
                self.forced.append(self.tokenizer.special_id("<|output_end|>"))
        elif self.expression is not None:
            self.expression.append(id)

    def _completes_a_stop(self, id: int) -> bool:
        if id >= len(self.tokenizer.tokens):  # a special token is not text, and no stop text spans it
            self.stream, self.tail = TextStream(self.tokenizer), ""
            return False
        self.tail += self.stream.push(id)
        longest = max(map(len, self.request.stop_texts))
        found = any(stop in self.tail for stop in self.request.stop_texts)
        self.tail = self.tail[-longest:]
        return found


class TextStream:
    """Decodes token ids one by one, holding bytes back until their character is complete.

    The pieces joined equal the decoding of all bytes at once, with U+FFFD for invalid bytes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """Return the text that this token completes, empty in the middle of a character."""
        return self.decoder.decode(self.tokenizer.decode_bytes([id]))

    def flush(self) -> str:
        """Return U+FFFD for an unfinished character, if any, and reset the stream."""
        text = self.decoder.decode(b"", final=True)
        self.decoder.reset()
        return text
