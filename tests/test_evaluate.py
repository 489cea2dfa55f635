"""The evaluate command's refusals; that it evaluates is shown by test_pipeline.py."""

import json
import shutil
from pathlib import Path

import pytest

from nanolit import evaluate
from nanolit.config.compose import compose
from nanolit.evaluation.answers import tell_answers
from nanolit.evaluation.scores import read_items
from nanolit.jobs.execute import write_plan
from nanolit.machine.paths import write_yaml
from nanolit.planning.plans import fresh_plan


def test_a_release_alone_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gpt.json").write_text("{}")
    assert evaluate.main([f"run={tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} is only a release: give run=NAME")


def test_chat_tasks_that_do_not_exist_are_refused_before_a_run_is_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([f"root={tmp_path}", "run=absent", "tasks=dmeo"]) == 2
    assert capsys.readouterr().err == (
        "error: there is no set of tasks 'dmeo'; did you mean demo? allowed: demo, full, none, quick, core\n"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tasks=core"], "which model? give one of run=RUN[/STAGE], release=FOLDER and hf=FOLDER"),
        (["run=a", "release=b"], "which model? give one of run=RUN[/STAGE], release=FOLDER and hf=FOLDER"),
        (["hf=a"], "hf= works only with CORE: give tasks=core"),
        (["run=a", "crop=1024"], "crop= needs tasks=core"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(words) == 2
    assert said in capsys.readouterr().err


def test_answers_on_disk_are_shown_without_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(Path(__file__).parent / "fixtures/run_format_1", tmp_path / "run")
    [release] = (tmp_path / "run").glob("**/base/release")
    (release.parent / "evaluation").mkdir()
    lines = [
        {"format": 1, "task": "GSM8K"},
        {
            "index": 0,
            "prompt": 1,
            "replies": ["so 4\x1b[2J\n#### 5"],
            "extracted": ["5"],
            "right": False,
            "question": "2+2?",
            "expected": "4",
        },
        {"index": 1, "prompt": 1, "replies": ["#### 6"], "extracted": ["6"], "right": True},
    ]
    (release.parent / "evaluation/GSM8K.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [f"release={release}", "show=gsm8k"]  # tasks are found in any case
    assert evaluate.main([*words, "wrong=true"]) in (0, None)
    assert (
        capsys.readouterr().out
        == "wrong  item 0\n  2+2?\n  so 4␛[2J\n  #### 5\n  → 5\n  expected: 4\n1 of 2 right\n"
    )
    assert evaluate.main([words[0], "show=GSMK8"]) == 2
    assert "did you mean GSM8K?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("question", "losses", "told"),
    [
        (
            {"query": "It rained, so", "choices": ["it was dry", "it was wet"], "gold": 1},
            [2.5, 3.0],
            "  It rained, so\n   2.5000  it was dry  ← chosen\n   3.0000  it was wet  ← expected\n",
        ),
        (
            {"context_options": ["Ann", "Bob"], "continuation": "ran", "gold": 0},
            [None, 1.0],
            "  ran\n           Ann  ← expected\n   1.0000  Bob  ← chosen\n",
        ),
        (
            {"context": "A\nB", "continuation": "C\x07"},
            [4.0],
            "  A\n  B\n  expected: C␇ (mean loss 4.0000)\n",
        ),
    ],
)
def test_answers_to_core_are_told_by_option(tmp_path: Path, question: dict, losses: list, told: str) -> None:
    item = {"index": 3, "prompt": 1, "right": False, "losses": losses, "question": question}
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "copa.jsonl").write_text(f'{{"format": 1}}\n{json.dumps(item)}\n')
    lines = tell_answers(tmp_path, "COPA", wrong=True)
    assert "".join(f"{line}\n" for line in lines) == f"wrong  item 3\n{told}0 of 1 right\n"
    (tmp_path / "core" / "piqa.jsonl").write_text('{"format": 1}\n')
    with pytest.raises(ValueError, match=r"piqa\.jsonl has no answers yet"):
        next(tell_answers(tmp_path, "piqa", wrong=True))


def test_damaged_answers_are_left_out_with_a_warning(tmp_path: Path) -> None:
    """The last line alone may have been cut by an interruption."""
    whole = {"index": 0, "prompt": 1, "right": True, "replies": ["4"], "losses": [0.5, None]}
    odd = [{"replies": None}, {"replies": [4]}, {"losses": {"A": "1"}}, {"losses": [[1]]}, {"right": 1}]
    lines = [json.dumps(line) for line in ({"format": 1}, *(whole | change for change in odd), whole)]
    path = tmp_path / "GSM8K.jsonl"
    path.write_text("\n".join([*lines, "[" * 100_000, json.dumps(whole), '{"index": 3, "pro']))
    with pytest.warns(UserWarning, match="GSM8K.jsonl: 6 damaged lines are left out; evaluate again"):
        _, items = read_items(path)
    assert items == [whole, whole]


def test_a_plan_that_lacks_what_rl_is_scored_by_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    job = compose(["phase=rl", "model=d4", f"root={tmp_path}"])
    folder = write_plan(job, fresh_plan(job, "rl"))
    plan = json.loads((folder / "plan.json").read_text())
    for name in ("max_new_tokens", "samples"):
        (folder / "plan.json").write_text(json.dumps({key: plan[key] for key in plan if key != name}))
        with pytest.raises(ValueError, match=rf"plan\.json lacks {name}; restore it"):
            evaluate.stored_stage(folder / "release")


def test_chat_tasks_of_one_name_are_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    job = compose(["phase=sft", "model=d4", f"root={tmp_path}"])
    folder = write_plan(job, fresh_plan(job, "sft"))
    write_yaml(folder / "job.yaml", job)
    sums = "{_target_: nanolit.tasks.sums.WorkedSums, split: test, size: 9, below: %d}"
    (tmp_path / "twice.yaml").write_text(f"max_tokens: 16\ntasks: [{sums % 10}, {sums % 100}]\n")
    settings = evaluate.Settings(run="run", tasks=str(tmp_path / "twice.yaml"))
    with pytest.raises(ValueError, match="2 chat tasks are named WorkedSums; names must differ"):
        evaluate.evaluate_stage(settings, folder / "release", tmp_path, {})
