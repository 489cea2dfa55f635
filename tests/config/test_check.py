"""The signature check: every `_target_` against the source of what it names, without importing it."""

import subprocess
import sys

import pytest

from nanolit.config.build import build
from nanolit.config.check import Shape, check_node, check_target, shape_of

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
        ({"_target_": "os.system"}, "must begin with nanolit. or lightning.pytorch."),
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
    shape = shape_of("nanolit.model.gpt.GPT")
    assert "depth" not in shape.keys
    assert {"rope_base", "window_pattern", "softcap"} <= shape.required


def test_a_class_of_lightning_is_found_through_its_reexport_without_importing_it():
    code = (
        "import sys\n"
        "from nanolit.config.check import shape_of\n"
        "assert 'project' in shape_of('lightning.pytorch.loggers.WandbLogger').keys\n"
        "assert 'lightning' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_lists_and_mappings_are_checked_inside():
    shape = shape_of("nanolit.config.schema.Recipe")
    assert isinstance(shape, Shape)
    node = {"groups": {"matrix": {"kind": "muon", "lr": "x"}}}
    inner = Shape(shape.module, {"groups": shape.keys["groups"]})
    with pytest.raises(ValueError, match=r"groups\.matrix\.batch_scaled is missing"):
        check_node(node, inner, path="")
    stages = Shape(shape.module, {"stages": shape.keys["stages"]})
    with pytest.raises(ValueError, match=r"stages\[1\] is 'bass'"):
        check_node({"stages": ["base", "bass"]}, stages, path="")


def test_a_function_is_no_target():
    with pytest.raises(
        ValueError, match=r"data\._target_ is nanolit\.jobs\.processes\.supervise, a function"
    ):
        check_target({"_target_": "nanolit.jobs.processes.supervise", "command": ["true"]}, path="data")


def test_build_refuses_a_foreign_target():
    with pytest.raises(ValueError, match="must begin with"):
        build({"_target_": "subprocess.run", "args": "true"})
