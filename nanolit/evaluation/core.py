"""CORE: 22 tasks for base models, from DCLM (https://arxiv.org/abs/2406.11794), as nanochat asks them.

A model answers by its losses: with the choice, or the context, whose span has the least mean loss, or with
a continuation of which every token is the likeliest. CORE is the mean over the tasks of accuracy above
guessing. Prompts, examples, spans and decisions are nanochat's of July 2026; its own numbers are the tests.
"""

import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from typing_extensions import TypedDict

from nanolit.evaluation.items import ItemFile, overlap
from nanolit.evaluation.questions import Encoder, Question, TooLong, ask, check_lengths, num_characters
from nanolit.evaluation.scores import Item as ScoredItem
from nanolit.evaluation.scores import Scored, mean_centered
from nanolit.evaluation.spans import Group, Scorer, Span
from nanolit.machine.device import gathered, rank, world_size
from nanolit.machine.paths import Json, read_json, write_json
from nanolit.machine.terminal import duration
from nanolit.tasks.bundle import LABELS, Item, Label, digest_of, is_original, read_items

T = TypeVar("T")
SHUFFLED_BY = 1337  # nanochat's seed of a task's order
CHUNK = 512  # items whose prompts are made, tokenized, scored and kept together


class Kept(TypedDict):
    """The fields that are read of an older core.json."""

    metrics: dict[str, float]


def score_core(
    scorer: Scorer,
    tokenizer: Encoder,
    bundle: Path,
    *,
    max_per_task: int | None = None,
    crop: int | None = None,
    folder: Path | None = None,
    about: Mapping[str, Any] | None = None,
) -> Json:
    """Ask all of CORE, say the scores on rank 0, and return them. Collective; see `evaluate_core`.

    `folder` keeps core.json, where the report finds the mean, and the items in core/.
    """
    scored, first = [], rank() == 0
    settings: Any = {"max_per_task": max_per_task, "crop": crop}
    items = folder and folder / "core"
    for name, score in evaluate_core(
        scorer, tokenizer, bundle, LABELS, folder=items, about=about, **settings
    ):
        scored.append(score)
        if first:
            print(f"  {name:<32} {in_words(score)}", flush=True)
    value, error = mean_centered(scored)
    others = replaced(bundle, LABELS)
    mean = name_of_mean(**settings, others=others)
    scores: Json = {
        "metrics": {mean: value, f"{mean}, standard error": error},
        "tasks": {
            score.task: {"accuracy": score.accuracy, "error": score.error, "asked": score.num_items}
            for score in scored
        },
        **settings,
        "other_questions": others,
    }
    if first:
        print(f"  {mean:<32} {value:.4f} ± {error:.4f}; runs of the same recipe also differ by 0.006 (sd)")
        if told := others_in_words(others):
            print(f"  {told}")
        if folder:  # other parts of CORE stay in the report
            path = folder / "core.json"
            older = read_json(path, Kept)["metrics"] if path.is_file() else {}
            write_json(path, {"format": 1, **scores, "metrics": older | scores["metrics"]})
    return scores


def fitting(score: Callable[..., T], *arguments: Any, **settings: Any) -> T:
    """Call `score_core` or `mean_of_part`; crop to what the model takes where a prompt is longer."""
    try:
        return score(*arguments, **settings)
    except TooLong as error:  # on every rank alike, before anything is asked
        return score(*arguments, **settings, crop=error.most)


def mean_of_part(scorer: Scorer, tokenizer: Encoder, bundle: Path, **settings: Any) -> tuple[float, float]:
    """Return the mean above guessing and its error, and say nothing. Collective; see `evaluate_core`."""
    return mean_centered(score for _, score in evaluate_core(scorer, tokenizer, bundle, LABELS, **settings))


