"""Schedules against the numbers of the original programs and against the formulas of the later stages."""

import json
from pathlib import Path

import pytest

from nanolit.optim.schedule import Multipliers, Schedule

FIXTURE = Path(__file__).parents[1] / "fixtures" / "nanochat_2026" / "eval" / "schedules.json"
TABLES = json.loads(FIXTURE.read_text())["schedules"]


def schedule(**changes) -> Schedule:
    settings = {
        "warmup_steps": 0,
        "warmdown_fraction": 0.2,
        "final_lr_fraction": 0.0,
        "momentum_start": 0.85,
        "momentum_peak": 0.95,
        "momentum_warmup_steps": 300,
        "momentum_final": None,
        "weight_decay": "none",
    }
    return Schedule(**(settings | changes))


BASE = {
    "classic": schedule(),
    "modern": schedule(
        warmup_steps=40,
        warmdown_fraction=0.65,
        final_lr_fraction=0.05,
        momentum_peak=0.97,
        momentum_warmup_steps=400,
        momentum_final=0.90,
        weight_decay="cosine",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_base_schedules_equal_nanochat(name: str):
    """Oracle: numbers that the original functions printed (fixtures)."""
    recipe, num_steps = name.split()[0], int(name.split()[2])
    for step, lr, momentum, weight_decay in TABLES[name]:
        got = BASE[recipe].at(step, num_steps)
        expected = Multipliers(lr, momentum, weight_decay)
        assert vars(got) == pytest.approx(vars(expected), abs=1e-6), (name, step)


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 0.79, 0.8, 0.81, 0.99])
def test_mid_is_constant_until_four_fifths_then_falls_to_zero(progress: float):
    expected = 1.0 if progress < 0.8 else 1 - (progress - 0.8) / 0.2
    assert schedule(warmdown_fraction=0.2).at(round(100 * progress), 100).lr == pytest.approx(expected)


@pytest.mark.parametrize("step", [0, 1, 233, 466])
def test_classic_sft_and_rl_fall_linearly_to_zero(step: int):
    assert schedule(warmdown_fraction=1.0).at(step, 467).lr == pytest.approx(1 - step / 467)


@pytest.mark.parametrize("step", [0, 50, 51, 99])
def test_modern_sft_falls_to_zero_over_its_second_half(step: int):
    expected = 1.0 if step <= 50 else (100 - step) / 50
    assert schedule(warmdown_fraction=0.5).at(step, 100).lr == pytest.approx(expected)


@pytest.mark.parametrize(("num_steps", "constant"), [(9, 7), (12, 10), (13, 10)])
def test_the_warmdown_takes_the_nearest_number_of_whole_steps(num_steps: int, constant: int):
    """Oracle: a fifth of the steps, rounded as nanochat does; the first of them still has the whole rate."""
    rates = [schedule().at(step, num_steps).lr for step in range(num_steps)]
    assert rates == pytest.approx(
        [min(1.0, (num_steps - step) / (num_steps - constant)) for step in range(num_steps)]
    )


def test_linear_and_constant_weight_decay():
    assert schedule(weight_decay="linear").at(5, 20).weight_decay == pytest.approx(0.75)
    assert schedule(weight_decay="constant").at(19, 20).weight_decay == 1


def test_no_warmup_and_no_warmdown_leave_everything_constant():
    flat = schedule(warmdown_fraction=0.0, momentum_warmup_steps=0, weight_decay="constant")
    assert {flat.at(step, 7) for step in range(7)} == {Multipliers(1, 0.95, 1)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmdown_fraction": 1.5}, "warmdown_fraction=1.5 is out of range; give a number from 0 to 1"),
        ({"warmup_steps": -1}, "warmup_steps=-1 is out of range; give 0 or more"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        schedule(**changes)


def test_a_step_beyond_the_run_is_refused():
    with pytest.raises(ValueError, match="step 100 is outside the run's 100 steps; give a step from 0 to 99"):
        schedule().at(100, 100)
