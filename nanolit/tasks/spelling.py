"""Letters, which a model that reads tokens can't see: spelling words, and counting a letter in a word.

After nanochat's SimpleSpelling and SpellingBee; the wording is ours. The test words are never train words.
"""

import random
import zlib
from typing import Literal

from nanolit.tasks.gsm8k import extract_answer, same_answer
from nanolit.tasks.rows import GeneratedRows, Row, find_file, read_lines
from nanolit.tasks.task import Conversation, Task, check_choice, exchange

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEST_SHARE = 10  # one word in ten is a test word
QUESTIONS = (  # varied, so that the model learns the task and not one sentence
    "How many {letter} are in {word}?",
    "How many times does {letter} occur in {word}?",
    "How often does the letter {letter} appear in the word {word}?",
    "Count the {letter} in {word}.",
    "Count how many times {letter} is used in {word}",
    "In the word {word}, how many {letter} do you see?",
    "what number of {letter} does {word} have",
    "how many {letter} in {word}",
    "Tell me how many letters {letter} the word {word} contains.",
    "Number of {letter} in {word}?",
)


class WordTask(Task):
    """Questions about words; the words of test questions are never train words."""

    evaluation_type = "generative"

    def __init__(
        self,
        *,
        split: Literal["train", "test"],
        size: int,
        source: str,
        epochs: int = 1,
        max_rows: int | None = None,
    ) -> None:
        words = words_of(source, split)

        def make(number: int) -> Row:
            chance = random.Random(f"spelling bee {split} {number}")
            return self.about(words[number % len(words)], chance)

        rows = GeneratedRows(size, make, label=f"{self.name} {split}")
        super().__init__(rows, epochs=epochs, max_rows=max_rows)

    def about(self, word: str, chance: random.Random) -> Row:
        """Return what a question on the word is made of, drawn by `chance`."""
        return {"word": word}


class SimpleSpelling(WordTask):
    """Spell a word, letters separated by commas: the easier half of SpellingBee, and a task that RL can
    win."""

    def conversation(self, row: Row) -> Conversation:
        return exchange(f"Spell the word: {row['word']}", ",".join(row["word"]))

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return completion.strip() == conversation["messages"][-1]["content"]

    def reward(self, conversation: Conversation, completion: str) -> float:
        """Return the share of letters in the right place: a signal before a whole word is right."""
        wanted = conversation["messages"][-1]["content"].split(",")
        given = completion.strip().split(",")
        right = sum(first == second for first, second in zip(wanted, given, strict=False))
        return right / max(len(wanted), len(given))


class SpellingBee(WordTask):
    """Count a letter in a word: spell it, count along, then check with the Python tool."""

    def about(self, word: str, chance: random.Random) -> Row:
        # one question in ten asks for any letter, which mostly isn't there: zero is an answer too
        letter = chance.choice(word if chance.random() < 0.9 else LETTERS)
        return {"word": word, "letter": letter, "question": _question(word, letter, chance)}

    def conversation(self, row: Row) -> Conversation:
        word, letter = row["word"], row["letter"]
        count = str(word.count(letter))
        parts = [
            {
                "type": "text",
                "text": f"{word} is spelled {','.join(word)}\n{_count_along(word, letter)}By Python: ",
            },
            {"type": "python", "text": f"'{word}'.count('{letter}')"},
            {"type": "python_output", "text": count},
            {"type": "text", "text": f"{count}\n#### {count}"},
        ]
        return exchange(row["question"], parts)

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """Tell whether the first "#### count" is right, as in GSM8K."""
        return same_answer(completion, conversation["messages"][-1]["content"][-1]["text"])

    def extract(self, completion: str) -> str | None:
        return extract_answer(completion)


def words_of(source: str, split: str) -> list[str]:
    """Return the train or test words of a word list (words_lower.txt, one a line), in a fixed shuffled order.

    The hub has none, so source=hub uses the package's own.
    """
    check_choice("the split of a spelling task", split, ("train", "test"))
    source = "sample" if source == "hub" else source
    file = find_file(source, "words_lower", endings=(".txt", ".txt.zst"))
    words = [word for word in read_lines(file) if word and set(word) <= set(LETTERS)]
    chosen = [word for word in words if (zlib.crc32(word.encode()) % TEST_SHARE == 0) == (split == "test")]
    if not chosen:
        raise ValueError(f"{file}: no {split} words; it needs lowercase words, one per line")
    random.Random("spelling words").shuffle(chosen)
    return chosen


def _count_along(word: str, letter: str) -> str:
    lines, count = "", 0
    for number, other in enumerate(word, start=1):
        count += other == letter
        lines += f"{number}:{other}" + (f" is {letter}, {count}\n" if other == letter else "\n")
    return lines


def _question(word: str, letter: str, chance: random.Random) -> str:
    quote = chance.choice(["", "'", '"'])
    question = chance.choice(QUESTIONS).format(letter=f"{quote}{letter}{quote}", word=f"{quote}{word}{quote}")
    return question.lower() if chance.random() < 0.3 else question
