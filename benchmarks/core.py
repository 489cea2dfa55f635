"""Time CORE: `python -m benchmarks core model=d4 bundle=FOLDER`, compared with a loop over single texts.

Uses random weights. Scores the same items of each task twice: as evaluation does, with shared prefixes read
once, and item by item as nanochat does (tests/oracles/core_loop.py). The decisions must agree.
Also takes the settings of nanolit train.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks import results
from benchmarks.inference import random_model
from benchmarks.train import device_name, synchronize
from nanolit.evaluation.core import judged, shuffled
from nanolit.evaluation.questions import Question, ask
from nanolit.evaluation.spans import score_groups
from nanolit.inference.decode import Decoder
from nanolit.machine.arguments import read_some, setting
from nanolit.tasks.bundle import LABELS, Label
from nanolit.tokenizer.bpe import Tokenizer
from tests.oracles.core_loop import score_item


@dataclass(frozen=True, kw_only=True)
class Settings(results.Kept):
    """Settings of CORE's benchmark."""

    bundle: Path = setting("folder with CORE's questions")
    tokenizer: Path | None = setting(
        "folder with a tokenizer (default: one token per byte, which makes prompts longer)", None
    )
    items: int = setting("items per task", 8, least=1)
    clock: Literal["wall", "cpu"] = setting(
        "wall, or cpu: processor time, which is less affected by other programs", "wall"
    )
    loop: bool = setting("also score item by item", True)


def main(arguments: list[str]) -> int:
    """Score twice, print a table and a line of JSON, keep both; return 1 if a decision differs in float32."""
    settings, overrides = read_some(Settings, arguments, about=__doc__)
    model, tokenizer = random_model(overrides)
    if settings.tokenizer:
        tokenizer = Tokenizer.load(settings.tokenizer)
    clock = time.process_time if settings.clock == "cpu" else time.perf_counter
    decoder, rows = Decoder(model), []
    questions = [(label, *asked(label, settings, tokenizer)) for label in LABELS]
    score_groups(decoder, [questions[0][1][0].group])  # kernels load
    for label, of_label, num_items in questions:
        groups = [question.group for question in of_label]
        synchronize(model.device)
        begun = clock()
        spans = score_groups(decoder, groups)
        synchronize(model.device)
        row = {"task": label.name, "items": num_items, "seconds_an_item": (clock() - begun) / len(groups)}
        if settings.loop:
            begun = clock()
            alone = [score_item(model, group) for group in groups]
            synchronize(model.device)
            row["loop_seconds_an_item"] = (clock() - begun) / len(groups)
            row["disagreements"] = sum(
                judged(0, question, found)["right"] != judged(0, question, expected)["right"]
                for question, found, expected in zip(of_label, spans, alone, strict=True)
            )
        rows.append(row)
        print(f"  {results.in_words(row)}")
    entry = {
        "command": results.command_line("core", arguments),
        "device": device_name(model.device),
        "dtype": str(model.compute_dtype),
        "tasks": rows,
        **totals(rows, loop=settings.loop),
    }
    results.print_entry(entry, results.save(entry, settings, device=device_name(model.device)))
    wrong = model.compute_dtype == torch.float32 and any(row.get("disagreements") for row in rows)
    return 1 if wrong else 0


def asked(label: Label, settings: Settings, tokenizer: Tokenizer) -> tuple[list[Question], int]:
    """Return the first items of a task after its shuffle, and how many the task has."""
    items, _ = shuffled(settings.bundle, label)
    return ask(label, items, range(min(settings.items, len(items))), tokenizer, crop=None), len(items)


def totals(rows: Sequence[dict[str, Any]], *, loop: bool) -> dict[str, float]:
    """Return the seconds that all of CORE would take, and how many times as long the loop would take."""
    ours = sum(row["items"] * row["seconds_an_item"] for row in rows)
    if not loop:
        return {"seconds_of_core": ours}
    other = sum(row["items"] * row["loop_seconds_an_item"] for row in rows)
    return {"seconds_of_core": ours, "loop_seconds_of_core": other, "times_the_loop": other / ours}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
