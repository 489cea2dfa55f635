"""Sums of two small numbers: a task that a model of a few million parameters can learn, and RL can win."""

import random
import zlib
from typing import Literal

from nanolit.tasks.generated import GeneratedRows
from nanolit.tasks.rows import Row
from nanolit.tasks.task import Conversation, Task, check_choice, exchange


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
        pairs = [
            (first, second)
            for first in range(below)
            for second in range(below)
            if (zlib.crc32(f"{first}+{second}".encode()) % 10 == 0) == (split == "test")
        ]
        if not pairs:
            raise ValueError(f"below is {below}: no {split} pairs; allowed: 2 and up")
        random.Random("sums").shuffle(pairs)
        rows = GeneratedRows(size, lambda row: {"pair": pairs[row % len(pairs)]}, label=f"Sums {split}")
        super().__init__(rows, epochs=epochs, max_rows=max_rows)

    def conversation(self, row: Row) -> Conversation:
        first, second = row["pair"]
        return exchange(f"What is {first}+{second}?", str(first + second))

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return completion.strip() == conversation["messages"][-1]["content"]
