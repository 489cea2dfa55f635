"""The last lines of a run say what a person can do with it. Oracle: what the run folder was made with."""

from run_folders import write_demo, write_stage

from nanolit.report.card import write_report
from nanolit.report.closing import SHOWN_CHARACTERS, closing

SAMPLES = "## Step 1\n\n- 'Hi' → 'no'\n\n## Step 2\n\n"
SAMPLES += "- 'Who are you?' → 'I am\\n\\nNanoLit.'\n- 'Hi' → 'Hel\\x1b[2Jlo'\n"


def test_it_ends_with_talk_scores_pictures_and_the_command(tmp_path, monkeypatch):
    folder = write_demo(tmp_path)
    (folder / "rl" / "samples.md").write_text(SAMPLES)
    (folder / "rl" / "release").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path)
    lines = closing(tmp_path, "demo", write_report(tmp_path, "demo")).splitlines()
    assert lines[:4] == ["you   Who are you?", "demo  I am NanoLit.", "you   Hi", "demo  Hel␛[2Jlo"]
    assert any(line.startswith("| ChatCORE") or line.startswith("| mean above") for line in lines)
    assert lines[-3:] == [
        "report      runs/demo/report.html (for a browser), report.md",
        "pictures    runs/demo/*/*.png",
        f"chat        python -m nanolit.chat run=demo root={tmp_path} (web=true serves a page)",
    ]
    assert list(tmp_path.glob("runs/demo/*/*.png")), "and they are there"


def test_a_base_continues_texts_and_a_long_reply_is_cut(tmp_path):
    samples = f"## Step 2\n\n- 'Once' → {' upon' * 200!r}\n"
    write_stage(tmp_path / "runs" / "new" / "base", result={"status": "done"}, samples=samples)
    begun, continued, *_ = closing(tmp_path, "new", write_report(tmp_path, "new")).splitlines()
    assert begun == "prompt        Once"
    assert continued.startswith("continuation  upon upon")
    assert len(continued) == len("continuation  ") + SHOWN_CHARACTERS + 2


def test_a_run_without_samples_ends_with_its_table(tmp_path):
    write_stage(tmp_path / "runs" / "new" / "base", result={"status": "done", "val_bpb": 2.0})
    text = closing(tmp_path, "new", write_report(tmp_path, "new"))
    assert text.startswith("| Metric")
    assert "nanolit.chat" not in text, "there is no release"
