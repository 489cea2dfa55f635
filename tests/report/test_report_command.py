"""`python -m nanolit.report` as a person calls it."""

import subprocess
import sys

import pytest
from run_folders import write_demo, write_stage

from nanolit.report.__main__ import main


def test_the_command_writes_the_card_and_prints_the_final_table(tmp_path):
    folder = write_demo(tmp_path)
    command = [sys.executable, "-m", "nanolit.report", "run=demo", f"root={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (folder / "report.md").exists()
    assert "| Metric" in done.stdout
    assert done.stdout.endswith(f"{folder / 'report.html'}\n{folder / 'report.md'}\n")
    assert done.stderr == ""


def test_several_runs_get_a_card_each(tmp_path, capsys):
    folders = [tmp_path / "runs" / name for name in ("a", "b")]
    for folder in folders:
        write_stage(folder / "base", metrics="step,loss\n1,5.0\n2,4.0\n")
    assert main(["run=a,b", f"root={tmp_path}"]) == 0
    assert all((folder / "report.md").exists() for folder in folders)
    assert capsys.readouterr().err == ""


def test_compare_prints_the_runs_and_draws_them(tmp_path, capsys):
    write_demo(tmp_path, "a")
    write_demo(tmp_path, "b")
    plot = tmp_path / "curves.png"
    assert main(["compare=a,b", f"root={tmp_path}", f"plot={plot}"]) == 0
    assert "| Stage" in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "run is missing; give either run=RUN"),
        (["run=dem"], "did you mean run=demo?"),
        (["dmo"], "did you mean run=demo?"),
        (["ran=demo"], "did you mean run=…?"),
        (["run="], "run= is empty"),
        (["run=,"], "run= is empty"),
        (["run=demo", "root=a", "root=b"], "root= is given twice"),
        (["compare=demo"], "two or more runs"),
        (["compare", "run=demo"], "did you mean compare=…?"),
        (["run=demo", "compare=demo,b"], "give either run=RUN"),
        (["run=demo", "plot=a.png"], "plot= needs compare=A,B"),
        (
            ["compare=demo,demo", "stage=tokenizer"],
            "must be one of base, mid, sft, rl",
        ),
    ],
)
def test_a_mistake_is_answered_in_one_line(tmp_path, capsys, monkeypatch, words, message):
    write_demo(tmp_path)
    monkeypatch.setenv("NANOLIT_HOME", str(tmp_path))
    assert main(words) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_help_shows_the_settings(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    assert "root=FOLDER" in capsys.readouterr().out
