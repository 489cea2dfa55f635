"""CORE's prompts: an item with its examples to texts, and what of them is scored; all of it nanochat's."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nanolit.evaluation.items import checksum_of
from nanolit.evaluation.spans import Group
from nanolit.tasks.bundle import Item, Label

SHOWN_BY = 1234  # nanochat's seed, plus the item's index, of its examples
CHUNK = 512  # items whose prompts are measured together
MEASURED = 8  # items of a task that its work is guessed by


class Encoder(Protocol):
    """The part of a tokenizer that prompts need."""

    def encode_batch(self, texts: Sequence[str], *, bos: bool) -> list[np.ndarray]: ...


class TooLong(ValueError):
    """A prompt has more tokens than the model has positions, `most`."""

    def __init__(self, text: str, *, most: int) -> None:
        super().__init__(text)
        self.most = most


@dataclass(frozen=True)
class Question:
    """An item as the model reads it."""

    group: Group
    gold: int | None
    prompt: int  # a checksum of the first text's ids, before it is cropped
    cropped: bool


def check_lengths(
    label: Label, items: Sequence[Item], indices: Sequence[int], tokenizer: Encoder, *, most: int
) -> None:
    """Raise TooLong for a prompt of more than `most` tokens, before anything is asked."""
    for first in range(0, len(indices), CHUNK):
        texts = [text for index in indices[first : first + CHUNK] for text in _texts(label, items, index)]
        # No token is shorter than a byte: only long texts need be tokenized to know
        long = [text for text in texts if len(text.encode()) >= most]
        longest = max((len(ids) for ids in tokenizer.encode_batch(long, bos=True)), default=0)
        if longest > most:
            raise TooLong(
                f"{label.name} has a prompt of {longest:,} tokens, and this model takes at most {most:,}: "
                f"give crop={most} (published scores of nanochat's models are not cropped)",
                most=most,
            )


def num_characters(label: Label, items: Sequence[Item], indices: Sequence[int]) -> float:
    """Return about how many characters are read for these items, guessed from a few of them."""
    few = indices[:: max(1, len(indices) // MEASURED)]
    read = 0
    for texts in (_texts(label, items, index) for index in few):
        pairs = zip(min(texts), max(texts), strict=False)
        shared = next((n for n, (one, other) in enumerate(pairs) if one != other), len(min(texts)))
        read += shared + sum(len(text) - shared for text in texts)  # the beginning that all share once
    return len(indices) * read / len(few) if few else 0.0


def ask(
    label: Label, items: Sequence[Item], indices: Sequence[int], tokenizer: Encoder, *, crop: int | None
) -> list[Question]:
    """Render and tokenize items of a shuffled task; each shows examples that its own index draws."""
    rendered = [_texts(label, items, index) for index in indices]
    flat = [text for texts in rendered for text in texts]
    encoded = iter(tokenizer.encode_batch(flat, bos=True))
    return [
        _question(label, items[index], [next(encoded) for _ in texts], crop=crop)
        for index, texts in zip(indices, rendered, strict=True)
    ]


def _texts(label: Label, items: Sequence[Item], index: int) -> list[str]:
    """Return the texts of all options; of a continuation, the text without it and the whole."""
    item, delimiter = items[index], label.delimiter
    shown = random.Random(SHOWN_BY + index).sample(range(len(items) - 1), label.shots)
    prefix = "".join(_example(label, items[j + (j >= index)]) + "\n\n" for j in shown)
    if label.kind == "multiple_choice":
        return [prefix + item["query"] + delimiter + choice for choice in item["choices"]]
    if label.kind == "schema":
        return [prefix + context + delimiter + item["continuation"] for context in item["context_options"]]
    # Both are stripped alike, or a trailing blank would join with the continuation's first word as one token
    without = prefix + item["context"].strip() + delimiter
    return [without.strip(), without + item["continuation"]]


def _example(label: Label, item: Item) -> str:
    if label.kind == "multiple_choice":
        return item["query"] + label.delimiter + item["choices"][item["gold"]]
    if label.kind == "schema":
        return item["context_options"][item["gold"]] + label.delimiter + item["continuation"]
    return item["context"].strip() + label.delimiter + item["continuation"]


def _question(label: Label, item: Item, texts: list[np.ndarray], *, crop: int | None) -> Question:
    """Mark what is scored: after the common beginning, the common ending, or the continuation."""
    if label.kind == "language_modeling":
        without, whole = texts
        if not np.array_equal(without, whole[: len(without)]):
            raise ValueError(
                f"{label.name}: a prompt's tokens change when its continuation {item['continuation']!r} is "
                "added; CORE can't be evaluated with this tokenizer"
            )
        texts, starts = [whole], [len(without)]
    elif label.kind == "schema":
        shared = _common([text[::-1] for text in texts])
        starts = [len(text) - shared for text in texts]
    else:
        starts = [_common(texts)] * len(texts)
    checksum = checksum_of(texts[0])
    cuts = [max(0, len(text) - crop) if crop else 0 for text in texts]
    group = Group(
        [text[cut:] for text, cut in zip(texts, cuts, strict=True)],
        [start - cut for start, cut in zip(starts, cuts, strict=True)],
    )
    if min(group.starts) < 1:
        longest = max(len(text) - start for text, start in zip(texts, starts, strict=True))
        raise ValueError(
            f"{label.name}: crop={crop} leaves no prompt before an answer of {longest:,} tokens; "
            f"give crop={longest + 1} or more"
        )
    gold = None if label.kind == "language_modeling" else item["gold"]
    return Question(group, gold, checksum, any(cuts))


def _common(texts: Sequence[np.ndarray]) -> int:
    """Return how many ids all texts begin with."""
    shortest = min(map(len, texts))
    differ = np.any([text[:shortest] != texts[0][:shortest] for text in texts], axis=0)
    return int(differ.argmax()) if differ.any() else shortest
