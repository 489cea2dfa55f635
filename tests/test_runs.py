"""`python -m nanolit.runs`. Oracle: run folders that the tests write, with times that they set."""

import fcntl
import json
import os
from pathlib import Path

import pytest

from nanolit import runs
from tests.privileges import without_privileges

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
        ["new", "5 s", "1.0000", "base, sft done", ""],
        ["old", "2 h", "1.2500", "base done", ""],
    ]


def test_a_locked_run_is_running_at_the_last_logged_step(tmp_path):
    """The lock is a real flock, as the executor holds it."""
    metrics = "step,loss,val_bpb\n10,5.0,\n10,,2.0\n12,4.9,\n"
    folder = write_stage(tmp_path, "a", "base", metrics_csv=metrics, plan_json='{"num_steps": 50}')
    with (folder.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert listed(tmp_path) == [["a", "0 s", "2.0000", "base running 12/50", ""]]
    assert listed(tmp_path) == [["a", "0 s", "2.0000", "base interrupted 12/50", ""]]


def test_a_run_of_many_stages_keeps_the_columns_aligned(tmp_path):
    metrics = "step,loss\n123456,5.0\n"
    for stage in ("tokenizer", "base", "mid"):
        write_stage(tmp_path, "long", stage, result_json=result(status="done"))
    write_stage(tmp_path, "long", "sft", metrics_csv=metrics, plan_json='{"num_steps": 200000}')
    write_stage(tmp_path, "long", "rl", metrics_csv=metrics, plan_json='{"num_steps": 200000}')
    write_stage(tmp_path, "short", "base", result_json=result(status="done"))
    table = runs.list_runs(tmp_path, now=NOW)
    assert "| tokenizer, base, mid done, sft, rl interrupted 123,456/200,000 |" in table
    assert len({len(line) for line in table.splitlines()}) == 1


def write_typed(root: Path, run: str, words: list[str], *, checksum: str = "1", bpb: float = 1.0) -> None:
    """A finished base of a run that was typed with these words."""
    done = result(status="done", val_bpb=bpb, val_rows={"tokens": 64, "rows": 1, "checksum": checksum})
    write_stage(root, run, "base", result_json=done, job_yaml=json.dumps({"overrides": words}))


def test_what_differs_between_runs_is_what_was_typed_for_one_and_not_for_all(tmp_path):
    write_typed(
        tmp_path, "a", ["phase=base", "model=d4", "recipe=classic", "run=a", "root=/x", "max_steps=50"]
    )
    write_typed(
        tmp_path, "b", ["model=d4", "data=local", "data.path=/books", "recipe=classic", "logger=wandb"]
    )
    assert [row[-1] for row in listed(tmp_path)] == ["max_steps=50", "data.path=/books"]


def test_bits_per_byte_of_other_text_have_a_star(tmp_path):
    for name, checksum in (("a", "1"), ("b", "2"), ("c", "1")):
        write_typed(tmp_path, name, [], checksum=checksum)
    assert [row[2] for row in listed(tmp_path)] == ["1.0000", "1.0000 *", "1.0000"]
    assert runs.list_runs(tmp_path, now=NOW).endswith("don't compare these values\n")


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_table_fits_the_terminal_and_names_stay_whole(tmp_path, width):
    for name in ("d4-modern-s1-85a65b", "x"):
        write_typed(
            tmp_path, name, [f"data.path=/a/long/path/to/{name}", *[f"stage.base.k{n}={n}" for n in range(9)]]
        )
        for stage in ("tokenizer", "mid", "sft", "rl"):
            write_stage(tmp_path, name, stage, metrics_csv="step\n1\n", plan_json='{"num_steps": 20000}')
    lines = runs.list_runs(tmp_path, now=NOW, width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert "d4-modern-s1-85a65b" in lines[2]
    assert ("…" in lines[2]) == (width < 200)


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
        ["good", "0 s", "-", "base done", ""],
        ["bad", "1 min", "-", "unreadable", ""],
    ]
    assert "bad: " in runs.list_runs(tmp_path, now=NOW)


def test_a_run_that_may_not_be_read_is_left_out_and_named(tmp_path):
    write_stage(tmp_path, "good", "base", result_json=result(status="done"))
    write_stage(tmp_path, "shut", "base", result_json=result(status="done"))
    (tmp_path / "runs" / "shut").chmod(0)
    with pytest.warns(UserWarning, match="shut cannot be read and is left out; make it readable"):
        assert [name for name, *_ in without_privileges(lambda: listed(tmp_path))] == ["good"]


def test_an_empty_root_is_answered_with_the_command_that_makes_a_run(tmp_path, capsys):
    assert runs.main([f"root={tmp_path}"]) == 0
    assert "python -m nanolit.train experiment=demo" in capsys.readouterr().out


@pytest.mark.parametrize(("word", "message"), [("rot=x", "did you mean root=…?"), ("x", "allowed: root=…")])
def test_a_mistake_is_answered_in_one_line(capsys, word, message):
    assert runs.main([word]) == 2
    assert message in capsys.readouterr().err