def evaluate_core(
    scorer: Scorer,
    tokenizer: Encoder,
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
    nanochat crops none for its own models. Items go to `folder`; an interrupted evaluation of the same
    `about` resumes there.
    """
    most, tasks = scorer.max_positions, []
    if crop is not None and crop > most:
        raise ValueError(f"crop={crop} is more than the {most:,} positions of this model; give crop={most}")
    for label in labels:
        items, digest = shuffled(bundle, label)
        header = {"task": label.name, "file": digest, "crop": crop, "shots": label.shots, **(about or {})}
        kept = ItemFile(folder and folder / f"{label.name}.jsonl", header)
        asked = range(len(items))[:max_per_task]
        missing = [index for index in asked if index not in kept.items]
        if crop is None:
            check_lengths(label, items, missing, tokenizer, most=most)
        tasks.append((label, items, kept, asked, missing))
    progress = _Progress([num_characters(label, items, missing) for label, items, _, _, missing in tasks])
    for place, (label, items, kept, asked, missing) in enumerate(tasks):
        overlap(
            _ask_chunk(scorer, tokenizer, label, items, chunk, kept, crop)
            for chunk in progress.chunks(label.name, place, missing)
        )
        yield label.name, kept.scored(label.name, asked, baseline=label.baseline / 100)
    progress.end()


def _ask_chunk(
    scorer: Scorer,
    tokenizer: Encoder,
    label: Label,
    items: Sequence[Item],
    indices: Sequence[int],
    kept: ItemFile,
    crop: int | None,
) -> Iterator[None]:
    """Begin to score these items; behind the yield wait for the scores and keep them."""
    questions = ask(label, items, indices, tokenizer, crop=crop)
    gather = _start_on_all_ranks(scorer, [question.group for question in questions])
    yield
    scored = map(judged, indices, questions, gather())
    kept.add({**item, "question": items[item["index"]]} for item in scored)


def shuffled(bundle: Path, label: Label) -> tuple[list[Item], str]:
    """Return a label's items in nanochat's order, and the sha256 of their file."""
    items, digest = read_items(bundle, label)
    random.Random(SHUFFLED_BY).shuffle(items)
    return items, digest


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


def others_in_words(labels: Sequence[str]) -> str:
    """Return what to say with a score that is not CORE's, "" for the original questions."""
    have = "have" if len(labels) > 1 else "has"
    told = f"not CORE as published: {', '.join(labels)} {have} different questions from the originals"
    return told if labels else ""


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


def _start_on_all_ranks(scorer: Scorer, groups: Sequence[Group]) -> Callable[[], list[list[Span]]]:
    """Deal the groups out by length, to and fro, so that ranks end together; the rest gathers every span."""
    world = world_size()
    order = sorted(range(len(groups)), key=lambda index: -sum(map(len, groups[index].texts)))
    turns = [n % world if (n // world) % 2 == 0 else world - 1 - n % world for n in range(len(order))]
    mine = [index for index, turn in zip(order, turns, strict=True) if turn == rank()]
    wait = scorer.start([groups[index] for index in mine])

    def gather() -> list[list[Span]]:
        scored = dict(zip(mine, wait(), strict=True))
        scored = {index: spans for piece in gathered(scored) for index, spans in piece.items()}
        return [scored[index] for index in range(len(groups))]

    return gather


class _Progress:
    """A line that says how far the evaluation is and how long it will still take; only at a terminal.

    `work` is each task's, in any unit: squad takes a third of CORE's time, five tasks a hundredth.
    """

    def __init__(self, work: Sequence[float]) -> None:
        self.work, self.begun = work, time.monotonic()
        barred = hasattr(sys.stderr, "rich_proxied_file")  # while training shows its own bar
        self.shown = sys.stderr.isatty() and not barred and rank() == 0

    def chunks(self, name: str, place: int, indices: Sequence[int]) -> Iterator[Sequence[int]]:
        """Yield the indices in chunks, and show before each how far a task is."""
        for first in range(0, len(indices), CHUNK):
            self.show(name, place, first, len(indices))
            yield indices[first : first + CHUNK]

    def show(self, name: str, place: int, done: int, total: int) -> None:
        if not self.shown:
            return
        share = (sum(self.work[:place]) + self.work[place] * done / total) / sum(self.work)
        left = (time.monotonic() - self.begun) * (1 - share) / share if share > 0.02 else None
        about = f", about {duration(left)} left" if left else ""
        print(f"\r  {name}: {done:,} of {total:,}{about}   \033[K", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
