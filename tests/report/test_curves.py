"""Curves. Oracles: formulas written out by hand, the PNG header."""

import math
import struct

import pytest
from run_folders import conversation_metrics_text, metrics_text, write_demo, write_stage

from nanolit.report import curves
from nanolit.report.folders import Run, Stage


def png_size(content: bytes) -> tuple[int, int]:
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


def test_the_smoothed_line_is_a_weighted_mean_of_all_values_before():
    """The oracle sums the weights 0.9^age directly."""
    values = [math.sin(place) for place in range(300)]
    for end in (1, 2, 50, 300):
        weights = [0.9 ** (end - 1 - place) for place in range(end)]
        mean = sum(w * v for w, v in zip(weights, values, strict=False)) / sum(weights)
        assert curves.smoothed(values)[end - 1] == pytest.approx(mean, rel=1e-9)


@pytest.mark.parametrize("num_points", [40, 100, 1000])
def test_the_smoothed_line_lags_behind_by_a_twentieth_of_the_curve_at_most(num_points):
    """On a ramp, the lag in points is the line's distance below it."""
    lag = num_points - 1 - curves.smoothed(range(num_points))[-1]
    assert 0 <= lag <= num_points / 20


def test_smoothing_passes_over_gaps():
    values = [math.nan, *[2.0, math.nan, 2.0] * 20]
    assert curves.smoothed(values)[1:] == pytest.approx([2.0] * 60)


def test_each_stage_gets_the_pictures_that_its_columns_allow(tmp_path):
    folder = write_demo(tmp_path)
    names = {stage.name: [plot.name for plot in curves.plots_of(stage)] for stage in Run(folder).stages}
    assert names == {
        "tokenizer": [],
        "base": ["loss", "val_bpb"],
        "mid": ["loss", "val_bpb"],
        "sft": ["loss"],
        "rl": ["reward", "sequence_length", "pass_at_k"],
    }


def test_a_single_point_is_no_curve(tmp_path):
    folder = write_stage(tmp_path / "base", metrics="step,loss\n1,5.0\n")
    assert curves.plots_of(Stage("base", folder)) == []


@pytest.mark.parametrize(
    "metrics",
    [
        metrics_text(100),
        metrics_text(5),
        "step,loss\n1,nan\n2,nan\n",
        "step,loss\n1,5.0\n2,inf\n3,4.0\n",
        conversation_metrics_text(9, ["loss", "val_loss", "pass@1"]),
    ],
)
def test_any_log_can_be_drawn(tmp_path, metrics):
    folder = tmp_path / "costs $5 or $6_^"
    stage = Stage("base", write_stage(folder / "base", metrics=metrics))
    paths = curves.write_curves(Run(folder), stage)
    assert paths
    assert all(png_size(path.read_bytes()) == (1040, 585) for path in paths)


def test_the_title_tells_the_first_and_the_last_finite_value():
    series = [(1, math.nan), (2, 10.5), (300, 4.25), (301, math.nan)]
    assert curves._journey(series) == "10.5 → 4.25 at step 300"


def test_tokens_of_an_evaluation_are_read_off_the_training_rows():
    known = [(1.0, 512.0), (3.0, 1536.0)]
    assert [curves._interpolate(known, step) for step in (0, 0.5, 1, 2, 3, 9)] == [
        0,
        256,
        512,
        1024,
        1536,
        1536,
    ]


def test_several_runs_are_drawn_in_one_picture(tmp_path):
    runs = [Run(write_demo(tmp_path, name)) for name in ("a", "b")]
    assert png_size(curves.draw_comparison(runs, "base")) == (1040, 585)
    assert png_size(curves.draw_comparison(runs, "rl", column="reward")) == (1040, 585)


def test_a_column_that_nobody_logged_is_answered_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"column=reward.*loss.*val_bpb"):
        curves.draw_comparison([Run(write_demo(tmp_path))], "base", column="reward")
