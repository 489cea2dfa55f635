"""Runs are named by what decides their result, tokenizers by what decides their merges."""

import pytest

from nanolit.config.compose import compose
from nanolit.config.names import decisive_settings, difference, flatten, tokenizer_name


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


def test_identity_is_named_after_what_it_teaches():
    assert name("phase=identity", "start_from=big/base") == "big-identity"


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
