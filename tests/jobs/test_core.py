"""CORE of base: every so often, at its end, and after an interruption; two layers, made-up questions."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nanolit import evaluate
from nanolit.config.compose import compose
from nanolit.evaluation import questions
from nanolit.evaluation.spans import OwnScorer
from nanolit.jobs.execute import run
from nanolit.machine.paths import read_json
from tests.evaluation.small_bundle import write_bundle
from tests.jobs.tiny_runs import keep_only_checkpoint, overrides, write_corpus

MORE = ["recipe=classic", "max_steps=8", "core_every=4", "save_every=2", "offline=true"]
PART = "CORE of 19 tasks not the originals"  # hellaswag's and coqa's original bytes are unknown


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A corpus, and a root with a whole run."""
    folder = tmp_path_factory.mktemp("core")
    corpus, root = write_corpus(folder / "text"), folder / "root"
    write_bundle(root / "eval" / "core")
    result = train(corpus, root)
    assert result["status"] == "done", result
    return corpus, root


def train(corpus: Path, root: Path, *more: str) -> dict:
    return run(compose(overrides(corpus, root, *MORE, *more)))


def scores(root: Path) -> tuple[dict, dict]:
    """The metrics of the result, and step → CORE's cells of metrics.csv."""
    stage = root / "runs" / "tiny" / "base"
    with (stage / "metrics.csv").open(newline="") as file:
        rows = {row["step"]: (row["core_part"], row["core"]) for row in csv.DictReader(file)}
    return read_json(stage / "result.json")["metrics"], {step: row for step, row in rows.items() if any(row)}


def test_core_is_in_the_metrics_the_result_and_the_report(finished: tuple[Path, Path]) -> None:
    _, root = finished
    metrics, cells = scores(root)
    assert list(metrics) == [PART, f"{PART}, standard error"]
    assert list(cells) == ["4", "8"]
    assert cells["4"][1] == ""
    assert [float(cell) for cell in cells["8"]] == [metrics[PART]] * 2, "a dozen items are whole and part"
    report = (root / "runs" / "tiny" / "report.md").read_text()
    assert f"| CORE as asked | {metrics[PART]:.3f} ± " in report


def test_a_part_of_core_names_the_tasks_with_other_questions(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, root = finished
    keep_only_checkpoint(root, tmp_path / "root", 2)
    assert train(corpus, tmp_path / "root")["status"] == "done"
    [line] = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("  step 4: CORE of at")
    ]
    assert "(not CORE as published: " in line
    assert "squad" in line


def test_evaluating_by_hand_gives_the_same_and_asks_nothing_again(
    finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, root = finished
    monkeypatch.delattr(OwnScorer, "start")
    monkeypatch.delattr(questions, "_texts")  # no prompt is even rendered
    assert evaluate.main([f"root={root}", "run=tiny/base", "tasks=core", "offline=true"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"] == scores(root)[0]


def test_a_run_that_was_killed_ends_with_the_same_scores(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """Killed after step 6, when a part had been asked once."""
    corpus, root = finished
    keep_only_checkpoint(root, tmp_path / "root", 6)
    shutil.rmtree(tmp_path / "root/runs/tiny/base/evaluation")
    assert train(corpus, tmp_path / "root")["status"] == "done"
    assert scores(tmp_path / "root") == scores(root)


def test_core_interrupted_at_the_end_resumes_there_and_says_how(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, root = finished
    keep_only_checkpoint(root, tmp_path / "root", 6)
    stage = tmp_path / "root/runs/tiny/base"
    shutil.rmtree(stage / "evaluation")
    asked: list[int] = []

    def start(self: OwnScorer, groups: list) -> Callable[[], list]:
        asked.append(len(groups))
        if interrupts and len(asked) == 4:
            raise KeyboardInterrupt
        return start_scoring(self, groups)

    start_scoring, interrupts = OwnScorer.start, True
    monkeypatch.setattr(OwnScorer, "start", start)
    result = train(corpus, tmp_path / "root")
    assert result["status"] == "interrupted"
    assert (
        "base is trained, but CORE was interrupted; resume with: python -m nanolit.train " in result["error"]
    )
    interrupts = False
    assert train(corpus, tmp_path / "root")["status"] == "done"
    assert len(asked) == 4 + 19, "three tasks were kept"
    assert scores(tmp_path / "root")[0] == scores(root)[0]


@pytest.mark.parametrize("value", ["0", "sometimes"])
def test_a_value_that_means_nothing_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(ValueError, match="core_every is "):
        run_or_raise(tmp_path, f"core_every={value}")


def run_or_raise(folder: Path, *more: str) -> None:
    result = train(write_corpus(folder / "text"), folder / "root", *more)
    raise ValueError(result["error"])


def test_questions_that_are_missing_or_wrong_are_told_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="offline=true forbids downloading: unpack https"):
        run_or_raise(tmp_path)
    bundle = write_bundle(tmp_path / "root/eval/core")
    with (bundle / "eval_data/commonsense_reasoning/copa.jsonl").open("a") as file:
        file.write('{"query": 3}\n')
    result = train(tmp_path / "text", tmp_path / "root")
    assert "copa.jsonl line 13: copa needs query (str)" in result["error"]
    assert not (tmp_path / "root/runs/tiny/base").exists()
