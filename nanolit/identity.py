"""Identity: `python -m nanolit.identity name=Ada model=…` has another model introduce ours."""

import asyncio
import os
import re
import sys
from pathlib import Path

from nanolit.machine.arguments import parse
from nanolit.machine.exit import leave
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

USAGE = """\
Write synthetic conversations in which a model says who it is, through any OpenAI-compatible endpoint.

  export OPENAI_API_KEY=…
  python -m nanolit.identity name=Ada model=gpt-5-mini facts=about.md dry_run=true     what it would cost
  python -m nanolit.identity name=Ada model=gpt-5-mini facts=about.md                  writes identity.jsonl
  python -m nanolit.identity name=Ada model=qwen3 base_url=http://localhost:11434/v1   a local server, no key
  python -m nanolit.train phase=identity start_from=RUN identity=identity.jsonl        teach it

settings:
  name=NAME            what the model is called
  model=MODEL          who writes; it must be able to answer in a JSON schema
  base_url=URL         of the endpoint (default: https://api.openai.com/v1); its key is in OPENAI_API_KEY
  facts=FILE           what is true of the model, as text (default: a small model, trained with NanoLit)
  count=1000           conversations
  out=identity.jsonl   where they go; OUT.partial keeps what is done, and the same command goes on from it
  seed=1               of the users, subjects and openings that are drawn
  workers=8            requests at once
  prices=IN,OUT        dollars for a million tokens of prompts and of answers, to know the cost
  dry_run=true         estimate, show the first request, ask nothing
"""
KEYS = ["name", "model", "base_url", "facts", "count", "out", "seed", "workers", "prices", "dry_run"]
KEY_VARIABLE = "OPENAI_API_KEY"


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0; 2 with one line of what was wrong; 130 when interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        write(parse(words, prog="nanolit.identity", usage=USAGE, keys=KEYS))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what is done is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    return 0


def write(settings: dict[str, str]) -> None:
    order, out = order_of(settings), Path(settings.get("out", "identity.jsonl")).expanduser()
    workers, prices = whole_number("workers", settings.get("workers", "8")), prices_of(settings.get("prices"))
    dry_run = switch("dry_run", settings.get("dry_run", "false"))
    key = os.environ.get(KEY_VARIABLE, "").strip() or None
    if not (key or dry_run or "base_url" in settings):
        raise ValueError(f"{KEY_VARIABLE} is not set; export it, or give base_url= of a server without keys")
    endpoint = Endpoint(settings.get("base_url", "https://api.openai.com/v1"), order.model, key=key)
    if out.exists():
        raise ValueError(f"{out} is there already; give another out=, or remove it")
    partial = Partial(out.with_name(f"{out.name}.partial"), order, check=check_conversation)
    expected = estimate(order, set(partial.done), prices=prices)
    say(described(expected, len(partial.done)))
    if dry_run:
        say(f"\nThe first request:\n\n{order.prompt(0)}")
        return
    asyncio.run(converse(order, endpoint, partial, workers=workers))
    facts = finish(order, partial, out)
    spent = dollars(endpoint.prompt_tokens, endpoint.completion_tokens, prices)
    say(
        f"{out}: {facts['conversations']:,} conversations with {facts['different_openings']:,} openings, "
        f"{facts['saying_its_name']:,} say {order.subject.name}\n"
        f"used {endpoint.prompt_tokens:,} tokens of prompts and {endpoint.completion_tokens:,} of answers"
        f"{money(spent)}, {endpoint.num_retries:,} retries\n"
        f"teach it: python -m nanolit.train phase=identity start_from=RUN identity={out}"
    )


async def converse(order: Order, endpoint: Endpoint, partial: Partial, *, workers: int) -> None:
    async with endpoint:
        await generate(order, endpoint, partial, workers=workers, check=check_conversation, tell=say)


def order_of(settings: dict[str, str]) -> Order:
    """What is asked for; ValueError names what is missing or wrong."""
    for key in ("name", "model"):
        if key not in settings:
            raise ValueError(
                f"{key}= is missing; for example: python -m nanolit.identity name=Ada model=gpt-5-mini"
            )
    facts = None
    if "facts" in settings:
        try:
            facts = Path(settings["facts"]).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"facts={settings['facts']} can't be read ({error}); give a UTF-8 text file"
            ) from None
        if not facts.strip():
            raise ValueError(
                f"facts={settings['facts']} is empty; write what is true of the model, or leave it out"
            )
    seed = settings.get("seed", "1")
    if not seed.isdecimal():
        raise ValueError(f"seed is {seed!r}; it must be a whole number")
    count = whole_number("count", settings.get("count", "1000"))
    return Order(Subject.of(settings["name"], facts), settings["model"], int(seed), count)


def whole_number(key: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{key} is {text!r}; it must be a whole number, 1 or more")
    return int(text)


def prices_of(text: str | None) -> Prices | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d+(\.\d+)?,\d+(\.\d+)?", text):
        raise ValueError(
            f"prices is {text!r}; it must be the dollars for a million tokens in and out: prices=0.25,2.00"
        )
    price_in, price_out = map(float, text.split(","))
    return price_in, price_out


def switch(key: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"{key} is {text!r}; it must be true or false")
    return text == "true"


def described(expected: Estimate, num_done: int) -> str:
    """The estimate in one line."""
    again = f"{num_done:,} are done; " if num_done else ""
    cost = money(expected.dollars) or "; prices=IN,OUT tells the cost"
    return (
        f"{again}{expected.num_requests:,} requests, about {expected.prompt_tokens:,} tokens of prompts and "
        f"{expected.completion_tokens:,} of answers (a guess: 300 each){cost}"
    )


def money(amount: float | None) -> str:
    return "" if amount is None else f", ${amount:,.2f}"


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    leave(main)
