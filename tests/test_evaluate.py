"""The evaluate command's refusals; that it evaluates is shown by test_pipeline.py."""

from pathlib import Path

import pytest

from nanolit import evaluate


def test_a_release_alone_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gpt.json").write_text("{}")
    assert evaluate.main([f"run={tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} is a release alone: give run=NAME")


def test_chat_tasks_that_do_not_exist_are_refused_before_a_run_is_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([f"root={tmp_path}", "run=absent", "tasks=dmeo"]) == 2
    assert capsys.readouterr().err == (
        "error: there is no tasks 'dmeo'; did you mean demo? allowed: demo, full, core, none\n"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tasks=core"], "which model? give run=RUN[/STAGE] or release=FOLDER"),
        (["run=a", "release=b"], "which model? give run=RUN[/STAGE] or release=FOLDER"),
        (["run=a", "crop=1024"], "crop= is a setting of tasks=core"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(words) == 2
    assert said in capsys.readouterr().err
