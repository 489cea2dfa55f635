"""The mixtures of conf/mixture: every source exists with the arguments given, and the demo's is whole."""

import importlib
import inspect
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from nanolit.config.compose import compose
from nanolit.data.conversations import ConversationStream
from nanolit.machine.paths import CONF
from nanolit.tasks.task import Task
from nanolit.tokenizer.conversation import check_conversation
from nanolit.tokenizer.nanochat import read_tokenizer

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "nanochat_2026" / "tokenizer"
MIXTURES = sorted((CONF / "mixture").glob("*.yaml"))


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


ROWS = {  # of the hub's datasets, from their cards
    "SmolTalk train": 460_341,
    "SmolTalk test": 24_229,
    "MMLU auxiliary_train": 99_842,
    "MMLU test": 14_042,
    "GSM8K train": 7_473,
    "GSM8K test": 1_319,
    "ARC-Easy train": 2_251,
    "ARC-Challenge train": 1_119,
    "Identity": 1_000,  # what `nanolit.identity` writes
}


def size(entry: dict[str, Any]) -> int:
    """Conversations of a source in one epoch of its mixture."""
    name = entry.get("subset") or entry["_target_"].rpartition(".")[2]
    rows = ROWS[" ".join(filter(None, [name, entry.get("split")]))]
    return min(rows, entry.get("max_rows") or rows) * entry.get("epochs", 1)


@pytest.mark.parametrize(
    ("mixture", "trained", "validated"),
    [
        ("mid_2025", 460_341 + 99_842 + 7_473 + 2 * 1_000, 24_229 + 5_200 + 420),
        ("sft_2025", 2_251 + 1_119 + 7_473 + 10_000 + 1_000, 24_229),
        ("sft_2026", 460_341 + 3 * 99_842 + 4 * 7_473, 24_229 + 5_200 + 420),
    ],
)
def test_mixtures_of_real_size_have_nanochats_counts(mixture: str, trained: int, validated: int) -> None:
    """Oracle: nanochat's sums (TaskMixture of its scripts), and the count in the file's first line."""
    path = CONF / "mixture" / f"{mixture}.yaml"
    assert sum(map(size, entries(path, "sources"))) == trained
    assert sum(map(size, entries(path, "validation"))) == validated
    assert f"{trained:,} conversations" in path.read_text(encoding="utf-8").splitlines()[0]


def test_a_recipe_uses_real_size_and_only_the_demo_uses_the_demos() -> None:
    """What a stage learns from is named in conf/, once."""

    def mixtures(*overrides: str) -> dict[str, set[str]]:
        job = compose(list(overrides))
        stages: Any = job["stage"]
        return {
            stage: {entry.get("source", "file") for entry in stages[stage]["mixture"]["sources"]}
            for stage in ("mid", "sft")
            if stage in stages
        }

    assert mixtures("recipe=classic") == {"mid": {"hub", "file"}, "sft": {"hub", "file"}}
    assert mixtures("recipe=modern") == {"sft": {"hub"}}
    assert mixtures("recipe=modern", "recipe.mirror=/mirror") == {"sft": {"/mirror"}}
    assert mixtures("experiment=demo") == {"sft": {"stories", "sample", "file"}}


def test_chat_tasks_are_asked_from_the_source_that_is_learned_from() -> None:
    """Train and test split of a task are two splits of one source, whatever the mirror."""
    for overrides in (["recipe=classic"], ["recipe=modern", "recipe.mirror=/mirror"], ["experiment=demo"]):
        job = compose(overrides)
        stages: Any = job["stage"]
        mixture = stages["sft"]["mixture"]
        asked = job["chat_tasks"]["tasks"]
        assert {node["source"] for node in asked if "source" in node} == {mixture["mirror"]}
        learned = {(node["_target_"], node.get("split")) for node in mixture["sources"]}
        assert not learned & {(node["_target_"], node.get("split")) for node in asked}


@pytest.mark.parametrize(("written", "told"), [("0", "is 0"), ("all", "is all"), ("2", None)])
def test_how_many_problems_are_asked_is_a_positive_number(
    tmp_path: Path, written: str, told: str | None
) -> None:
    path = tmp_path / "ask.yaml"
    path.write_text(f"max_tokens: 8\nmax_per_task: {written}\ntasks: []\n")
    words = ["recipe=modern", f"chat_tasks={path}"]
    if told is None:
        assert compose(words)["chat_tasks"].get("max_per_task") == 2
        return
    with pytest.raises(ValueError, match=rf"max_per_task of chat_tasks=.* {told}; allowed: 1 and up"):
        compose(words)


SHARED = os.environ.get("NANOLIT_SHARED")


@pytest.mark.skipif(SHARED is None, reason="NANOLIT_SHARED names no folder with the mirror")
def test_a_mirror_folder_serves_what_it_has_and_names_what_it_lacks() -> None:
    """The mirror has all of ARC, GSM8K and MMLU's test, a part of auxiliary_train, and no SmolTalk."""
    mirror = f"{SHARED}/data"
    job = compose(["recipe=classic", f"recipe.mirror={mirror}"])
    stages: Any = job["stage"]
    missing = []
    for entry in [
        *stages["sft"]["mixture"]["sources"],
        *stages["mid"]["mixture"]["validation"],
        *job["chat_tasks"]["tasks"],
    ]:
        if "SmolTalk" in entry["_target_"]:
            with pytest.raises(ValueError, match=f"{mirror}/chat/smoltalk-{entry['split']}: no such file"):
                build(entry)
            missing.append(entry["split"])
            continue
        task = build(entry)
        if "identity" not in entry["_target_"]:
            name = entry.get("subset") or entry["_target_"].rpartition(".")[2]
            key = " ".join(filter(None, [name, entry.get("split")]))
            whole = ROWS.get(key, len(task))
            assert len(task) == min(whole, entry.get("max_rows") or whole)
        for index in range(0, len(task), 97):
            check_conversation(task[index], place=task.place(index))
    assert missing == ["train", "test"]


def test_there_are_the_mixtures_of_the_recipes_and_the_demo() -> None:
    assert {path.stem for path in MIXTURES} >= {"demo_mid", "demo_sft", "mid_2025", "sft_2025", "sft_2026"}


@pytest.mark.parametrize("packing", ["bestfit", "single", "flat"])
def test_the_demo_trains_on_every_source(packing: Any) -> None:
    path = CONF / "mixture" / "demo_sft.yaml"
    tokenizer = read_tokenizer(TOKENIZER)
    for part in ("sources", "validation"):
        tasks = [build({**entry, "max_rows": 20}) for entry in entries(path, part)]
        chats = ConversationStream(
            tasks, tokenizer, context=256, rows=8, micro_batch=4, seed=1, packing=packing
        )
        learned = [step.num_tokens for step in chats]
        assert len(learned) == chats.num_steps > 1
        assert min(learned) > 0


def test_validation_batches_are_the_same_tokens_on_any_number_of_ranks() -> None:
    path = CONF / "mixture" / "demo_sft.yaml"
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
