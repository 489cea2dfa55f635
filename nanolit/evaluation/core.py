"""CORE: 22 tasks for base models, from DCLM (https://arxiv.org/abs/2406.11794), as nanochat asks them.

A model answers by its losses: with the choice, or the context, whose span has the least mean loss, or with
a continuation of which every token is the likeliest. CORE is the mean over the tasks of accuracy above
guessing. Prompts, examples, spans and decisions are nanochat's of July 2026; its own numbers are the tests.
"""

import math
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from nanolit.evaluation.items import ItemFile, checksum_of
from nanolit.evaluation.scores import Item as ScoredItem
from nanolit.evaluation.scores import Scored
from nanolit.evaluation.spans import Group, Span, score_groups
from nanolit.inference.decode import Decoder
from nanolit.machine.device import rank, world_size
from nanolit.tasks.bundle import Item, Label, digest_of, is_original, read_items
from nanolit.tokenizer.bpe import Tokenizer

SHUFFLED_BY, SHOWN_BY = (
    1337,
    1234,
)  # nanochat's seeds: of a task's order, and, plus the index, of its examples
CHUNK = 512  # items whose prompts are made, tokenized, scored and kept together


@dataclass(frozen=True)
class Question:
    """An item as the model reads it."""

    group: Group
    gold: int | None
    prompt: int  # a checksum of the first text's ids, before it is cropped
    cropped: bool


def evaluate_core(
    decoder: Decoder,
    tokenizer: Tokenizer,
    bundle: Path,
    labels: Sequence[Label],
    *,
    max_per_task: int | None = None,
    crop: int | None = None,
    folder: Path | None = None,
    about: Mapping[str, Any] | None = None,
) -> Iterator[tuple[str, Scored]]:
    """Yield each label's score as it is done. Collective: every rank must call, and gets the same scores.

    `max_per_task` takes the first ones after nanochat's shuffle. `crop` cuts longer prompts from the left;
    nanochat crops none for its own models. Items go to `folder`, an interrupted evaluation of the same
    `about` goes on there.
    """
    most, tasks = decoder.model.max_positions, [(label, *_shuffled(bundle, label)) for label in labels]
    if crop is not None and crop > most:
        raise ValueError(f"crop={crop} is more than the {most:,} positions of this model; give crop={most}")
    if crop is None:
        for label, items, _ in tasks:
            _check_lengths(label, items, range(len(items))[:max_per_task], tokenizer, most=most)
    progress = _Progress(labels)
    for label, items, digest in tasks:
        header = {"task": label.name, "file": digest, "crop": crop, "shots": label.shots, **(about or {})}
        kept = ItemFile(folder and folder / f"{label.name}.jsonl", header)
        asked = range(len(items))[:max_per_task]
        missing = [index for index in asked if index not in kept.items]
        for first in range(0, len(missing), CHUNK):
            progress.show(label, first, len(missing))
            indices = missing[first : first + CHUNK]
            questions = ask(label, items, indices, tokenizer, crop=crop)
            spans = _score_on_all_ranks(decoder, [question.group for question in questions])
            scored = map(judged, indices, questions, spans)
            kept.add({**item, "question": items[item["index"]]} for item in scored)
        yield label.name, kept.scored(label.name, asked, baseline=label.baseline / 100)
    progress.end()


def _shuffled(bundle: Path, label: Label) -> tuple[list[Item], str]:
    """Return a label's items in nanochat's order, and the sha256 of their file."""
    items, digest = read_items(bundle, label)
    random.Random(SHUFFLED_BY).shuffle(items)
    return items, digest


def _check_lengths(
    label: Label, items: Sequence[Item], indices: Sequence[int], tokenizer: Tokenizer, *, most: int
) -> None:
    """ValueError for a prompt of more than `most` tokens, before anything is asked."""
    # No token is shorter than a byte: only long texts need be tokenized to know
    long = [text for index in indices for text in _texts(label, items, index) if len(text.encode()) >= most]
    longest = max((len(ids) for ids in tokenizer.encode_batch(long, bos=True)), default=0)
    if longest > most:
        raise ValueError(
            f"{label.name} has a prompt of {longest:,} tokens, and this model takes at most {most:,}: give "
            f"crop={most} (published scores of nanochat's models are not cropped)"
        )


