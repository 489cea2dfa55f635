"""Generate conversations in which a model says who it is, with any OpenAI-compatible endpoint.

export OPENAI_API_KEY=…
nanolit identity name=Ada model=gpt-5-mini facts=about.md dry_run=true     estimate the cost
nanolit identity name=Ada model=gpt-5-mini facts=about.md                  writes identity.jsonl
nanolit identity name=Ada model=qwen3 base_url=http://localhost:11434/v1   a local server, no key
nanolit train phase=identity start_from=RUN identity=identity.jsonl        teach it
"""

import asyncio
import os
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from nanolit.machine.arguments import read, setting
from nanolit.machine.exit import command
from nanolit.machine.locks import held
from nanolit.tasks.endpoint import Endpoint
from nanolit.tasks.identity_generation import (
    Estimate,
    Order,
    Partial,
    Prices,
    dollars,
    estimate,
    finish,
    generate,
)
from nanolit.tasks.identity_prompts import Subject
from nanolit.tokenizer.conversation import check_conversation

KEY_VARIABLE = "OPENAI_API_KEY"
OPENAI = "https://api.openai.com/v1"


@dataclass(frozen=True)
class Settings:
    """The order, the endpoint it goes to, and the file of the answers."""

    name: str = setting("the model's name")
    model: str = setting("model that writes them; must support JSON-schema output")
    base_url: str = setting("the endpoint; its key is in OPENAI_API_KEY", OPENAI, value="URL")
    facts: Path | None = setting(
        "a text file of facts about the model (default: a small model, trained with NanoLit)",
        None,
        value="FILE",
    )
    count: int = setting("number of conversations", 1000, least=1)
    out: Path = setting(
        "output file; OUT.partial keeps finished work, so the same command resumes",
        Path("identity.jsonl"),
        value="FILE",
    )
    seed: int = setting("random seed for users, subjects and openings", 1, least=0)
    workers: int = setting("parallel requests", 8, least=1)
    prices: str | None = setting(
        "dollars per million tokens of prompts and of answers, to estimate the cost", None, value="IN,OUT"
    )
    dry_run: bool = setting("estimate and show the first request, without sending any", False)


@command
def main(words: Sequence[str]) -> int:
    settings = read(Settings, words, about=__doc__)
    try:
        write(settings)
    except KeyboardInterrupt:
        print("stopped; finished conversations are kept, and the same command resumes", file=sys.stderr)
        return 130
    return 0


def write(settings: Settings) -> None:
    order, out, prices = order_of(settings), settings.out, prices_of(settings.prices)
    key = os.environ.get(KEY_VARIABLE, "").strip() or None
    if not (key or settings.dry_run or settings.base_url != OPENAI):
        raise ValueError(
            f"{KEY_VARIABLE} is not set; export it, or give the base_url= of a server without keys"
        )
    endpoint = Endpoint(settings.base_url, order.model, key=key)
    if out.exists():
        raise ValueError(f"{out} already exists; give another out=, or remove it")
    lock = out.with_name(f".{out.name}.lock")
    with nullcontext() if settings.dry_run else held(lock, busy=f"{out} is being written"):
        partial = Partial(out.with_name(f"{out.name}.partial"), order, check=check_conversation)
        expected = estimate(order, set(partial.done), prices=prices)
        say(described(expected, len(partial.done)))
        if settings.dry_run:
            say(f"\nThe first request:\n\n{order.prompt(0)}")
            return
        asyncio.run(converse(order, endpoint, partial, workers=settings.workers))
        facts = finish(order, partial, out)
    spent = dollars(endpoint.prompt_tokens, endpoint.completion_tokens, prices)
    say(
        f"{out}: {facts['conversations']:,} conversations with {facts['different_openings']:,} openings, "
        f"{facts['saying_its_name']:,} say {order.subject.name}\n"
        f"used {endpoint.prompt_tokens:,} prompt tokens and {endpoint.completion_tokens:,} answer tokens"
        f"{money(spent)}, {endpoint.num_retries:,} retries\n"
        f"teach it: python -m nanolit.train phase=identity start_from=RUN identity={out}"
    )


async def converse(order: Order, endpoint: Endpoint, partial: Partial, *, workers: int) -> None:
    async with endpoint:
        await generate(order, endpoint, partial, workers=workers, check=check_conversation, tell=say)


def order_of(settings: Settings) -> Order:
    """Return what is asked for; ValueError if the facts cannot be read."""
    facts = None
    if settings.facts is not None:
        try:
            facts = settings.facts.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"facts={settings.facts} can't be read ({error}); give a UTF-8 text file"
            ) from None
        if not facts.strip():
            raise ValueError(f"facts={settings.facts} is empty; write facts about the model, or leave it out")
    return Order(Subject.of(settings.name, facts), settings.model, settings.seed, settings.count)


def prices_of(text: str | None) -> Prices | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d+(\.\d+)?,\d+(\.\d+)?", text):
        raise ValueError(f"prices={text} must be dollars per million tokens in and out: prices=0.25,2.00")
    price_in, price_out = map(float, text.split(","))
    return price_in, price_out


def described(expected: Estimate, num_done: int) -> str:
    """Return the estimate in one line."""
    again = f"{num_done:,} already done; " if num_done else ""
    cost = money(expected.dollars) or "; give prices=IN,OUT to see the cost"
    return (
        f"{again}{expected.num_requests:,} requests, about {expected.prompt_tokens:,} prompt tokens and "
        f"{expected.completion_tokens:,} answer tokens (a guess: 300 each){cost}"
    )


def money(amount: float | None) -> str:
    return "" if amount is None else f", ${amount:,.2f}"


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
