"""Runs are named by what decides their result, tokenizers by what decides their merges."""

import pytest

from nanolit.config.compose import compose
from nanolit.config.names import decisive_settings, difference, flatten, tokenizer_name
from nanolit.machine.paths import write_json


def name(*overrides: str) -> str:
    return compose(list(overrides))["run"]


def test_a_plain_run_is_depth_recipe_and_seed():
    assert name() == "d12-modern-s1"
    assert name("model=d20", "recipe=classic", "seed=7") == "d20-classic-s7"


@pytest.mark.parametrize(
    "override",
    [
        "cluster=modal_8xh100",
        "cluster.devices=2",
        "logger=wandb",
        "micro_batch=4",
        "compile=false",
        "eval_every=3",
        "stage.base.save_every=3",
        "sample_every=3",
        "phase=speedrun",
        "wait=false",
        "offline=true",
        "root=elsewhere",
        "max_steps=null",
        "recipe.sft.epoch_tokens=1",
    ],
)
def test_what_decides_no_result_never_enters_the_name(override):
    assert name(override) == "d12-modern-s1"


@pytest.mark.parametrize(
    "override",
    [
        "max_steps=5",
        "total_batch=4096",
        "data=sample",
        "recipe.packing=flat",
        "precision=fp32",
        "model.context=512",
    ],
)
def test_what_decides_a_result_enters_as_a_hash(override):
    assert name(override).startswith("d12-modern-s1-")
    assert name(override) == name(override, "micro_batch=1")


def test_a_fast_dev_run_never_has_the_name_of_the_real_run():
    assert name("experiment=demo", "fast_dev_run=true") == "demo-dev"
    assert name("run=mine", "fast_dev_run=true") == "mine-dev"
    assert name("fast_dev_run=true").endswith("-dev")
    assert name("run=dev", "fast_dev_run=true") == "dev"


def test_stages_of_one_command_share_a_run():
    assert name("phase=base", "max_steps=5") == name("phase=sft", "max_steps=5")


def test_a_default_given_by_hand_is_no_change():
    assert name("recipe.gpt.softcap=15.0", "stage.base.lr_scale=1.0") == "d12-modern-s1"


@pytest.mark.parametrize(
    "more", [[], ["identity=me.jsonl"], ["model=d4", "recipe=classic"], ["micro_batch=4"]]
)
def test_identity_is_named_after_the_run_that_it_teaches(more):
    assert name("phase=identity", "start_from=big", *more) == "big-identity"


def test_what_else_decides_an_identity_enters_its_name_as_a_hash(tmp_path):
    """A release has the name of its run, wherever it lies, and another folder its own."""
    write_json(tmp_path / "release" / "meta.json", {"run": "tiny (2)"})
    others = [("big", "seed=2"), ("big", "precision=fp32"), ("big/base", "seed=1"), ("big/sft", "seed=1")]
    others += [("./big.2", "seed=1"), (f"{tmp_path}/release/", "seed=1")]
    names = [name("phase=identity", f"start_from={origin}", more) for origin, more in others]
    origins = ["big"] * 4 + ["big-2", "tiny-2"]
    assert [one.rpartition("-")[0] for one in names] == [f"{origin}-identity" for origin in origins]
    assert len(set(names)) == len(names)


def test_a_stage_depends_on_its_own_settings_alone():
    one, other = compose(["stage.sft.lr_scale=0.1"]), compose([])
    assert difference(decisive_settings(one, "base"), decisive_settings(other, "base")) == {}
    changes = difference(decisive_settings(other, "sft"), decisive_settings(one, "sft"))
    assert changes == {"stage.sft.lr_scale": (None, 0.1)}


def test_tokenizers_are_shared_by_all_that_does_not_decide_their_merges():
    sample = ["data=sample", "stage.tokenizer.vocab_size=4096"]
    assert tokenizer_name(compose(sample)) == tokenizer_name(compose([*sample, "seed=2", "model=d4"]))
    assert tokenizer_name(compose(sample)).startswith("sample-4096-")
    assert tokenizer_name(compose(sample)) != tokenizer_name(compose([*sample, "stage.tokenizer.doc_cap=9"]))


def test_flatten_joins_keys_with_dots():
    assert flatten({"a": {"b": {"c": 1}, "d": []}, "e": {}}) == {"a.b.c": 1, "a.d": [], "e": {}}
