"""One question at a time to an OpenAI-compatible chat endpoint, asked again until the answer is usable.

Rate limits, server errors, lost connections, half answers and answers of the wrong form are tried again with
growing pauses; what no repetition mends (a wrong key, an unknown model) is one ValueError. The key is in the
request's header and nowhere else.
"""

import asyncio
import random
import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TypeVar
from urllib.parse import urlsplit

import httpx

ATTEMPTS = 8
SAID_FROM = 4  # failed attempts at one question; the first few are common where many ask
LONGEST_PAUSE_SECONDS = 60.0
PASSING = {408, 409, 425, 429}  # and every 5xx: the endpoint's trouble, not the request's
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
Answer = TypeVar("Answer")


class PassingError(Exception):
    """An error that may be gone the next time; `pause_seconds` is what the endpoint asks for."""

    def __init__(self, reason: str, *, pause_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.pause_seconds = pause_seconds


class Endpoint:
    """`async with Endpoint(…) as endpoint: await endpoint.ask(…)`. Counts what it used: `prompt_tokens`,
    `completion_tokens`, `num_retries`."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key: str | None,
        timeout_seconds: float = 120.0,
        first_pause_seconds: float = 1.0,
    ) -> None:
        check_address(base_url, key)
        self.model = model
        self.prompt_tokens = self.completion_tokens = self.num_retries = 0
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._key = key
        self._first_pause_seconds = first_pause_seconds
        # redirects are not followed: they would carry the key to wherever they point
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=timeout_seconds
        )

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def ask(
        self, prompt: Callable[[int], str], read: Callable[[str], Answer], *, schema: Mapping[str, object]
    ) -> Answer:
        """Return what `read` makes of the answer to `prompt(attempt)`; its ValueError means: ask again.

        ValueError after `ATTEMPTS` attempts, or at once when no attempt would help.
        """
        attempt = 0
        while True:
            try:
                return read(await self._once(prompt(attempt), schema))
            except (PassingError, ValueError) as error:
                attempt += 1
                if isinstance(error, Refusal):
                    raise
                if attempt == ATTEMPTS:
                    raise ValueError(
                        f"{self._url}: gave up after {ATTEMPTS} attempts, the last: {error}"
                    ) from None
                self.num_retries += 1
                pause = min(self._first_pause_seconds * 2 ** (attempt - 1), LONGEST_PAUSE_SECONDS)
                asked = error.pause_seconds if isinstance(error, PassingError) else 0.0
                if attempt >= SAID_FROM:
                    text = f"{self._url}: {error}; trying again ({attempt + 1} of {ATTEMPTS})"
                    print(text, file=sys.stderr, flush=True)
                # not all workers again at the same moment
                await asyncio.sleep(max(asked, pause * random.uniform(0.5, 1.0)))

    async def _once(self, prompt: str, schema: Mapping[str, object]) -> str:
        """Return the text of one answer."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 1.0,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "conversation", "strict": True, "schema": schema},
            },
        }
        try:
            response = await self._client.post(self._url, json=body)
        except httpx.TransportError as error:
            raise PassingError(self._hidden(f"{type(error).__name__} {error}".strip())) from None
        if response.status_code != 200:
            raise self._failure(response)
        try:
            content = response.json()
            choice = content["choices"][0]
            text, ending = choice["message"]["content"], choice.get("finish_reason")
            usage = content.get("usage") or {}
            self.prompt_tokens += usage.get("prompt_tokens") or 0
            self.completion_tokens += usage.get("completion_tokens") or 0
        except (ValueError, LookupError, TypeError, AttributeError):
            raise PassingError(f"not a chat completion: {self._excerpt(response)}") from None
        if not isinstance(text, str) or ending == "length":
            raise PassingError(f"incomplete answer (finish_reason {ending})")
        return text

    def _failure(self, response: httpx.Response) -> "PassingError | Refusal":
        status = response.status_code
        said = f"status {status}: {self._excerpt(response)}"
        if status in PASSING or status >= 500:
            return PassingError(said, pause_seconds=_seconds(response.headers.get("retry-after", "")))
        hints = {
            401: "check the key",
            402: "check the account",
            403: "check the key",
            404: "check base_url and model",
        }
        if response.is_redirect:
            hints[status] = "give the address it redirects to as base_url"
        hint = hints.get(status, "check model, and whether it supports JSON schemas")
        return Refusal(f"{self._url} refuses, {said}; {hint}")

    def _excerpt(self, response: httpx.Response) -> str:
        return self._hidden(" ".join(response.text.split()))[:300] or "(empty)"

    def _hidden(self, text: str) -> str:
        return text.replace(self._key, "(the key)") if self._key else text


class Refusal(ValueError):
    """An error that asking again doesn't mend."""


def check_address(base_url: str, key: str | None) -> None:
    """Raise ValueError for an address or key that cannot work, or would show the key to the network."""
    try:
        address = urlsplit(base_url)
        host = address.hostname
    except ValueError:
        host = None
    if not host or address.scheme not in ("http", "https"):
        raise ValueError(
            f"base_url is {base_url!r}; it must be like https://openrouter.ai/api/v1 or "
            "http://localhost:11434/v1"
        )
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise ValueError(
            "the key contains a space, a line break or a character not allowed in keys; set it again"
        )
    if key and address.scheme == "http" and host not in LOOPBACK:
        raise ValueError(
            f"base_url={base_url} would send the key unencrypted; use https://, or unset the key"
        )


def _seconds(text: str) -> float:
    """Return the seconds of a Retry-After; other forms count as none."""
    try:
        return min(max(float(text), 0.0), 5 * LONGEST_PAUSE_SECONDS)
    except ValueError:
        return 0.0
