"""The evaluate command's refusals; that it evaluates is shown by test_pipeline.py."""

from pathlib import Path

import pytest

from nanolit import evaluate


def test_a_release_alone_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gpt.json").write_text("{}")
    assert evaluate.main([f"run={tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith(
        f"error: {tmp_path} is a release alone; evaluate asks a stage of a run"
    )
