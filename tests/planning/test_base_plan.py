"""The plans of tokenizer and base: the horizon, and what they read."""

import pyarrow.parquet as pq
import pytest

from nanolit.config.build import build
from nanolit.config.compose import compose
from nanolit.data.parquet import training_texts
from nanolit.data.shards import Sample, Stories
from nanolit.data.validation import ValidationRows
from nanolit.planning.plans import as_json, fresh_plan
from nanolit.planning.show import plan_table
from nanolit.tokenizer.bpe import Tokenizer
from tests.planning.base_plans import base_plan


def test_the_horizon_is_max_steps_then_flops_then_ratio():
    assert base_plan("max_steps=7", "target_flops=1e18", "target_ratio=3").num_steps == 7
    by_flops = base_plan("target_flops=1e18", "target_ratio=3")
    assert by_flops.flops == pytest.approx(1e18, rel=1e-3)
    assert base_plan("target_ratio=6").num_steps == 1_260


def test_shards_are_those_that_nanochat_downloads():
    """Oracle: nanochat's scripts say 240 for d20, 450 for d26, 800 for d32 (rounded by hand)."""
    shards = [base_plan("recipe=classic", f"model=d{depth}").shards for depth in (20, 26, 32)]
    assert shards == pytest.approx([240, 450, 800], rel=0.03)


def test_a_fast_dev_run_is_three_tiny_steps():
    plan = base_plan("fast_dev_run=true", "model=d26", "cluster=modal_8xh100")
    assert (plan.num_steps, plan.rows, plan.micro_batch, plan.eval_rows) == (3, 16, 2, 2)


@pytest.mark.parametrize("dataset", [Sample(), Stories()], ids=lambda dataset: dataset.name)
def test_the_tokenizers_time_is_of_the_text_that_there_is(dataset):
    """Not of the two billion characters that it may read at most."""
    texts = pq.read_table(dataset.folder / "train.parquet", columns=["text"])["text"].to_pylist()
    assert dataset.num_characters == pytest.approx(sum(map(len, texts)), rel=0.01)
    plan = fresh_plan(compose(["experiment=demo", f"data={dataset.name}"]), "tokenizer")
    assert plan.hours["total_hours"] == 1 / 3600


def story(num_bytes):
    texts = pq.read_table(Stories().folder / "train.parquet", columns=["text"])["text"].to_pylist()
    return "\n\n".join(texts)[:num_bytes]


@pytest.mark.parametrize("held_out", [None, 20_000])
def test_base_is_evaluated_on_about_the_rows_that_its_held_out_text_fills(held_out, tmp_path):
    """Oracle: the rows that training evaluates on, of a file that is named or of a part of the text."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.txt").write_text(story(100_000))
    if held_out:
        (tmp_path / "text" / "val.txt").write_text(story(held_out))
    words = [f"data={tmp_path / 'text'}", "model=d2", "model.context=64", "total_batch=512"]
    words += ["recipe.vocab_size=512", "max_steps=300", f"root={tmp_path}"]
    plan = base_plan(*words)
    corpus = build(compose(words)["data"]).open_corpus(tmp_path)
    tokenizer = Tokenizer.train(training_texts(corpus, max_characters=100_000), vocab_size=512)
    settings = {"context": 64, "micro_batch": 1, "packing": plan.packing, "num_tokens": None}
    rows = ValidationRows(corpus, tokenizer, **settings).num_rows
    assert rows / 2 < plan.held_out_rows < rows * 2
    assert f"on about {plan.held_out_rows} rows (all that is held out)" in plan_table(plan)
    assert plan.hours["evaluation_hours"] < 0.01
    assert base_plan(*words, "stage.base.eval_tokens=640").held_out_rows is None


def test_the_recipes_corpora_hold_out_more_than_a_plan_evaluates_on():
    for corpus in ("climbmix", "fineweb_edu"):
        plan = base_plan(f"data={corpus}")
        assert "held_out_rows" not in as_json(plan)
        assert "steps on 20,480 rows," in plan_table(plan)


@pytest.mark.parametrize("dataset", [Sample(), Stories()], ids=lambda dataset: dataset.name)
def test_shipped_text_holds_out_the_bytes_that_it_says(dataset):
    texts = pq.read_table(dataset.folder / "validation.parquet", columns=["text"])["text"].to_pylist()
    assert dataset.held_out_bytes() == pytest.approx(sum(len(text.encode()) for text in texts), rel=0.01)
