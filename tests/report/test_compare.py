"""Runs side by side. Oracle: what the run folders were made with."""

import json
from pathlib import Path

import pytest
import yaml
from run_folders import job_of, metrics_text, write_demo, write_stage

from nanolit.report.compare import by_seed, compare
from nanolit.report.curves import draw_comparison
from nanolit.report.folders import open_run

ROWS, OTHERS = ({"tokens": 1024, "rows": 8, "checksum": letter * 12} for letter in "ab")


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_runs_are_compared_stage_by_stage_and_only_differing_settings_are_shown(tmp_path):
    write_demo(tmp_path, "a", depth=2)
    write_demo(tmp_path, "b", depth=4, end=3.5)
    rows = cells(compare(tmp_path, ["a", "b"]))
    assert ["Stage", "Result", "a", "b"] in rows
    assert ["base", "val_bpb", "1.6000", "1.4000"] in rows
    assert ["sft", "GSM8K", "0.0250", "0.0250"] in rows
    assert rows[rows.index(["Setting", "a", "b"]) + 2 :] == [["model.depth", "2", "4"]]


def write_bases(root: Path, **rows: dict | None) -> list[str]:
    """Finished bases, of the validation rows that are given for each."""
    for number, (run, val_rows) in enumerate(rows.items()):
        result = {"status": "done", "val_bpb": 1.0 + number} | ({"val_rows": val_rows} if val_rows else {})
        write_stage(root / "runs" / run / "base", result=result, metrics=metrics_text(20))
    return list(rows)


def test_bits_per_byte_of_different_rows_never_stand_in_one_line(tmp_path):
    names = write_bases(tmp_path, a=ROWS, b=OTHERS, c=ROWS, d=None)
    rows = cells(compare(tmp_path, names))
    assert ["base", "val_bpb of rows A", "1.0000", "-", "3.0000", "-"] in rows
    assert ["base", "val_bpb of rows B", "-", "2.0000", "-", "-"] in rows
    assert [f"base: val_bpb of rows B is val_bpb of rows {OTHERS['checksum']}."] in rows
    assert ["base", "val_bpb of unknown rows", "-", "-", "-", "4.0000"] in rows
    assert [
        "base: val_bpb was measured on different validation rows: compare only figures of the same rows."
    ] in rows
    with pytest.raises(ValueError, match=r"different validation rows .*; plot runs with the same rows"):
        draw_comparison([open_run(tmp_path, name) for name in names], "base")


def test_bits_per_byte_of_the_same_rows_are_compared_without_a_word(tmp_path):
    names = write_bases(tmp_path, a=ROWS, b=ROWS)
    text = compare(tmp_path, names)
    assert ["base", "val_bpb", "1.0000", "2.0000"] in cells(text)
    assert "validation rows" not in text
    assert draw_comparison([open_run(tmp_path, name) for name in names], "base").startswith(b"\x89PNG")


def test_an_older_run_is_compared_and_its_rows_are_called_unknown(tmp_path):
    rows = cells(compare(tmp_path, write_bases(tmp_path, a=ROWS, old=None)))
    assert ["base", "val_bpb", "1.0000", "2.0000"] in rows
    assert ["base: val_bpb may be on different validation rows: those of old are unknown."] in rows


def test_a_run_without_a_result_has_the_rows_of_its_newest_checkpoint(tmp_path):
    names = write_bases(tmp_path, a=ROWS, killed=None)
    base = tmp_path / "runs" / "killed" / "base"
    (base / "result.json").unlink()
    for step, rows in (("000010", OTHERS), ("000009", ROWS)):
        folder = base / "checkpoints" / f"step_{step}"
        folder.mkdir(parents=True)
        (folder / "progress.json").write_text(json.dumps({"step": int(step), "val_rows": rows}))
    assert f"val_bpb of rows B is val_bpb of rows {OTHERS['checksum']}" in compare(tmp_path, names)


def test_seeds_are_one_column_though_only_one_of_them_trained_the_tokenizer(tmp_path):
    for seed in (1, 2, 3):
        job = job_of(f"s{seed}", seed=seed) | {"stage": {"tokenizer": {"vocab_size": 4096}}}
        for stage in ["tokenizer", "base"][seed > 1 :]:
            write_stage(tmp_path / "runs" / f"s{seed}" / stage, result={"status": "done"}, job=job)
    assert list(by_seed([open_run(tmp_path, f"s{seed}") for seed in (1, 2, 3)])) == ["s1 + s2 + s3"]


def test_where_a_run_ran_is_not_a_difference(tmp_path):
    folder = write_demo(tmp_path, "a")
    other = write_demo(tmp_path, "b")
    for path in other.glob("*/job.yaml"):
        job = yaml.safe_load(path.read_text())
        path.write_text(json.dumps({**job, "cluster": {"name": "modal_8xh100"}, "root": "elsewhere"}))
    assert folder.name == "a"
    assert "The settings are the same." in compare(tmp_path, ["a", "b"])


def test_a_stage_that_one_run_lacks_is_shown_for_the_other(tmp_path):
    write_demo(tmp_path, "a")
    write_stage(tmp_path / "runs" / "b" / "base", result={"status": "done", "val_bpb": 2.0})
    rows = cells(compare(tmp_path, ["a", "b"]))
    assert ["rl", "GSM8K", "0.0758", "-"] in rows
    assert ["The settings can't be compared: b has no job.yaml."] in rows


def test_one_run_is_not_a_comparison(tmp_path):
    write_demo(tmp_path)
    with pytest.raises(ValueError, match="two or more runs, got 1"):
        compare(tmp_path, ["demo"])
