"""Curves. Oracles: formulas written out by hand, the PNG header."""

import math
import statistics
import struct

import pytest
from run_folders import conversation_metrics_text, metrics_text, write_demo, write_stage

from nanolit.report import curves
from nanolit.report.folders import Run, Stage


def png_size(content: bytes) -> tuple[int, int]:
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


def test_the_smoothed_line_is_the_mean_of_the_neighbors_means():
    """The oracle takes the means of slices, twice; 32 places away is the farthest."""
    values = [math.sin(place) for place in range(300)]

    def averaged(values):
        return [statistics.fmean(values[max(0, place - 32) : place + 33]) for place in range(len(values))]

    assert curves.smoothed(values) == pytest.approx(averaged(averaged(values)), abs=1e-12)


def test_a_steep_line_begins_at_the_first_value_and_stays_by_the_curve():
    """A loss that falls from 10.4 to 4, as a short run logs it."""
    losses = [4 + 6.4 * math.exp(-place / 6) for place in range(32)]
    steep, flat = curves.smoothed(losses, steep=True), curves.smoothed(losses)
    assert steep[0] == losses[0]
    assert flat[0] < 9
    assert max(abs(line - loss) for line, loss in zip(steep, losses, strict=True)) < 0.5


@pytest.mark.parametrize("num_points", [16, 100, 1000])
def test_the_smoothed_line_does_not_lag_and_bends_a_tenth_at_the_ends(num_points):
    """On a ramp, the lag in points is the line's distance from it."""
    line = curves.smoothed(range(num_points))
    middle = num_points // 2
    assert line[middle] == pytest.approx(middle, abs=num_points / 100)
    assert 0 <= num_points - 1 - line[-1] <= num_points / 10


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
        "rl": ["reward", "pass_at_k", "sequence_length"],
    }


def test_validation_is_drawn_beside_training_where_both_are_losses(tmp_path):
    metrics = conversation_metrics_text(9, ["loss", "val_loss", "val_bpb"])
    stage = Stage("base", write_stage(tmp_path / "base", metrics=metrics))
    (plot,) = curves.plots_of(stage)
    assert list(plot.columns) == ["loss", "val_loss"]


def test_a_run_of_any_name_is_drawn(tmp_path):
    """A folder may have been renamed by hand, to what no encoding has."""
    run = tmp_path / "a \udcff"
    folder = write_stage(run / "base", metrics=metrics_text(9))
    assert curves.write_curves(Run(run), Stage("base", folder))


@pytest.mark.parametrize(("end", "scale"), [(4.0, "linear"), (0.2, "log")])
def test_no_part_of_the_validation_is_cut_off_with_the_fall(tmp_path, monkeypatch, end, scale):
    """The axis ends above at the loss after a twentieth of the steps, and holds the validation's lowest."""
    lines = [f"{n},{end + 10 * math.exp(-n / 9)},{end * 0.7 if n == 100 else ''}" for n in range(1, 101)]
    metrics = "step,loss,val_loss\n" + "\n".join(lines)
    stage = Stage("base", write_stage(tmp_path / "base", metrics=metrics))
    shown = []
    monkeypatch.setattr(curves, "_png", lambda figure: shown.append(figure.axes[0]) or b"")
    curves.draw_stage(curves.plots_of(stage)[0], Run(tmp_path), stage)
    bottom, top = shown[0].get_ylim()
    assert bottom < end * 0.7
    assert end < top < 10
    assert shown[0].get_yscale() == scale


def test_a_single_point_is_no_curve(tmp_path):
    folder = write_stage(tmp_path / "base", metrics="step,loss\n1,5.0\n")
    assert curves.plots_of(Stage("base", folder)) == []


def test_only_what_changes_its_data_is_smoothed():
    points = [(step, 1.0) for step in range(100)]
    smooth = [name for plot in curves.PLOTS for name in plot.columns if curves.is_smoothed(name, points)]
    assert smooth == ["loss", "reward", "sequence_length"]
    assert not curves.is_smoothed("loss", points[:15])


@pytest.mark.parametrize(
    "metrics",
    [
        metrics_text(100),
        metrics_text(400),
        metrics_text(5),
        "step,loss\n1,nan\n2,nan\n",
        "step,loss\n1,5.0\n2,inf\n3,4.0\n",
        conversation_metrics_text(9, ["loss", "val_loss", "pass@1"]),
    ],
)
def test_any_log_can_be_drawn(tmp_path, metrics):
    folder = tmp_path / "costs $5 or $6_^"
    stage = Stage("base", write_stage(folder / "base", metrics=metrics))
    pictures = curves.write_curves(Run(folder), stage)
    assert pictures
    assert all(
        png_size(png) == (864, 544)
        for picture in pictures
        for png in (picture.path.read_bytes(), picture.dark)
    )


def test_the_title_is_a_sentence_of_the_first_and_the_last_finite_values(tmp_path):
    metrics = "step,pass_at_1,pass_at_k\n1,nan,nan\n2,0.125,0.5\n300,0.25,0.75\n301,nan,nan\n"
    stage = Stage("rl", write_stage(tmp_path / "rl", metrics=metrics))
    (plot,) = curves.plots_of(stage)
    title = curves.title_of(plot, Run(tmp_path / "tiny"), stage)
    assert title == (
        "tiny, rl: problems solved at the first try 12% → 25%, in one of several tries 50% → 75%"
    )


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
    assert png_size(curves.draw_comparison(runs, "base")) == (864, 544)
    assert png_size(curves.draw_comparison(runs, "rl", column="reward")) == (864, 544)


def test_a_column_that_nobody_logged_is_answered_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"column=reward.*loss.*val_bpb"):
        curves.draw_comparison([Run(write_demo(tmp_path))], "base", column="reward")
