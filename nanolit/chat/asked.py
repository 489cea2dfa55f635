"""Requests of OpenAI's API, with nanochat's limits; anything unsupported is refused by name."""

from itertools import takewhile
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

# nanochat's limits (scripts/chat_web.py)
MAX_MESSAGES, MAX_CHARACTERS, MAX_ALL_CHARACTERS = 500, 8_000, 32_000
MAX_NAME = 300
MAX_TEMPERATURE, MAX_TOP_K, MAX_TOKENS = 2.0, 200, 4_096
WITHOUT_EFFECT = {"user", "metadata", "store", "service_tier", "prompt_cache_key", "safety_identifier"}
WITHOUT_EFFECT |= {"name", "parallel_tool_calls", "include_obfuscation"}
NOTHING = (None, False, 0, "", [], {}, {"type": "text"}, ["text"], "none", "auto")  # these ask for nothing

FIRST = Field(fail_fast=True)  # report only the first error: collecting those of 100,000 items takes seconds
Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]
Limit = Annotated[int | None, Field(ge=1, le=MAX_TOKENS)]


class Asked(BaseModel):
    """An object of a request: its values are of the types they should be, and all its keys are known."""

    model_config = ConfigDict(extra="allow", strict=True)

    @model_validator(mode="after")
    def nothing_unsupported(self):
        for name, value in (self.model_extra or {}).items():
            if name not in WITHOUT_EFFECT and value not in NOTHING:
                raise ValueError(f"{name[:40]!r} is not supported; leave it out")
        return self


class Part(Asked):
    type: Literal["text"]
    text: Text


class Message(Asked):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], FIRST] | None = None

    def plain(self) -> dict[str, str]:
        """Return the message as the rest of chat/ knows it."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(Asked):
    include_usage: bool | None = None


class Sampled(Asked):
    """Fields that both kinds of completion share; None means the server's default."""

    model: Annotated[str, Field(max_length=MAX_NAME)] | None = None
    max_tokens: Limit = None
    max_completion_tokens: Limit = None  # its newer name
    temperature: float | None = Field(None, ge=0, le=MAX_TEMPERATURE)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=MAX_TOP_K)  # 0: the whole vocabulary
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | Annotated[list[str], FIRST] | None = None
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("stop")
    @classmethod
    def few_and_short(cls, stop: str | list[str] | None) -> list[str]:
        stops = [stop] if isinstance(stop, str) else stop or []
        if len(stops) > 4 or not all(1 <= len(text) <= 100 for text in stops):
            raise ValueError("give at most 4 texts of 1 to 100 characters")
        return stops

    @model_validator(mode="after")
    def one_limit(self):
        if self.max_completion_tokens is not None:
            if self.max_tokens not in (None, self.max_completion_tokens):
                raise ValueError("give max_tokens or max_completion_tokens, not both")
            self.max_tokens = self.max_completion_tokens
        return self

    @property
    def usage_wanted(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatCompletion(Sampled):
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)

    def plain(self) -> list[dict[str, str]]:
        """Return the messages as the rest of chat/ knows them: those of a system at the beginning joined."""
        messages = [message.plain() for message in self.messages]
        system = [*takewhile(lambda message: message["role"] == "system", messages)]
        text = "\n\n".join(message["content"] for message in system if message["content"].strip())
        return [{"role": "system", "content": text}, *messages[len(system) :]]

    @field_validator("messages")
    @classmethod
    def not_too_long(cls, messages: list[Message]) -> list[Message]:
        total = sum(len(message.plain()["content"]) for message in messages)
        if total > MAX_ALL_CHARACTERS:
            raise ValueError(f"{total:,} characters in total; at most {MAX_ALL_CHARACTERS:,}")
        return messages


class TextCompletion(Sampled):
    prompt: Annotated[str, Field(min_length=1, max_length=MAX_ALL_CHARACTERS)]
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    logprobs: None = None  # unlike elsewhere, 0 asks for something: the drawn token's own

    @field_validator("prompt", mode="before")
    @classmethod
    def single(cls, prompt: object) -> object:
        """Take a list of one text as that text."""
        return prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt
