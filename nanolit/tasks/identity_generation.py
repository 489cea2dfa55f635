"""Synthetic conversations by the thousand: many requests at once, kept as they come, whole at the end.

What is done is kept in OUT.partial, a line each, so that the same settings resume where they stopped; OUT
appears when all of it is there, sorted, so that a half-made file is never trained on. What a smaller count
leaves over stays in OUT.partial.
"""

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nanolit.machine.paths import check_file, write_atomically
from nanolit.tasks.endpoint import Endpoint
from nanolit.tasks.identity_prompts import SCHEMA, Subject, prompt

FORMAT = 1
CHARACTERS_PER_TOKEN = 4  # English, usual rule
COMPLETION_TOKENS = 300  # a conversation of two or three exchanges: our guess, said to be one
PROGRESS_SECONDS = 5.0
Messages = list[dict[str, str]]
Check = Callable[[object], None]  # ValueError for a conversation that can't be trained on


@dataclass(frozen=True)
class Order:
    """An order for conversations 0 … count - 1; a larger count later adds to a partial file."""

    subject: Subject
    model: str
    seed: int
    count: int

    def prompt(self, number: int, attempt: int = 0) -> str:
        return prompt(self.subject, self.seed, number=number, attempt=attempt)

    def settings(self) -> dict[str, str | int]:
        """Return what the conversations depend on; a partial file of other settings is not continued."""
        facts = hashlib.sha256(self.subject.facts.encode()).hexdigest()[:12]
        return {"name": self.subject.name, "facts": facts, "model": self.model, "seed": self.seed}


@dataclass(frozen=True)
class Estimate:
    """The requests that are still to be made, their tokens and dollars (None without prices)."""

    num_requests: int
    prompt_tokens: int
    completion_tokens: int
    dollars: float | None


Prices = tuple[float, float]  # dollars for a million tokens of prompts, of answers


def dollars(prompt_tokens: int, completion_tokens: int, prices: Prices | None) -> float | None:
    return (prompt_tokens * prices[0] + completion_tokens * prices[1]) / 1e6 if prices else None


def estimate(order: Order, done: set[int], *, prices: Prices | None) -> Estimate:
    missing = [number for number in range(order.count) if number not in done]
    prompt_tokens = sum(len(order.prompt(number)) for number in missing) // CHARACTERS_PER_TOKEN
    completion_tokens = COMPLETION_TOKENS * len(missing)
    return Estimate(
        len(missing), prompt_tokens, completion_tokens, dollars(prompt_tokens, completion_tokens, prices)
    )


class Partial:
    """The conversations that are done, in a file that survives being killed: `done[number]`."""

    def __init__(self, path: Path, order: Order, *, check: Check) -> None:
        self.path = path
        self.done: dict[int, Messages] = {}
        self._head = {"format": FORMAT, **order.settings()}
        if path.exists():
            self._load(check)

    def _load(self, check: Check) -> None:
        check_file(self.path, remedy="remove it, or give another out=")
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1  # what follows was being written when the program was killed
        for line, text in enumerate(content[:whole].splitlines(), start=1):
            place = f"{self.path} line {line}"
            try:
                row = json.loads(text)
                if not isinstance(row, dict) or (line > 1 and type(row.get("number")) is not int):
                    raise ValueError("it is not an object with a number")
                if line > 1:
                    check(row)
                    self.done[row["number"]] = row["messages"]
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{place} is damaged ({error}); remove that line, or the file") from None
            if line == 1 and row != self._head:
                was = ", ".join(f"{key} {row[key]!r}" for key in row if row[key] != self._head.get(key))
                raise ValueError(
                    f"{self.path} was started with other settings ({was}); give those, or another out="
                )
        if whole < len(content):
            os.truncate(self.path, whole)

    def add(self, number: int, messages: Messages) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            if file.tell() == 0:
                file.write(_line(self._head))
            file.write(_line({"number": number, "messages": messages}))
            file.flush()
            os.fsync(file.fileno())
        self.done[number] = messages


def read_answer(text: str, *, check: Check) -> Messages:
    """Return the messages of an answer, stripped; ValueError if they are not a conversation to learn from."""
    try:
        messages = json.loads(text)["messages"]
        messages = [{"role": turn["role"], "content": turn["content"].strip()} for turn in messages]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(
            f"the answer does not match the JSON schema: {' '.join(text.split())[:80]!r}"
        ) from None
    check({"messages": messages})
    if messages[0]["role"] != "user" or messages[-1]["role"] != "assistant":
        raise ValueError("the conversation must start with the user and end with the assistant")
    return messages


async def generate(
    order: Order,
    endpoint: Endpoint,
    partial: Partial,
    *,
    workers: int,
    check: Check,
    tell: Callable[[str], None],
) -> None:
    """Fill `partial` with what is missing, `workers` requests at once; ValueError when the endpoint gives up.

    A conversation that is there already, to the letter, is asked for again in another way.
    """
    missing = iter([number for number in range(order.count) if number not in partial.done])
    seen = {json.dumps(messages) for messages in partial.done.values()}
    before, begun = len(partial.done), time.monotonic()
    told = begun

    def read(text: str) -> Messages:
        messages = read_answer(text, check=check)
        if (key := json.dumps(messages)) in seen:
            raise ValueError("it repeats an earlier conversation")
        seen.add(key)
        return messages

    async def work() -> None:
        nonlocal told
        for number in missing:  # one iterator for all workers
            messages = await endpoint.ask(
                lambda attempt, number=number: order.prompt(number, attempt), read, schema=SCHEMA
            )
            partial.add(number, messages)
            now = time.monotonic()
            if now - told >= PROGRESS_SECONDS:
                told = now
                rate = (len(partial.done) - before) / (now - begun)
                left = (order.count - len(partial.done)) / rate
                tell(
                    f"{len(partial.done):,} of {order.count:,} · {rate:.1f} per second · about "
                    f"{left / 60:.1f} minutes left · {endpoint.num_retries:,} retries"
                )

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(work())
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


def finish(order: Order, partial: Partial, out: Path) -> dict[str, int]:
    """Write `out` and say what is in it; the partial file goes, unless it holds more, for a larger count."""
    rows = [
        {"id": f"identity-{order.seed}-{number}", "messages": partial.done[number]}
        for number in sorted(partial.done)
        if number < order.count
    ]
    write_atomically(out, b"".join(map(_line, rows)))
    if len(rows) == len(partial.done):
        partial.path.unlink()
    name = order.subject.name.lower()
    said = [
        " ".join(turn["content"] for turn in row["messages"] if turn["role"] == "assistant").lower()
        for row in rows
    ]
    return {
        "conversations": len(rows),
        "different_openings": len({row["messages"][0]["content"].lower() for row in rows}),
        "saying_its_name": sum(name in text for text in said),
    }


def _line(row: Mapping[str, object]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"
