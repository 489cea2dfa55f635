"""A run that an older version left half done goes on here. tests/fixtures/README.md says how it was made."""

import csv
import shutil
from pathlib import Path

import pytest

import nanolit
from nanolit.config.compose import compose
from nanolit.config.stored import read_job
from nanolit.evaluate import Settings, evaluate
from nanolit.jobs.execute import run
from nanolit.language_model import find_release
from nanolit.report.card import write_report
from nanolit.report.compare import compare

FORMAT_1 = Path(__file__).parent.parent / "fixtures" / "run_format_1"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FORMAT_1, tmp_path / "root"))


def losses(root: Path) -> dict[int, float]:
    with (root / "runs" / "tiny" / "base" / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file) if row["loss"]}


def same_words(root: Path, *more: str) -> list[str]:
    """What was typed for the run, on this root."""
    typed = read_job(root / "runs" / "tiny" / "base" / "job.yaml")["overrides"]
    return [*(word for word in typed if not word.startswith("root=")), f"root={root}", *more]


def test_a_finished_run_of_format_1_is_finished(root, capsys):
    assert run(compose(same_words(root)))["status"] == "done"
    assert "already finished at step 8" in capsys.readouterr().out


def test_a_run_of_format_1_is_resumed_from_its_checkpoint(root, capsys):
    """Oracle: the losses that the older version wrote when nothing stopped it."""
    whole = losses(FORMAT_1)
    (root / "runs" / "tiny" / "base" / "result.json").unlink()
    result = run(compose(same_words(root)))
    assert (result["status"], result["step"], result["tokens"]) == ("done", 8, 2048)
    assert "step 4" in capsys.readouterr().out
    assert losses(root) == pytest.approx(whole, abs=1e-3)


def test_other_settings_are_refused_by_name(root):
    result = run(compose(same_words(root, "max_steps=9", "model.context=64")))
    assert result["status"] == "failed"
    assert "settings: model.context was 32, now 64, stage.base.max_steps was 8, now 9;" in result["error"]


def test_a_run_of_format_1_is_loaded_evaluated_and_reported(root):
    assert nanolit.load("tiny", root=root).meta["step"] == 8
    scores = evaluate(Settings(run="tiny", root=str(root)), find_release("tiny", root=root))
    assert scores["val_bpb"] == pytest.approx(5.91297, abs=1e-3)
    assert "| val_bpb" in write_report(root, "tiny").read_text()


def test_a_run_of_format_1_differs_from_one_of_today_in_what_was_chosen_alone(root):
    words = [word for word in same_words(root) if not word.startswith(("run=", "max_steps="))]
    assert run(compose([*words, "run=other", "max_steps=2"]))["status"] == "done"
    table = compare(root, ["tiny", "other"]).split("| Setting")[1]
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:] if line] == ["stage.base.max_steps"]
