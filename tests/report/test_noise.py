"""Differences and noise. Oracles: tests of significance worked out by hand, and scipy's printed values."""

import json
import math
from pathlib import Path

import pytest
from run_folders import job_of, write_items, write_stage

from nanolit.report.compare import compare
from nanolit.report.folders import Stage
from nanolit.report.noise import CORE_SPREAD, difference


def write_run(root: Path, run: str, metrics: dict, *, seed: int = 1, depth: int = 4) -> Stage:
    job = job_of(run, depth=depth, seed=seed)
    result = {"status": "done", "metrics": metrics}
    return Stage("sft", write_stage(root / "runs" / run / "sft", result=result, job=job))


def answered(root: Path, run: str, rights: list[bool]) -> Stage:
    stage = write_run(root, run, {"ARC-Easy": sum(rights) / len(rights)}, depth=len(run))
    write_items(stage.folder, "ARC-Easy", rights, baseline=0.25)
    return stage


def test_equal_questions_are_compared_in_pairs(tmp_path):
    """Of 100 questions the second answers 10 more and loses none: a difference of 0.1, each pair 0 or 1."""
    one = answered(tmp_path, "a", [True] * 40 + [False] * 60)
    other = answered(tmp_path, "bb", [True] * 50 + [False] * 50)
    found = difference([one], [other], "ARC-Easy")
    error = math.sqrt(0.1 * 0.9 / 99)
    assert (found.value, found.noise) == (pytest.approx(0.1), pytest.approx(2 * error))
    assert (found.verdict, found.basis) == ("more than noise", "100 shared questions")


def test_the_same_difference_on_changing_questions_is_noise(tmp_path):
    """Wins 35 and loses 25 of 100: 0.1 ± 0.077."""
    one = answered(tmp_path, "a", [False] * 35 + [True] * 25 + [True] * 15 + [False] * 25)
    other = answered(tmp_path, "bb", [True] * 35 + [False] * 25 + [True] * 15 + [False] * 25)
    assert difference([one], [other], "ARC-Easy").verdict == "within noise"


def test_other_questions_are_not_paired(tmp_path):
    one, other = answered(tmp_path, "a", [True, False] * 50), answered(tmp_path, "bb", [True, False] * 50)
    write_items(other.folder, "ARC-Easy", [True, False] * 50, baseline=0.25, questions="others")
    found = difference([one], [other], "ARC-Easy")
    assert found.basis == "separate questions"
    assert found.noise == pytest.approx(2 * math.sqrt(2 * 0.25 / 100))


def test_items_that_did_not_give_the_scores_are_not_paired(tmp_path):
    """A later evaluation of 20 questions took the place of the 100 items of one run."""
    one, other = answered(tmp_path, "a", [True, False] * 50), answered(tmp_path, "bb", [True, False] * 50)
    write_items(other.folder, "ARC-Easy", [True, False] * 9 + [True] * 2, baseline=0.25)
    assert difference([one], [other], "ARC-Easy").verdict == "can't tell"


def test_one_run_each_without_questions_tells_nothing(tmp_path):
    found = difference([write_run(tmp_path, "a", {"X": 0.1})], [write_run(tmp_path, "b", {"X": 0.9})], "X")
    assert (found.noise, found.verdict) == (None, "can't tell")


def test_several_seeds_are_compared_by_welchs_test(tmp_path):
    """Variances of 0.0001 and 0.0004, three each: se² 0.0005 / 3, 2.94 degrees of freedom, cut to 2."""
    sides = [
        [write_run(tmp_path, f"{name}{n}", {"X": value}) for n, value in enumerate(values)]
        for name, values in {"a": (0.20, 0.21, 0.22), "b": (0.30, 0.32, 0.34)}.items()
    ]
    found = difference(*sides, "X")
    assert found.value == pytest.approx(0.11)
    assert found.noise == pytest.approx(4.30 * math.sqrt(0.0005 / 3))
    assert (found.verdict, found.basis) == ("more than noise", "3 and 3 seeds")


def test_one_run_against_seeds_spreads_as_they_do(tmp_path):
    """sd 0.01 of three: 4.30 × 0.01 × sqrt(1 + 1/3)."""
    seeds = [write_run(tmp_path, f"a{n}", {"X": x}) for n, x in enumerate((0.20, 0.21, 0.22))]
    found = difference(seeds, [write_run(tmp_path, "b", {"X": 0.25})], "X")
    assert found.noise == pytest.approx(4.30 * 0.01 * math.sqrt(4 / 3))
    assert found.verdict == "within noise"


def test_core_of_single_runs_counts_the_published_spread_of_seeds(tmp_path):
    stages = []
    for run, value in {"a": 0.20, "b": 0.215}.items():
        folder = write_stage(tmp_path / run / "base", result={"status": "done"})
        (folder / "evaluation").mkdir()
        core = {"metrics": {"CORE": value, "CORE, standard error": 0.003}, "tasks": {}}
        (folder / "evaluation" / "core.json").write_text(json.dumps(core))
        stages.append(Stage("base", folder))
    found = difference(stages[:1], stages[1:], "CORE")
    assert found.noise == pytest.approx(2 * math.sqrt(2 * 0.003**2 + 2 * CORE_SPREAD**2))
    assert found.verdict == "within noise"


def test_runs_that_differ_in_the_seed_alone_are_one_column(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path, f"d2-modern-s{seed}", {"X": 0.1 * seed}, seed=seed, depth=2)
        write_run(tmp_path, f"d4-modern-s{seed}", {"X": 0.5 + 0.001 * seed}, seed=seed, depth=4)
    names = [f"d{depth}-modern-s{seed}" for depth in (2, 4) for seed in (1, 2)]
    text = compare(tmp_path, names)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert ["Stage", "Result", "d2-modern (n=2)", "d4-modern (n=2)"] in rows
    assert ["sft", "X", "0.1500 ± 0.0707", "0.5015 ± 0.0007"] in rows
    (verdict,) = [row for row in rows if row[0] == "d4-modern (n=2)"]
    assert verdict[1:4] == ["sft", "X", "+0.3515"]
    assert verdict[-1] == "2 and 2 seeds"
    assert "One run tells little" not in text


def test_single_runs_are_told_how_much_a_seed_moves(tmp_path):
    answered(tmp_path, "a", [True, False] * 10)
    answered(tmp_path, "bb", [True, False] * 10)
    text = compare(tmp_path, ["a", "bb"])
    assert "0.006 in CORE (sd, published)" in text
