"""The report card. Oracle: what the run folder was made with."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from run_folders import METRICS, job_of, metrics_text, write_demo, write_stage

from nanolit.report import card
from nanolit.report.facts import spoken


def table_cells(text: str) -> dict[str, list[str]]:
    """First column → the other cells, of every table row in the text."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"
    ]
    return {row[0]: row[1:] for row in rows}


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """The folder of a finished run with its card; tests only read it."""
    root = tmp_path_factory.mktemp("root")
    folder = write_demo(root)
    card.write_report(root, "demo")
    return folder


def test_the_final_table_has_a_column_per_trained_stage(demo):
    table = table_cells(card.final_table(demo.parent.parent, "demo"))
    assert table["Metric"] == ["BASE", "MID", "SFT", "RL", "n", "Chance"]
    assert table["bits per byte"] == ["1.6000", "2.0000", "-", "-", "-", "-"]
    assert table["GSM8K"] == ["-", "0.0000", "0.0250", "0.0758", "-", "-"]
    assert set(table) - {"Metric", "------------", "bits per byte"} >= {
        n for m in METRICS.values() for n in m
    }


def test_a_stage_without_scores_is_not_listed(tmp_path):
    write_stage(tmp_path / "runs" / "new" / "base", result={"status": "done", "val_bpb": 2.0})
    write_stage(tmp_path / "runs" / "new" / "sft", metrics="step,loss\n1,5.0\n")
    assert table_cells(card.final_table(tmp_path, "new"))["Metric"] == ["BASE", "n", "Chance"]


def test_a_run_without_evaluations_says_so(tmp_path):
    write_stage(tmp_path / "runs" / "new" / "base", metrics="step,loss\n1,5.0\n")
    assert card.final_table(tmp_path, "new") == "No stage has been evaluated yet.\n"


def test_scores_come_first_and_a_section_per_stage_is_folded_away(demo):
    text = (demo / "report.md").read_text()
    shown, folded = text.split("<details>\n<summary>Internals", 1)
    assert re.findall(r"^## (.+)$", shown, re.MULTILINE) == ["Scores", "Conversation", "Curves", "Time"]
    assert re.findall(r"^### ([A-Z]+)$", folded, re.MULTILINE) == ["TOKENIZER", "BASE", "MID", "SFT", "RL"]
    assert card.final_table(demo.parent.parent, "demo") in shown
    assert "Done at step 100 of 100." in folded


def test_no_cell_of_the_first_page_is_a_checksum(tmp_path):
    rows = {"tokens": 1024, "rows": 8, "checksum": "a" * 12}
    write_stage(
        tmp_path / "runs" / "new" / "base", result={"status": "done", "val_bpb": 2.0, "val_rows": rows}
    )
    text = card.write_report(tmp_path, "new").read_text()
    assert "a" * 12 not in text.split("<details>")[0]


def test_plan_and_result_are_told_a_line_per_value(demo):
    cells = table_cells((demo / "report.md").read_text())
    assert cells["groups.matrix"] == ["lr 0.02, betas (0.8, 0.95)"]
    assert cells["tokens"] == ["51,200"]
    assert cells["mfu, median"] == ["0.4"]
    assert cells["data"] == ["sample"]


