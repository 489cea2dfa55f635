"""Scores with n, error bars and chance. Oracles: values worked out by hand, items written by hand."""

import json
import math
from pathlib import Path

import pytest
from run_folders import write_items, write_stage

from nanolit.report.folders import Run, Stage
from nanolit.report.scores import core_tasks, final_scores, measured, remarks_on, sorted_metrics

HALF = [True, False] * 50


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """A stage that answered half of 100 questions of 400, with letters of four."""
    metrics = {"ARC-Easy": 0.5, "GSM8K": 0.25, "mean above guessing": 1 / 3}
    folder = write_stage(tmp_path / "run" / "sft", result={"status": "done", "metrics": metrics})
    write_items(folder, "ARC-Easy", HALF, baseline=0.25, of=400)
    return Stage("sft", folder)


def test_the_items_on_disk_give_number_error_and_chance(stage):
    """Laplace's share is 51 / 102."""
    score = measured(stage)["ARC-Easy"]
    assert (score.asked, score.of, score.chance) == (100, 400, 0.25)
    assert score.error == pytest.approx(math.sqrt(0.25 / 100))
    assert (score.text, score.questions) == ("0.500 ± 0.050", "100 of 400")


def test_a_score_without_items_has_no_error_bar(stage):
    assert measured(stage)["GSM8K"].text == "0.2500"


def test_items_of_another_evaluation_are_not_taken_for_the_scores(stage):
    write_items(stage.folder, "ARC-Easy", [True, False, False, False], baseline=0.25)
    assert measured(stage)["ARC-Easy"].error is None


def test_all_scores_are_the_last_evaluations_each_with_its_error(stage):
    """It asked fewer problems than before, whose items stay on disk, and not GSM8K."""
    metrics = {"ARC-Easy": 0.4, "mean above guessing": 0.2}
    content = {"format": 1, "metrics": metrics, "asked": {"ARC-Easy": 10}}
    (stage.folder / "evaluation" / "chat.json").write_text(json.dumps(content))
    found = {
        name: (score.value, score.asked, score.error is not None) for name, score in measured(stage).items()
    }
    assert found == {"ARC-Easy": (0.4, 10, True), "mean above guessing": (0.2, 10, True)}


def test_a_damaged_file_of_items_costs_the_error_bar_alone(stage):
    (stage.folder / "evaluation" / "ARC-Easy.jsonl").write_text("{")
    assert measured(stage)["ARC-Easy"].text == "0.5000"


def test_the_mean_above_guessing_has_the_error_of_its_tasks(stage):
    """(0.5 - 0.25) / 0.75, and its error over the same 0.75."""
    score = measured(stage)["mean above guessing"]
    assert (score.error, score.asked) == (pytest.approx(0.05 / 0.75), 100)


def test_a_score_that_guessing_reaches_is_named(tmp_path):
    rights = [True] * 30 + [False] * 70  # 0.3 ± 0.046, where letters of four give 0.25
    folder = write_stage(tmp_path / "run" / "sft", result={"metrics": {"MMLU": 0.3, "ARC-Easy": 0.5}})
    write_items(folder, "MMLU", rights, baseline=0.25)
    write_items(folder, "ARC-Easy", HALF, baseline=0.25)
    assert "No better than guessing (within two standard errors): MMLU." in remarks_on(Run(tmp_path / "run"))


def test_core_has_its_error_in_its_cell_and_a_part_of_it_a_short_name(tmp_path):
    folder = write_stage(tmp_path / "run" / "base", result={"status": "done"})
    name = "CORE of at most 20 a task"
    core = {
        "metrics": {"CORE": 0.2, "CORE, standard error": 0.01, name: 0.3, f"{name}, standard error": 0.02},
        "tasks": {"boolq": {"accuracy": 0.81, "error": 0.038}},
    }
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "core.json").write_text(json.dumps(core))
    run = Run(tmp_path / "run")
    table = final_scores(run)
    assert table.rows == [
        ["CORE", "0.200 ± 0.010", "-", "0"],
        ["CORE in part", "0.300 ± 0.020", "-", "0"],
    ]
    assert any(
        remark.startswith("CORE in part: at most 20 a task.") for remark in remarks_on(Run(tmp_path / "run"))
    )
    tasks = core_tasks(Stage("base", folder))  # chance is 0.62
    assert tasks.rows == [["boolq", "0.810 ± 0.038", "-", "0.62", "0.500 ± 0.100"]]


def test_core_of_other_questions_names_the_tasks_and_says_how_many_it_asked(tmp_path):
    """Oracle: (0.81 - 0.62) / 0.38 and 0.25 are on average 0.375; no items are on disk."""
    folder = write_stage(tmp_path / "run" / "base", result={"status": "done"})
    name = "CORE of 1 tasks not the originals"
    tasks = {"boolq": {"accuracy": 0.81, "error": 0.04, "asked": 90}}
    tasks["coqa"] = {"accuracy": 0.25, "error": 0.04, "asked": 1_100}
    core = {"metrics": {name: 0.375}, "tasks": tasks, "other_questions": ["coqa"]}
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "core.json").write_text(json.dumps(core))
    run = Run(tmp_path / "run")
    table, by_task = final_scores(run), core_tasks(run.stages[0])
    assert table.rows == [["CORE as asked", "0.3750", "1,190", "0"]]
    assert [row[2] for row in by_task.rows] == ["90", "1,100"]
    said = "CORE as asked: 1 tasks not the originals (coqa). Compare it only with scores of the same kind."
    assert said in remarks_on(run)


def test_a_share_of_drawn_answers_has_a_count_and_the_error_of_one_answer_each(tmp_path):
    plan = {"validation": {"_target_": "nanolit.tasks.sums.WorkedSums", "size": 100}}
    write_stage(tmp_path / "run" / "rl", result={"pass_at_1": 0.5}, plan=plan)
    run = Run(tmp_path / "run")
    assert final_scores(run).rows == [["pass@1 of WorkedSums", "0.500 ± 0.050", "100", "-"]]
    assert any(remark.startswith("pass@1 of WorkedSums: answers sampled") for remark in remarks_on(run))


def test_metrics_keep_the_cards_order_with_unknown_ones_before_the_summary():
    names = ["ChatCORE", "Zeta", "GSM8K", "val_bpb", "CORE"]
    assert sorted_metrics(names) == ["val_bpb", "CORE", "GSM8K", "Zeta", "ChatCORE"]
