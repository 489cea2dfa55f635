"""The plan of mid and sft: how long an epoch is, and on how many rows they are evaluated."""

import json
import random

import pytest

from nanolit.config.build import build
from nanolit.config.compose import compose
from nanolit.data.conversations import ValidationConversations
from nanolit.planning.plans import fresh_plan
from nanolit.planning.show import plan_table
from nanolit.tokenizer.bpe import Tokenizer


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["phase=mid", "total_batch=262144"], 1_530),
        (["phase=mid", "model.context=1024"], 765),
        (["phase=sft", "total_batch=1048576"], 41),
        (["phase=sft", "model.context=1024"], 326),  # twice the conversations a step, one a row
        (["phase=sft", "stage.sft.mixture=demo_sft"], None),
        (["phase=sft", "recipe.mirror=sample"], None),
        (["phase=sft", "recipe=modern"], 420),
        (["phase=sft", "recipe=modern", "stage.sft.mixture=demo_sft"], None),
        (["phase=sft", "recipe=modern", "stage.sft.mixture=demo_sft", "max_steps=7"], 7),
        (["phase=rl", "stage.rl.questions=64"], 116),
        (["phase=rl", "recipe.mirror=sample"], None),
        (["phase=rl", "stage.rl.task={_target_: nanolit.tasks.sums.Sums, split: train, size: 9}"], None),
    ],
)
def test_an_epoch_has_the_steps_of_its_own_batch_and_data_or_nobody_knows(overrides, expected):
    """Oracle: the published 765, 651 and 467 steps at 524,288 and 65,536 tokens and 16 questions."""
    job = compose(["recipe=classic", "model=d20", "cluster=modal_8xh100", *overrides])
    plan = fresh_plan(job, job["stages"][0])
    assert plan.expected_steps == expected
    assert (plan.hours["total_hours"] is None) == (plan.cost["dollars"] is None) == (expected is None)
    assert (expected is None) == ("not known before the stage starts" in plan_table(plan))


WORDS = ["the", "sea", "was", "old", "and", "a", "stone", "lay", "in", "its", "light", "while", "rivers"]


@pytest.mark.parametrize("recipe", ["modern", "classic"])
def test_own_chats_are_evaluated_on_about_the_rows_that_the_held_out_ones_fill(recipe, tmp_path):
    """Oracle: the rows that training evaluates on; modern packs several chats to a row, classic one."""
    source, path = random.Random(0), tmp_path / "chats.jsonl"
    texts = [" ".join(source.choices(WORDS, k=source.randint(3, 30))) for _ in range(600)]
    rows = [{"question": q, "answer": a} for q, a in zip(texts[::2], texts[1::2], strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)))
    words = ["phase=sft", f"recipe={recipe}", f"mixture={path}", "model=d2", "model.context=64"]
    job = compose([*words, "total_batch=512", "max_steps=5", "recipe.vocab_size=512"])
    plan = fresh_plan(job, "sft")
    held_out = [build(task) for task in job["stage"]["sft"]["mixture"]["validation"]]
    settings = {"context": 64, "micro_batch": 1, "packing": plan.packing, "num_rows": 9_999}
    tokenizer = Tokenizer.train(texts, vocab_size=300)
    rows = ValidationConversations(held_out, tokenizer, **settings, rank=0, world=1).identity["rows"]
    assert rows / 3 < plan.held_out_rows < rows * 3
    assert plan.hours["evaluation_hours"] < 0.01


@pytest.mark.parametrize("recipe", ["modern", "classic"])
def test_chats_of_the_hub_have_no_known_number(recipe):
    job = compose(["phase=sft", f"recipe={recipe}"])
    assert fresh_plan(job, "sft").held_out_rows is None
