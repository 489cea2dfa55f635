"""Numbers and tables for people. Oracles: values written by hand, and the table split back into its cells."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanolit.machine.terminal import duration
from nanolit.report.tables import age, markdown_table, readable, score

CELLS = st.text(
    st.characters(codec="ascii", categories=("L", "N", "P", "S", "Zs"), exclude_characters="\\"), max_size=40
)


@given(st.lists(st.tuples(CELLS, CELLS), max_size=4))
def test_every_cell_comes_back_and_all_lines_are_as_long(rows):
    lines = markdown_table(["name", "value"], rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    back = [[cell.strip() for cell in line.replace("\\|", "\0").strip("|").split("|")] for line in lines[2:]]
    assert back == [[" ".join(cell.split()).replace("|", "\0") for cell in row] for row in rows]


def test_one_long_cell_does_not_widen_the_others():
    lines = markdown_table(["a", "b"], [["x" * 500, "1"], ["y", "2"]]).splitlines()
    assert [len(line) for line in lines] == [66, 66, 510, 66]


def test_the_first_columns_are_flush_left_and_the_others_flush_right():
    assert markdown_table(["Metric", "BASE"], [["CORE", "0.1"]]).splitlines() == [
        "| Metric | BASE |",
        "| ------ | ---: |",
        "| CORE   |  0.1 |",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (float("nan"), "-"),
        (float("inf"), "inf"),
        (True, "true"),
        (0, "0"),
        (1234567, "1,234,567"),
        (0.02, "0.02"),
        (1e-10, "1e-10"),
        (12345.6, "12,346"),
        (1.28849e13, "1.288e+13"),
        (39176700000000000000, "3.918e+19"),
        ([0.8, 0.95], "0.8, 0.95"),
        (list(range(9)), "0, 1, 2, 3, 4, 5, 6, 7, … (9 in total)"),
        ({"width": 1024, "betas": [0.8, 0.95]}, "width 1,024, betas (0.8, 0.95)"),
        ("bf16", "bf16"),
    ],
)
def test_values_are_short_and_keep_their_magnitude(value, text):
    assert readable(value) == text


def test_scores_have_four_decimals():
    assert (score(0.25), score(None)) == ("0.2500", "-")


def test_durations_read_as_a_clock_does():
    assert [duration(seconds) for seconds in (0, 75, 3700)] == ["0:00", "1:15", "1:01:40"]


def test_ages_come_in_one_unit():
    assert [age(s) for s in (-1, 45, 300, 7200, 200_000)] == ["0 s", "45 s", "5 min", "2 h", "2 d"]
