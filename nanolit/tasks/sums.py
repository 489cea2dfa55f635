"""Sums of two small numbers: a task that a model of a few million parameters can learn, and RL can win."""

import random
import re
import zlib
from typing import Literal

from nanolit.tasks.rows import GeneratedRows, Row
from nanolit.tasks.task import Conversation, Task, check_choice, exchange

QUESTIONS = (  # as people type, so that the model learns the task and not one sentence
    "What is {first}+{second}?",
    "What is {first} + {second}?",
    "what is {first}+{second}",
    "What's {first} + {second}?",
    "{first}+{second}",
    "{first} + {second}",
    "{first}+{second}=?",
    "How much is {first}+{second}?",
    "how much is {first} + {second}",
    "What is {first} plus {second}?",
    "what is {first} plus {second}",
    "Add {first} and {second}.",
    "Can you add {first} and {second}?",
)


class Sums(Task):
    """Pairs of numbers below `below`; one pair in ten is a test pair and never trained on."""

    evaluation_type = "generative"

    def __init__(
        self,
        *,
        split: Literal["train", "test"],
        size: int,
        below: int = 10,
        epochs: int = 1,
        max_rows: int | None = None,
    ) -> None:
        check_choice("the split of Sums", split, ("train", "test"))
        pairs = pairs_of(split, below)

        def make(number: int) -> Row:
            return {"pair": pairs[number % len(pairs)], "number": number}

        rows = GeneratedRows(size, make, label=f"{self.name} {split}")
        super().__init__(rows, epochs=epochs, max_rows=max_rows)

    def conversation(self, row: Row) -> Conversation:
        first, second = row["pair"]
        return exchange(f"What is {first}+{second}?", str(first + second))

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return completion.strip() == conversation["messages"][-1]["content"]


class WorkedSums(Sums):
    """Sums as people ask them, worked out as people do: ones, tens, both. The last number counts.

    Each step is a small fact, so that a model of a million parameters learns them in minutes.
    """

    def conversation(self, row: Row) -> Conversation:
        first, second = row["pair"]
        question = random.Random(row["number"]).choice(QUESTIONS)
        return exchange(question.format(first=first, second=second), worked(first, second))

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return self.extract(completion) == self.extract(conversation["messages"][-1]["content"])

    def extract(self, completion: str) -> str | None:
        return (re.findall(r"\d+", completion) or [None])[-1]


def worked(first: int, second: int) -> str:
    """Return the sum of two numbers step by step: 27+38 is "7+8=15, 20+30=50, 50+15=65"."""
    if first < 10 and second < 10:
        return f"{first}+{second}={first + second}"
    ones, tens = (first % 10, second % 10), (first // 10 * 10, second // 10 * 10)
    return (
        f"{ones[0]}+{ones[1]}={sum(ones)}, {tens[0]}+{tens[1]}={sum(tens)}, "
        f"{sum(tens)}+{sum(ones)}={first + second}"
    )


def pairs_of(split: str, below: int) -> list[tuple[int, int]]:
    """Return the train or the test pairs of numbers below `below`, in a fixed shuffled order."""
    pairs = [
        (first, second)
        for first in range(below)
        for second in range(below)
        if (zlib.crc32(f"{first}+{second}".encode()) % 10 == 0) == (split == "test")
    ]
    if not pairs:
        raise ValueError(f"below is {below}: no {split} pairs; allowed: 2 and up")
    random.Random("sums").shuffle(pairs)
    return pairs
