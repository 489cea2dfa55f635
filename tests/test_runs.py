"""`python -m nanolit.runs`. Oracle: run folders that the tests write, with times that they set."""

import fcntl
import json
import os
from pathlib import Path

import pytest

from nanolit import runs

NOW = 1_700_000_000.0


def write_stage(root: Path, run: str, stage: str, *, changed: float = NOW, **files: str) -> Path:
    """A stage's folder; `plan_json="{}"` writes plan.json, and so on."""
    folder = root / "runs" / run / stage
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = folder / name.replace("_", ".")
        path.write_text(text)
        os.utime(path, (changed, changed))
    return folder


def result(**values: object) -> str:
    return json.dumps({"format": 1, **values})


def listed(root: Path) -> list[list[str]]:
    """The cells of the table, without its header."""
    lines = [line for line in runs.list_runs(root, now=NOW).splitlines() if line[:1] == "|"]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_runs_are_listed_newest_first_with_state_bpb_and_age(tmp_path):
    rows = {"tokens": 32, "rows": 2, "checksum": "3fa9c1d2e4b5"}
    old = result(status="done", val_bpb=1.25, val_rows=rows)
    write_stage(tmp_path, "old", "base", changed=NOW - 7200, result_json=old)
    write_stage(tmp_path, "new", "base", changed=NOW - 30, result_json=result(status="done", val_bpb=1.0))
    write_stage(tmp_path, "new", "sft", changed=NOW - 5, result_json=result(status="done", val_bpb=None))
    assert listed(tmp_path) == [
        ["new", "base, sft done", "1.0000", "-", "5 s"],
        ["old", "base done", "1.2500", "3fa9c1d2e4b5", "2 h"],
    ]


def test_a_locked_run_is_running_at_the_last_logged_step(tmp_path):
    """The lock is a real flock, as the executor holds it."""
    metrics = "step,loss,val_bpb\n10,5.0,\n10,,2.0\n12,4.9,\n"
    folder = write_stage(tmp_path, "a", "base", metrics_csv=metrics, plan_json='{"num_steps": 50}')
    with (folder.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert listed(tmp_path) == [["a", "base running: step 12 of 50", "2.0000", "-", "0 s"]]
    assert listed(tmp_path) == [["a", "base interrupted: step 12 of 50", "2.0000", "-", "0 s"]]


def test_a_run_of_many_stages_keeps_the_columns_aligned(tmp_path):
    metrics = "step,loss\n123456,5.0\n"
    for stage in ("tokenizer", "base", "mid"):
        write_stage(tmp_path, "long", stage, result_json=result(status="done"))
    write_stage(tmp_path, "long", "sft", metrics_csv=metrics, plan_json='{"num_steps": 200000}')
    write_stage(tmp_path, "long", "rl", metrics_csv=metrics, plan_json='{"num_steps": 200000}')
    write_stage(tmp_path, "short", "base", result_json=result(status="done"))
    table = runs.list_runs(tmp_path, now=NOW)
    assert "| tokenizer, base, mid done, sft interrupted: step 123,456 of 200,000, rl " in table
    assert len({len(line) for line in table.splitlines()}) == 1


def test_a_failed_stage_is_followed_by_its_error(tmp_path):
    write_stage(
        tmp_path, "a", "base", result_json=result(status="failed", error="the loss is nan\nat step 3")
    )
    text = runs.list_runs(tmp_path, now=NOW)
    assert "| base failed |" in text
    assert text.endswith("a/base: the loss is nan at step 3\n")


def test_one_unreadable_run_does_not_hide_the_others(tmp_path):
    write_stage(tmp_path, "good", "base", result_json=result(status="done"))
    write_stage(tmp_path, "bad", "base", changed=NOW - 60, result_json="{")
    assert listed(tmp_path) == [
        ["good", "base done", "-", "-", "0 s"],
        ["bad", "unreadable", "-", "-", "1 min"],
    ]
    assert "bad: " in runs.list_runs(tmp_path, now=NOW)


def test_an_empty_root_is_answered_with_the_command_that_makes_a_run(tmp_path, capsys):
    assert runs.main([f"root={tmp_path}"]) == 0
    assert "python -m nanolit.train experiment=demo" in capsys.readouterr().out


@pytest.mark.parametrize(("word", "message"), [("rot=x", "did you mean root=…?"), ("x", "allowed: root=…")])
def test_a_mistake_is_answered_in_one_line(capsys, word, message):
    assert runs.main([word]) == 2
    assert message in capsys.readouterr().err
