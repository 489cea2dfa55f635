"""A task: conversations to learn from, and a verdict on what the model says instead of the reference.

Its conversations are plain dicts as nanolit/tokenizer/conversation.py renders them; a task adds keys that
its own `evaluate` needs (letters, entry_point, …).
"""

import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from nanolit.tasks.rows import FileRows, HubRows, Row, Rows, find_file

Conversation = dict[str, Any]  # {"messages": […]} and what the task's `evaluate` needs
EvaluationType = Literal["categorical", "generative"]
SUBSET_SEED = 42  # which rows `max_rows` keeps; nanochat shuffles its sets with the same number


class Task(ABC):
    """Conversations made of rows. `epochs` and `max_rows` are this source's share of a mixture.

    `max_rows` keeps a fixed random subset of the rows, the same in every run.
    """

    evaluation_type: EvaluationType | None = None  # None: only to learn from
    baseline: float = 0.0  # accuracy of guessing
    skips_malformed = False  # leave malformed rows out with a count (data that the user can't mend)

    def __init__(self, rows: Rows, *, epochs: int = 1, max_rows: int | None = None) -> None:
        if epochs < 1:
            raise ValueError(f"epochs is {epochs}; allowed: 1 and up; leave the source out to skip it")
        if max_rows is not None and max_rows < 1:
            raise ValueError(f"max_rows is {max_rows}; allowed: 1 and up, or null for all rows")
        self.rows = rows
        self.epochs = epochs
        self.kept: Sequence[int] = range(len(rows))
        if max_rows is not None and max_rows < len(rows):
            self.kept = random.Random(SUBSET_SEED).sample(range(len(rows)), max_rows)

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def conditions(self) -> str:
        """Return what to tell and to store with a score beside the number; "" if there is nothing."""
        return ""

    def check_rewards(self) -> None:  # noqa: B027 - most tasks have nothing to check
        """ValueError where this machine cannot judge completions well enough to learn from the verdicts."""

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> Conversation:
        row = self.rows[self.kept[index]]
        try:
            return self.conversation(row)
        except KeyError as error:
            raise ValueError(f"{self.place(index)}: no field {error}; it has {', '.join(row)}") from error
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            raise ValueError(f"{self.place(index)}: {error}") from error

    def __iter__(self) -> Iterator[Conversation]:
        return (self[index] for index in range(len(self)))

    def place(self, index: int) -> str:
        """Name the origin of conversation `index`: a file and line, or a dataset and row."""
        return self.rows.place(self.kept[index])

    @abstractmethod
    def conversation(self, row: Row) -> Conversation:
        """Return the conversation that a row means."""

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """Tell whether the completion of the conversation's prompt is right."""
        raise ValueError(f"{self.name} is for training; it has no right answers to evaluate")

    def extract(self, completion: str) -> str | None:
        """Return the part of a completion that is judged, for people to read; None where it is the whole."""
        return None

    def reward(self, conversation: Conversation, completion: str) -> float:
        """Return the reward of a completion in [0, 1] for reinforcement learning: 1 for a right one."""
        return float(self.evaluate(conversation, completion))


def check_names(names: Iterable[str]) -> None:
    """ValueError for chat tasks of one name: scores and answers are stored by it."""
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"{count} chat tasks are named {name}; names must differ, so keep one of them")


class MultipleChoice(Task):
    """Questions answered by one letter. Conversations add `letters`, the allowed answers."""

    evaluation_type = "categorical"
    baseline = 0.25

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return completion == conversation["messages"][-1]["content"]


def exchange(question: str, answer: str | list[dict[str, str]]) -> Conversation:
    """Return the conversation of one question and its answer: text, or parts {"type", "text"}."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def choice_conversation(
    question: str, *, choices: Sequence[str], letters: Sequence[str], answer: str
) -> Conversation:
    """A question in nanochat's layout: each letter follows its choice, without a space before it, so that it
    is the very token of the answer (nanochat: small models bind letter and choice better so)."""
    if answer not in letters or len(choices) != len(letters):
        raise ValueError(
            f"answer {answer!r} among {len(choices)} choices with the letters {', '.join(letters)}"
        )
    options = "".join(f"- {choice}={letter}\n" for choice, letter in zip(choices, letters, strict=True))
    user = (
        f"Multiple Choice question: {question}\n{options}"
        "\nRespond only with the letter of the correct answer."
    )
    return {**exchange(user, answer), "letters": list(letters)}


def open_rows(source: str, name: str, *, hub: tuple[str, str | None, str]) -> Rows:
    """Return the rows `name` of the sample or of a mirror folder, or (dataset, subset, split) of the hub."""
    if source == "hub":
        return HubRows(*hub)
    remedy = f"put the rows of {' '.join(filter(None, hub))} there"
    return FileRows([find_file(source, name, remedy=remedy)])


def check_choice(what: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{what} is {value!r}; allowed: {', '.join(allowed)}")
