"""Runs side by side and sweeps. Oracles: means and deviations worked out by hand."""

import csv
import json
import math
from pathlib import Path

import pytest
import yaml
from run_folders import metrics_text, write_demo, write_stage

from nanolit.report.compare import by_configuration, compare, sweep_table, write_sweep_csv
from nanolit.report.curves import draw_comparison
from nanolit.report.folders import open_run

ROWS, OTHERS = ({"tokens": 1024, "rows": 8, "checksum": letter * 12} for letter in "ab")
SCORED = {"status": "done", "val_rows": ROWS}
RESULTS = [
    {"run": "d2-modern-s1", **SCORED, "val_bpb": 2.0, "metrics": {"GSM8K": 0.1}, "seconds": 10.0},
    {"run": "d2-modern-s2", **SCORED, "val_bpb": 3.0, "metrics": {"GSM8K": 0.1}, "seconds": 14.0},
    {"run": "d4-modern-s1", **SCORED, "val_bpb": 1.5, "metrics": {}, "seconds": 30.0},
    {"run": "d4-modern-s2", "status": "failed", "error": "diverged"},
]


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_a_sweep_has_a_row_per_configuration_with_mean_and_deviation_over_seeds():
    """2 and 3: mean 2.5, sample deviation sqrt(0.5)."""
    header, _rule, first, second = cells(sweep_table(RESULTS))
    assert header == ["Configuration", "n", "unfinished", "val_bpb", "GSM8K", "seconds"]
    assert first == ["d2-modern", "2", "0", "2.5000 ± 0.7071", "0.1000 ± 0.0000", "12 ± 2.828"]
    assert second == ["d4-modern", "1", "1", "1.5000", "-", "30"]


def test_the_unfinished_column_is_there_only_when_a_job_is_unfinished():
    assert "unfinished" not in sweep_table(RESULTS[:3])


def test_a_metric_that_some_seeds_lack_says_of_how_many_it_is():
    results = [*RESULTS[:2], {"run": "d2-modern-s3", "status": "done", "val_bpb": 2.5}]
    assert "0.1000 ± 0.0000 (n=2)" in sweep_table(results)


def test_a_sweep_over_what_changes_the_rows_never_averages_or_aligns_their_scores(tmp_path):
    """One seed of d2 and all of d4 on other rows: a column for each set of rows, and a line."""
    results = [RESULTS[0], {**RESULTS[1], "val_rows": OTHERS}, {**RESULTS[2], "val_rows": OTHERS}]
    header, _rule, first, second, *remark = cells(sweep_table(results))
    assert header[2:4] == [f"val_bpb of rows {rows['checksum']}" for rows in (ROWS, OTHERS)]
    assert first[2:4] == ["2.0000 (n=1)", "3.0000 (n=1)"]
    assert second[2:4] == ["-", "1.5000"]
    assert remark == [
        [""],
        ["val_bpb is of different validation rows: only figures of the same rows compare."],
    ]
    write_sweep_csv(tmp_path / "sweep.csv", results)
    with (tmp_path / "sweep.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert row[f"val_bpb of rows {OTHERS['checksum']}_mean"] == "3.0"


def test_an_older_result_in_a_sweep_counts_as_of_unknown_rows_and_stays():
    older = {key: value for key, value in RESULTS[1].items() if key != "val_rows"}
    text = sweep_table([RESULTS[0], older, RESULTS[2]])
    assert "2.5000 ± 0.7071" in text
    assert text.endswith("of different validation rows: those of d2-modern-s2 are unknown.\n")


def test_the_csv_keeps_all_digits(tmp_path):
    path = tmp_path / "sweeps" / "sweep.csv"
    write_sweep_csv(path, RESULTS)
    with path.open(newline="") as file:
        first, second = list(csv.DictReader(file))
    assert float(first["val_bpb_sd"]) == math.sqrt(0.5)
    assert (first["configuration"], first["n"], first["seeds"]) == ("d2-modern", "2", "1 2")
    assert (second["val_bpb_mean"], second["val_bpb_sd"], second["unfinished"]) == ("1.5", "", "1")


@pytest.mark.parametrize(
    ("result", "configuration", "seed"),
    [
        ({"run": "d12-modern-s1"}, "d12-modern", "1"),
        ({"run": "d12-modern-s10-3fa9c1"}, "d12-modern-3fa9c1", "10"),
        ({"run": "d12-modern-s1-identity"}, "d12-modern-identity", "1"),
        ({"run": "my-s3-try"}, "my-s3-try", ""),
        ({"run": "d12-modern-s1", "configuration": "model=d12", "seed": 7}, "model=d12", "7"),
    ],
)
def test_the_seed_is_read_from_the_run_name_unless_it_is_said(result, configuration, seed):
    (row,) = by_configuration([{**result, "status": "done"}])
    assert (row.name, row.seeds) == (configuration, [seed])


def test_values_that_are_no_numbers_stay_out_of_the_means():
    results = [{**RESULTS[0], "val_bpb": math.nan}, RESULTS[1]]
    assert "3.0000 (n=1)" in sweep_table(results)


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
    assert [f"base: val_bpb of rows B are those of checksum {OTHERS['checksum']}."] in rows
    assert ["base", "val_bpb of unknown rows", "-", "-", "-", "4.0000"] in rows
    assert ["base: val_bpb is of different validation rows: only figures of the same rows compare."] in rows
    with pytest.raises(ValueError, match=r"different validation rows .*; draw runs of the same rows"):
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
    assert ["base: val_bpb may be of different validation rows: those of old are unknown."] in rows


def test_a_run_without_a_result_has_the_rows_of_its_newest_checkpoint(tmp_path):
    names = write_bases(tmp_path, a=ROWS, killed=None)
    base = tmp_path / "runs" / "killed" / "base"
    (base / "result.json").unlink()
    for step, rows in (("000010", OTHERS), ("000009", ROWS)):
        folder = base / "checkpoints" / f"step_{step}"
        folder.mkdir(parents=True)
        (folder / "progress.json").write_text(json.dumps({"step": int(step), "val_rows": rows}))
    assert f"val_bpb of rows B are those of checksum {OTHERS['checksum']}" in compare(tmp_path, names)


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
    assert ["The settings can't be compared: no job.yaml in b."] in rows


def test_one_run_is_not_a_comparison(tmp_path):
    write_demo(tmp_path)
    with pytest.raises(ValueError, match="two runs or more, got 1"):
        compare(tmp_path, ["demo"])