def name_of_mean(*, max_per_task: int | None, crop: int | None, others: Sequence[str]) -> str:
    """Return CORE, or what it is only a part of: such means compare with their like alone."""
    parts = [f"at most {max_per_task} a task"] if max_per_task is not None else []
    parts += [f"cropped to {crop}"] if crop is not None else []
    parts += [f"{len(others)} tasks not the originals"] if others else []
    return f"CORE of {', '.join(parts)}" if parts else "CORE"


def in_words(score: Scored) -> str:
    """Return a score with its error and what it is worth beside guessing."""
    return (
        f"{score.accuracy:.4f} ± {score.error:.4f} of {score.num_items:,}, "
        f"guessing {score.baseline:.3f}: {score.centered:+.4f}"
    )


def replaced(bundle: Path, labels: Sequence[Label]) -> list[str]:
    """Return the labels whose questions are not the originals': their scores are not CORE's."""
    return [label.name for label in labels if not is_original(label, digest_of(bundle, label))]


def ask(
    label: Label, items: Sequence[Item], indices: Sequence[int], tokenizer: Tokenizer, *, crop: int | None
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
                f"{label.name}: a prompt's tokens change where its continuation {item['continuation']!r} is "
                "added; CORE can't be asked with this tokenizer"
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
            f"{label.name}: crop={crop} leaves nothing before an answer of {longest:,} tokens; "
            f"give crop={longest + 1} or more"
        )
    gold = None if label.kind == "language_modeling" else item["gold"]
    return Question(group, gold, checksum, any(cuts))


def _common(texts: Sequence[np.ndarray]) -> int:
    """Return how many ids all texts begin with."""
    shortest = min(map(len, texts))
    differ = np.any([text[:shortest] != texts[0][:shortest] for text in texts], axis=0)
    return int(differ.argmax()) if differ.any() else shortest


def judged(index: int, question: Question, spans: Sequence[Span]) -> ScoredItem:
    """Return an item's line: right by the least mean loss, the first of equal ones, or by greedy tokens.

    A choice that others begin with has no span and no loss; Python's min then decides as it does in nanochat.
    """
    losses = [span.loss for span in spans]
    right = spans[0].greedy if question.gold is None else losses.index(min(losses)) == question.gold
    return {
        "index": index,
        "prompt": question.prompt,
        "losses": [None if math.isnan(loss) else loss for loss in losses],
        "greedy": [span.greedy for span in spans],
        "gold": question.gold,
        "right": right,
        "tokens": sum(map(len, question.group.texts)),
        "cropped": question.cropped,
    }


def _score_on_all_ranks(decoder: Decoder, groups: Sequence[Group]) -> list[list[Span]]:
    """Deal the groups out by length, to and fro, so that ranks end together; gather every span."""
    world = world_size()
    order = sorted(range(len(groups)), key=lambda index: -sum(map(len, groups[index].texts)))
    turns = [n % world if (n // world) % 2 == 0 else world - 1 - n % world for n in range(len(order))]
    mine = [index for index, turn in zip(order, turns, strict=True) if turn == rank()]
    scored = dict(zip(mine, score_groups(decoder, [groups[index] for index in mine]), strict=True))
    if world > 1:
        pieces: list[Any] = [None] * world
        dist.all_gather_object(pieces, scored)
        scored = {index: spans for piece in pieces for index, spans in piece.items()}
    return [scored[index] for index in range(len(groups))]


class _Progress:
    """A line that says where the evaluation is and how long it takes still; at a terminal alone."""

    def __init__(self, labels: Sequence[Label]) -> None:
        self.labels, self.begun = [label.name for label in labels], time.monotonic()
        self.shown = sys.stderr.isatty() and rank() == 0

    def show(self, label: Label, done: int, total: int) -> None:
        if not self.shown:
            return
        share = (self.labels.index(label.name) + done / max(1, total)) / len(self.labels)
        left = (time.monotonic() - self.begun) * (1 - share) / share if share > 0.02 else None
        about = f", about {left / 60:.0f} min left" if left else ""
        print(f"\r  {label.name}: {done:,} of {total:,}{about}   \033[K", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
