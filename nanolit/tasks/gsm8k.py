"""GSM8K (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168): school arithmetic in words.

Its answers carry calculator annotations, "48/2 = <<48/2=24>>24"; each becomes a python part (48/2) and a
python_output part (24), so that the model learns to call the tool.
"""

import re
from decimal import Decimal, InvalidOperation
from typing import Literal

from nanolit.tasks.rows import Row
from nanolit.tasks.task import Conversation, Task, check_choice, exchange, open_rows

ANNOTATION = re.compile(r"<<([^<>]*)>>")
ANSWER = re.compile(r"#### (-?[0-9.,]+)")


class GSM8K(Task):
    """Answers are compared as numbers: 10, 10. and 10.0 are equal, which nanochat, comparing text, denies."""

    evaluation_type = "generative"

    def __init__(
        self, *, split: Literal["train", "test"], source: str, epochs: int = 1, max_rows: int | None = None
    ) -> None:
        check_choice("GSM8K's split", split, ("train", "test"))
        rows = open_rows(source, f"eval/gsm8k/{split}", hub=("openai/gsm8k", "main", split))
        super().__init__(rows, epochs=epochs, max_rows=max_rows)

    def conversation(self, row: Row) -> Conversation:
        return exchange(row["question"], parts_of(row["answer"]))

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """Tell whether the completion's first "#### answer" equals the reference's; False without one."""
        return same_answer(completion, conversation["messages"][-1]["content"][-1]["text"])

    def extract(self, completion: str) -> str | None:
        return extract_answer(completion)


def same_answer(first: str, second: str) -> bool:
    """Tell whether the first "#### answer" of two texts is the same number; False if either lacks one."""
    answers = extract_answer(first), extract_answer(second)
    return answers[0] is not None and answers[1] is not None and same_number(answers[0], answers[1])


def extract_answer(text: str) -> str | None:
    """Return the number after the first "#### " as text, without thousands commas; None without one."""
    match = ANSWER.search(text)
    return match.group(1).strip().replace(",", "") if match else None


def same_number(first: str, second: str) -> bool:
    """Compare two extracted answers as numbers; text that is not a number ("1.2.3") equals only itself."""
    try:
        return Decimal(first.rstrip(".")) == Decimal(second.rstrip("."))
    except InvalidOperation:
        return first == second


def parts_of(answer: str) -> list[dict[str, str]]:
    """Split an annotated answer into text, python and python_output parts."""
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(ANNOTATION.split(answer)):
        if number % 2 == 0:
            parts += [{"type": "text", "text": piece}] if piece else []
            continue
        expression, equals, result = piece.rpartition("=")
        if not (equals and expression and result):
            raise ValueError(f"the calculator annotation <<{piece}>> is not <<expression=result>>")
        parts += [{"type": "python", "text": expression}, {"type": "python_output", "text": result}]
    return parts