def test_every_picture_of_the_card_is_there_as_png(demo):
    pictures = re.findall(r"!\[.*?\]\((.+?)\)", (demo / "report.md").read_text())
    assert {"base/loss.png", "base/val_bpb.png", "sft/loss.png", "rl/reward.png"} <= set(pictures)
    assert all((demo / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_the_newest_samples_are_shown_and_cannot_leave_their_fence(demo):
    text = (demo / "report.md").read_text()
    assert "early" not in text
    assert "````text\nStep 100\n\n- 'The capital of France is ```Paris```'\n````\n" in text


def test_prompts_and_replies_come_back_from_the_samples():
    """Oracle: the lines as training writes them, with the separator within a reply too."""
    said = [("Who are you?", 'I\'m "N"'), ("a → 'b", "c → 'd'\n- e")]
    text = "Step 3\n\n" + "".join(f"- {prompt!r} → {reply!r}\n" for prompt, reply in said)
    assert list(card._turns(text)) == said


@pytest.mark.parametrize("line", ["- " + "[" * 100_000 + " → 1", "- 'a'" + " → (" * 20_000])
def test_a_damaged_line_of_the_samples_is_no_exchange_and_takes_no_time(line):
    assert list(card._turns(line)) == []


def test_an_unfinished_run_gives_a_card_with_its_error(tmp_path):
    folder = tmp_path / "runs" / "half"
    write_stage(folder / "base", metrics=metrics_text(30), plan={"num_steps": 100})
    write_stage(folder / "sft", result={"status": "failed", "error": "no rows\nin x.jsonl"})
    text = card.write_report(tmp_path, "half").read_text()
    assert "BASE: interrupted at step 30 of 100." in text
    assert "Error: no rows in x.jsonl" in text


def test_the_time_is_summed_and_the_wall_clock_only_where_all_stages_have_it(tmp_path):
    folder = tmp_path / "runs" / "demo"
    write_stage(folder / "base", result={"status": "done", "seconds": 120.0, "wall_seconds": 150.25})
    write_stage(folder / "rl")
    assert table_cells(card.write_report(tmp_path, "demo").read_text())["total"][2:] == ["-", "-"]
    (folder / "rl").rmdir()
    write_stage(folder / "sft", result={"status": "done", "seconds": 60.0})
    assert table_cells(card.write_report(tmp_path, "demo").read_text())["total"][2:] == ["3:00", "-"]
    write_stage(folder / "sft", result={"status": "done", "seconds": 60.0, "wall_seconds": 90.5})
    assert table_cells(card.write_report(tmp_path, "demo").read_text())["total"][2:] == ["3:00", "4:01"]


def test_times_on_the_first_page_say_their_units():
    assert [spoken(seconds) for seconds in (None, 9.4, 346, 13_860)] == [
        *("-", "9 s", "5 min 46 s", "3 h 51 min")
    ]


def test_rented_hours_are_paid_by_the_wall_clock(tmp_path):
    """Two stages of 30 minutes at 31.6 and 4 dollars an hour."""
    for stage, price in {"base": 31.6, "sft": 4.0}.items():
        cost = {"dollars": 1.0, "dollars_per_hour": price, "prices": "2026-07-01"}
        result = {"status": "done", "seconds": 1200.0, "wall_seconds": 1800.0}
        write_stage(tmp_path / "runs" / "big" / stage, result=result, plan={"num_steps": 1, "cost": cost})
    text = card.write_report(tmp_path, "big").read_text()
    assert facts(text)["Cost"] == "$17.80"
    assert "at prices of 2026-07-01" in text


def facts(text: str) -> dict[str, str]:
    """What a card's first table says: a row of labels, a rule, a row of values."""
    labels, _, values = [line.split("|")[1:-1] for line in text.splitlines() if line[:1] == "|"][:3]
    return {label.strip(): value.strip() for label, value in zip(labels, values, strict=True)}


@pytest.mark.parametrize(
    ("gpu", "told"),
    [
        ("NVIDIA H200", "$9.08"),  # two for an hour, at 4.54 each
        ("NVIDIA A100-SXM4-80GB", "$5.00"),
        ("NVIDIA GeForce RTX 4090", None),
        ("cpu", None),
    ],
)
def test_a_machine_of_ones_own_is_priced_as_if_it_were_rented(tmp_path, gpu, told):
    """Oracle: conf/prices.yaml, by hand."""
    job = {"cluster": {"kind": "local", "gpu": gpu, "devices": 2, "nodes": 1}}
    result = {"status": "done", "seconds": 3000.0, "wall_seconds": 3600.0}
    write_stage(tmp_path / "runs" / "own" / "base", result=result, job=job)
    text = card.write_report(tmp_path, "own").read_text()
    assert facts(text).get("Cost if rented") == told
    assert (facts(text).get("Cost") == "own machine") == (told is None)
    assert ("per hour (prices of 2026-" in text) == (told is not None)


def test_a_card_names_no_folder_of_the_machine(tmp_path):
    """Below the root a path is told from there, elsewhere by its name; what a model wrote stays."""
    result = {"status": "failed", "error": f"no rows in /home/me/x.jsonl ({tmp_path}/data)"}
    result |= {"release": f"{tmp_path}/runs/mine/base/release", "source": "https://example.com/a/b"}
    samples = "## Step 9\n\n- 'Where?' → 'In /usr/share/it'\n"
    job = {**job_of("mine"), "overrides": [f"root={tmp_path}", "data=/home/me/texts", "max_steps=9"]}
    write_stage(tmp_path / "runs" / "mine" / "base", result=result, samples=samples, job=job)
    path = card.write_report(tmp_path, "mine")
    for text in (path.read_text(), path.with_suffix(".html").read_text()):
        assert not any(folder in text for folder in (str(tmp_path), "/home/me"))
        assert "no rows in .../x.jsonl (data)" in text
        assert "In /usr/share/it" in text
    cells = table_cells(path.read_text())
    assert (cells["release"], cells["source"]) == (["runs/mine/base/release"], ["https://example.com/a/b"])


def test_writing_the_card_again_replaces_it(tmp_path):
    folder = tmp_path / "runs" / "demo"
    write_stage(folder / "base", metrics="step,loss\n1,5.0\n2,4.0\n")
    card.write_report(tmp_path, "demo")
    files = sorted(folder.rglob("*"))
    card.write_report(tmp_path, "demo")
    assert sorted(folder.rglob("*")) == files


def test_reading_runs_needs_no_torch():
    code = (
        "import sys, nanolit.runs, nanolit.report.__main__;"
        "print({'torch', 'lightning', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_command_to_chat_works_wherever_the_root_is(tmp_path, monkeypatch):
    """Oracle: the shell's own reading of the words."""
    root = tmp_path / "a root"
    assert shlex.split(card.chat_command(root, "demo"))[2:] == ["nanolit.chat", "run=demo", f"root={root}"]
    monkeypatch.setenv("NANOLIT_HOME", str(root))
    assert card.chat_command(root, "demo") == "python -m nanolit.chat run=demo"
