"""The mixtures of conf/mixture: every source exists with the arguments given, and the demo's is whole."""

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from nanolit.data.conversations import ConversationStream
from nanolit.machine.paths import conf_folder
from nanolit.tasks.task import Task
from nanolit.tokenizer.nanochat import read_tokenizer

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "nanochat_2026" / "tokenizer"
MIXTURES = sorted((conf_folder() / "mixture").glob("*.yaml"))


def entries(path: Path, part: str) -> list[dict[str, Any]]:
    """The sources as they resolve at the place where a stage holds its mixture."""
    whole = OmegaConf.create({"stage": {"sft": {"mixture": OmegaConf.load(path)}}})
    resolved: Any = OmegaConf.to_container(whole, resolve=True)
    return resolved["stage"]["sft"]["mixture"][part]


def constructor(entry: dict[str, Any]) -> type[Task]:
    module, _, name = entry["_target_"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def build(entry: dict[str, Any]) -> Task:
    return constructor(entry)(**{key: value for key, value in entry.items() if key != "_target_"})


@pytest.mark.parametrize("path", MIXTURES, ids=lambda path: path.stem)
@pytest.mark.parametrize("part", ["sources", "validation"])
def test_every_source_has_a_constructor_that_takes_its_arguments(path: Path, part: str) -> None:
    for entry in entries(path, part):
        task = constructor(entry)
        assert issubclass(task, Task)
        inspect.signature(task).bind(**{key: value for key, value in entry.items() if key != "_target_"})


def test_there_are_the_mixtures_of_the_recipes_and_the_demo() -> None:
    assert {path.stem for path in MIXTURES} >= {"demo_mid", "demo_sft", "mid_2025", "sft_2025", "sft_2026"}


@pytest.mark.parametrize("packing", ["bestfit", "single", "flat"])
def test_the_demo_trains_on_every_source(packing: Any) -> None:
    path = conf_folder() / "mixture" / "demo_sft.yaml"
    tokenizer = read_tokenizer(TOKENIZER)
    for part in ("sources", "validation"):
        tasks = [build({**entry, "max_rows": 20}) for entry in entries(path, part)]
        chats = ConversationStream(
            tasks, tokenizer, context=256, rows=8, micro_batch=4, seed=1, packing=packing, prefetch=1
        )
        learned = [step.num_tokens for step in chats]
        assert len(learned) == chats.num_steps > 1
        assert min(learned) > 0


def test_validation_batches_are_the_same_tokens_on_any_number_of_ranks() -> None:
    path = conf_folder() / "mixture" / "demo_sft.yaml"
    tasks = [build({**entry, "max_rows": 10}) for entry in entries(path, "validation")]

    def targets(rank: int, world: int) -> list[torch.Tensor]:
        settings: dict[str, Any] = {
            "context": 128,
            "rows": 4,
            "micro_batch": 1,
            "seed": 0,
            "packing": "bestfit",
        }
        chats = ConversationStream(tasks, read_tokenizer(TOKENIZER), rank=rank, world=world, **settings)
        return [targets for _, targets in chats.batches()]

    whole = targets(0, 1)
    halves = targets(0, 2) + targets(1, 2)
    assert sorted(row.tolist() for row in whole) == sorted(row.tolist() for row in halves)
