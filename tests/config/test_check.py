"""The signature check: every `_target_` against the source of what it names, without importing it."""

import subprocess
import sys

import pytest

from nanolit.config.build import build, check_mapping, check_target, signature_of
from nanolit.config.compose import compose
from nanolit.config.schema import Recipe

SCHEDULE = {
    "_target_": "nanolit.optim.schedule.Schedule",
    "warmup_steps": 0,
    "warmdown_fraction": 0.2,
    "final_lr_fraction": 0.0,
    "momentum_start": 0.85,
    "momentum_peak": 0.95,
    "momentum_warmup_steps": 300,
    "momentum_final": None,
    "weight_decay": "none",
}


def test_a_right_node_passes_and_builds():
    check_target(SCHEDULE, path="recipe.schedule")
    assert build(SCHEDULE).at(0, 10).momentum == 0.85


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup_step": 3}, "did you mean s.warmup_steps"),
        ({"warmup_steps": 0.5}, "s.warmup_steps is 0.5 .float.; it must be an integer"),
        ({"warmup_steps": True}, "must be an integer"),
        ({"warmdown_fraction": "half"}, "must be a number"),
        ({"momentum_final": "low"}, "must be a number or null"),
        ({"weight_decay": "sine"}, "one of constant, cosine, linear, none"),
        (
            {"_target_": "os.system"},
            r"must start with nanolit\.data\. or .* or lightning\.pytorch\.loggers\.",
        ),
        ({"_target_": "nanolit.optim.schedle.Schedule"}, "nanolit.optim.schedle, which does not exist"),
        ({"_target_": "nanolit.optim.schedule.Shedule"}, "has no Shedule"),
        ({"_partial_": True}, "there is no key s._partial_"),
    ],
)
def test_a_wrong_node_is_one_line(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_target({**SCHEDULE, **change}, path="s")
    assert "\n" not in str(caught.value)


def test_a_missing_argument_is_named_with_its_type():
    node = {key: value for key, value in SCHEDULE.items() if key != "weight_decay"}
    with pytest.raises(ValueError, match=r"s\.weight_decay is missing; it must be one of constant"):
        check_target(node, path="s")


def test_derived_arguments_of_the_gpt_are_not_the_users():
    arguments = signature_of("nanolit.model.gpt.GPT", "recipe.gpt").arguments
    assert "depth" not in arguments.__annotations__
    assert {"rope_base", "window_pattern", "softcap"} <= arguments.__required_keys__


def test_a_class_of_lightning_is_found_through_its_reexport_without_importing_it():
    code = (
        "import sys\n"
        "from nanolit.config.build import check_target\n"
        "node = {'_target_': 'lightning.pytorch.loggers.WandbLogger', 'project': 'p', 'any_other': 1}\n"
        "check_target(node, path='logger')\n"
        "try:\n    check_target({**node, 'offline': 'no'}, path='logger')\n"
        "except ValueError as error:\n    print(error)\n"
        "assert 'lightning' not in sys.modules and 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "logger.offline is 'no' (str); it must be true or false\n"


def test_the_check_reads_no_library_before_there_is_something_to_check():
    code = "import sys, nanolit.config.compose; assert not {'torch', 'pydantic'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": {"matrix": {"kind": "muon", "lr": "x"}}}, r"groups\.matrix\.weight_decay is missing"),
        ({"stages": ["base", "bass"]}, r"stages\[1\] is 'bass' \(str\); it must be one of tokenizer, base"),
        ({"stages": "base"}, r"r\.stages is 'base' \(str\); it must be a list"),
        ({"scaling": 3}, r"r\.scaling is 3 \(int\); it must be a mapping"),
    ],
)
def test_lists_and_mappings_are_checked_inside(change, message):
    recipe = compose([])["recipe"]
    check_mapping(recipe, Recipe, path="r")
    with pytest.raises(ValueError, match=message):
        check_mapping({**recipe, **change}, Recipe, path="r")


def test_a_misspelt_key_is_reported_before_the_key_that_it_leaves_missing():
    node = {"warmup_step" if key == "warmup_steps" else key: value for key, value in SCHEDULE.items()}
    with pytest.raises(ValueError, match=r"no key s\.warmup_step; did you mean s\.warmup_steps\?"):
        check_target(node, path="s")


def test_a_function_is_no_target():
    with pytest.raises(
        ValueError, match=r"data\._target_ is nanolit\.tasks\.sandbox\.judge_python, a function"
    ):
        check_target({"_target_": "nanolit.tasks.sandbox.judge_python", "program": ""}, path="data")


@pytest.mark.parametrize("how", ["a path", "an import of ours"])
def test_no_annotation_but_ours_is_evaluated(how, tmp_path):
    """A stranger's mixture may come with a module beside it."""
    (tmp_path / "evil.py").write_text("class C:\n    def __init__(self, *, a: 1 / 0): ...\n")
    target = f"nanolit.tasks.{tmp_path}/evil.C" if how == "a path" else "nanolit.tasks.rows.Path"
    with pytest.raises(ValueError, match=r"it must start with nanolit"):
        check_target({"_target_": target, "a": 1}, path="s")
    with pytest.raises(ValueError, match=r"it must start with nanolit"):
        build({"_target_": target})
    with pytest.raises(ValueError, match="which does not exist"):
        check_target({"_target_": f"nanolit.tasks.{'a' * 300}.C"}, path="s")


def test_build_refuses_a_foreign_target():
    with pytest.raises(ValueError, match="must start with"):
        build({"_target_": "subprocess.run", "args": "true"})


def test_a_type_that_a_class_imports_from_another_of_our_modules_is_known():
    node = {**compose([])["recipe"]["optimizer"], "orthogonalization": "svd"}
    with pytest.raises(ValueError, match=r"o\.orthogonalization is 'svd' .*; it must be one of newton"):
        check_target(node, path="o")
