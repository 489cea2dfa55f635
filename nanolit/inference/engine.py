"""A model that talks: one prompt, several samples, a key-value cache, and the calculator between the tokens.

The prompt is read once, for one row; its cache is then copied to every sample. Each step yields one token
per sample. It knows of no roles, files or rewards: phases/rl.py, evaluation/ and chat/ build on it.
"""

import codecs
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, NotRequired, TypedDict, Unpack

import torch

from nanolit.inference.calculator import calculate
from nanolit.inference.sampling import check_settings, sample
from nanolit.model.gpt import GPT
from nanolit.tokenizer.bpe import Tokenizer


class Token(NamedTuple):
    """One emitted token; `sampled` is False for what the calculator put in the model's mouth."""

    id: int
    sampled: bool


class Sampling(TypedDict):
    """How tokens are drawn: `Engine.generate` has the defaults."""

    max_tokens: int
    temperature: NotRequired[float]
    top_k: NotRequired[int | None]
    seed: NotRequired[int]


@dataclass
class Completion:
    """All tokens of one sample: `ids` and `sampled` in parallel, an end token included.

    `ended` tells whether the last id is that end token (else the sample ran into `max_tokens`).
    """

    ids: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    ended: bool = False

    @property
    def body_ids(self) -> list[int]:
        """The ids without the end token: what is shown and graded."""
        return self.ids[:-1] if self.ended else self.ids


class Engine:
    """Generates from `model` with `tokenizer`; both stay as they are (no training mode is switched)."""

    def __init__(self, model: GPT, tokenizer: Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.end_ids = frozenset((tokenizer.special_id("<|assistant_end|>"), tokenizer.bos_id))

    @property
    def context(self) -> int:
        """The tokens, prompt and reply together, that the model was trained on at once."""
        return self.model.context

    @property
    def max_positions(self) -> int:
        """The most tokens, prompt and reply together, that the model has positions for (over `context`)."""
        return self.model.max_positions

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        num_samples: int = 1,
        max_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> Iterator[list[Token | None]]:
        """One list per step with one token per sample, None once that sample has finished.

        A sample finishes with <|assistant_end|> or <|bos|> (yielded) or after `max_tokens`. ValueError, at
        once and not at the first step, when prompt and reply together pass `max_positions`.
        """
        check_settings(temperature=temperature, top_k=top_k)
        self._check_lengths(len(prompt_ids), num_samples=num_samples, max_tokens=max_tokens)
        return self._steps(list(prompt_ids), num_samples, max_tokens, temperature, top_k, seed)

    def complete(
        self, prompt_ids: Sequence[int], *, num_samples: int = 1, **settings: Unpack[Sampling]
    ) -> list[Completion]:
        """As `generate`, run to its end: one `Completion` per sample."""
        completions = [Completion() for _ in range(num_samples)]
        for tokens in self.generate(prompt_ids, num_samples=num_samples, **settings):
            for completion, token in zip(completions, tokens, strict=True):
                if token:
                    completion.ids.append(token.id)
                    completion.sampled.append(token.sampled)
                    completion.ended = token.id in self.end_ids
        return completions

    def _check_lengths(self, prompt_length: int, *, num_samples: int, max_tokens: int) -> None:
        if prompt_length < 1:
            raise ValueError("the prompt has no tokens; begin it with <|bos|>")
        if num_samples < 1 or max_tokens < 1:
            raise ValueError(
                f"num_samples ({num_samples}) and max_tokens ({max_tokens}) must each be 1 or more"
            )
        if prompt_length + max_tokens > self.max_positions:
            raise ValueError(
                f"prompt ({prompt_length:,} tokens) + max_tokens ({max_tokens:,}) is "
                f"{prompt_length + max_tokens:,}; the model has positions for {self.max_positions:,}: "
                "shorten the prompt or lower max_tokens"
            )

    @torch.no_grad()
    def _steps(
        self,
        prompt_ids: list[int],
        num_samples: int,
        max_tokens: int,
        temperature: float,
        top_k: int | None,
        seed: int,
    ) -> Iterator[list[Token | None]]:
        device = self.model.device
        prompt_cache = self.model.new_kv_cache(rows=1, capacity=len(prompt_ids))
        logits_BTV = self.model(torch.tensor([prompt_ids], device=device), kv_cache=prompt_cache)
        logits_BV = logits_BTV[:, -1].expand(num_samples, -1)
        # the last token is never fed back, hence one position less than the two lengths together
        cache = prompt_cache.expand(num_samples, capacity=len(prompt_ids) + max_tokens - 1)
        del prompt_cache, logits_BTV
        rows = [_Row(self.tokenizer, self.end_ids) for _ in range(num_samples)]
        for step in range(max_tokens):
            ids_B = sample(
                logits_BV,
                temperature=temperature,
                top_k=top_k,
                seed=seed,
                position=len(prompt_ids) + step,
            )
            tokens = [row.take(id) for row, id in zip(rows, ids_B.tolist(), strict=True)]
            yield tokens
            if step == max_tokens - 1 or all(row.finished for row in rows):
                return
            # a finished row keeps its place in the batch: it is fed its end token and ignored
            fed = [token.id if token else self.tokenizer.bos_id for token in tokens]
            logits_BV = self.model(torch.tensor(fed, device=device)[:, None], kv_cache=cache)[:, -1]


class _Row:
    """The state of one sample: finished or not, inside a tool call or not, and what is still to be forced."""

    def __init__(self, tokenizer: Tokenizer, end_ids: frozenset[int]) -> None:
        self.tokenizer = tokenizer
        self.end_ids = end_ids
        self.finished = False
        self.forced: deque[int] = deque()
        self.expression: list[int] | None = None

    def take(self, sampled_id: int) -> Token | None:
        """The token that this step emits: the next forced one, else `sampled_id`; None when finished."""
        if self.finished:
            return None
        if self.forced:
            return Token(self.forced.popleft(), sampled=False)
        if sampled_id in self.end_ids:
            self.finished = True
        elif sampled_id == self.tokenizer.special_id("<|python_start|>"):
            self.expression = []
        elif sampled_id == self.tokenizer.special_id("<|python_end|>"):
            self._call_tool()
        elif self.expression is not None:
            self.expression.append(sampled_id)
        return Token(sampled_id, sampled=True)

    def _call_tool(self) -> None:
        """Queue the calculator's answer to the collected expression, if there is one and it has an answer."""
        if self.expression is None:
            return
        answer = calculate(self.tokenizer.decode(self.expression))
        self.expression = None
        if answer is not None:
            self.forced.append(self.tokenizer.special_id("<|output_start|>"))
            self.forced.extend(self.tokenizer.encode(answer))
            self.forced.append(self.tokenizer.special_id("<|output_end|>"))


class TextStream:
    """Token ids to text as they come, never a part of a character: bytes wait until theirs is whole.

    The pieces put together equal the decoding of all bytes at once, U+FFFD for invalid ones.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """The text that this token completes; often empty in the middle of a character."""
        return self.decoder.decode(self.tokenizer.decode_bytes([id]))

    def flush(self) -> str:
        """What is left of an unfinished character, as U+FFFD; the stream can then start again."""
        text = self.decoder.decode(b"", final=True)
        self.decoder.reset()
        return text
