"""What `nanolit.plan` says beside the plan; the plans themselves are tested in tests/planning."""

import json
from pathlib import Path

import pytest

from nanolit import plan
from nanolit.machine.paths import write_json

WORDS = ["phase=sft", "model=d2", "--json"]


def test_a_run_to_start_from_that_is_missing_is_named_with_those_that_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, status in (("ours", "done"), ("lost", "failed")):
        write_json(tmp_path / "runs" / run / "base" / "result.json", {"format": 1, "status": status})
    assert plan.main([*WORDS, "start_from=nope", f"root={tmp_path}"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["stage"] == "sft"
    assert said.err.startswith("note: start_from=nope: sft can start from a finished base, but")
    assert said.err.endswith("runs that have one: ours\n")


@pytest.mark.parametrize("words", [["start_from=ours"], ["start_from=nope", "cluster=modal_h100"], []])
def test_nothing_is_said_of_a_run_that_exists_or_lies_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    write_json(tmp_path / "runs" / "ours" / "base" / "result.json", {"format": 1, "status": "done"})
    assert plan.main([*WORDS, *words, f"root={tmp_path}"]) == 0
    assert capsys.readouterr().err == ""
