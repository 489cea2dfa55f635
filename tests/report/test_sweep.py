"""The table of a sweep. Oracles: means and deviations worked out by hand."""

import csv
import math

import pytest

from nanolit.report.sweep import by_configuration, sweep_table, write_sweep_csv

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
    assert header[2:4] == ["val_bpb of rows A", "val_bpb of rows B"]
    assert first[2:4] == ["2.0000 (n=1)", "3.0000 (n=1)"]
    assert second[2:4] == ["-", "1.5000"]
    assert remark[::2] == [[""]] * 3
    assert remark[1::2] == [
        ["val_bpb was measured on different validation rows: compare only figures of the same rows."],
        [f"val_bpb of rows A is val_bpb of rows {ROWS['checksum']}."],
        [f"val_bpb of rows B is val_bpb of rows {OTHERS['checksum']}."],
    ]
    write_sweep_csv(tmp_path / "sweep.csv", results)
    with (tmp_path / "sweep.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert row[f"val_bpb of rows {OTHERS['checksum']}_mean"] == "3.0"


def test_an_older_result_in_a_sweep_counts_as_of_unknown_rows_and_stays():
    older = {key: value for key, value in RESULTS[1].items() if key != "val_rows"}
    text = sweep_table([RESULTS[0], older, RESULTS[2]])
    assert "2.5000 ± 0.7071" in text
    assert text.endswith("on different validation rows: those of d2-modern-s2 are unknown.\n")


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
