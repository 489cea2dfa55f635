"""Requests to another model, so that it writes conversations in which ours introduces itself.

Request `number` is a function of (subject, seed, number, attempt) alone. Asked the same thing a thousand
times, a model writes much the same thing a thousand times: every request therefore draws its own user,
subject, length and openings from identity_prompts.json (nanochat draws first messages; the lists are ours).
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

LISTS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
OPENINGS = 5  # examples of a first message in one request, as in nanochat
# What all requests share comes first, so that an endpoint that caches prefixes charges it once.
REQUEST = """\
You write training data for {name}, a language model: one conversation between a user and {name}.

All that is known of {name}:
<facts>
{facts}
</facts>

{name} speaks in the first person, warmly and plainly, in plain text without markup, mostly in one to four
sentences, and in the user's language. It claims nothing about itself that is not among the facts; what it
does not know, it says it does not know. Asked who or what it is, it gives its name.

The user is {user}. The conversation is about {subject}. The user speaks first, then they take turns, and
{name} has the last word; {name} speaks {turns} in all. The user opens in the manner of one of these, in words
of their own:
{openings}

Answer with JSON alone, of this form:
{{"messages": [{{"role": "user", "content": "…"}}, {{"role": "assistant", "content": "…"}}, …]}}
"""
MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"type": "string", "enum": ["user", "assistant"]},
        "content": {"type": "string"},
    },
    "required": ["role", "content"],
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "properties": {"messages": {"type": "array", "items": MESSAGE}},
    "required": ["messages"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Subject:
    """Whom the conversations introduce; `facts` is all that may be said of it."""

    name: str
    facts: str

    @classmethod
    def of(cls, name: str, facts: str | None) -> "Subject":
        """Return the subject of a name; without facts it is a model that NanoLit trained."""
        return cls(name, (facts or LISTS["facts"].format(name=name)).strip())


def prompt(subject: Subject, seed: int, *, number: int, attempt: int = 0) -> str:
    """Return the request for conversation `number`; another attempt draws anew."""
    chance = random.Random(f"identity {seed} {number} {attempt}")
    return REQUEST.format(
        name=subject.name,
        facts=subject.facts,
        user=chance.choice(LISTS["users"]),
        subject=chance.choice(LISTS["subjects"]),
        turns=chance.choice(("once", "once", "twice", "twice", "three times", "four times")),
        openings="\n".join(chance.sample(LISTS["openings"], OPENINGS)),
    )
