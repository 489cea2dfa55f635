"""Run folders read back. The oracle of each test is what it wrote itself."""

import fcntl

import pytest
from run_folders import metrics_text, write_demo, write_stage

from nanolit.language_model import find_release
from nanolit.report.folders import Run, Stage, as_number, find_runs, open_run


def test_a_half_written_last_row_is_read_as_far_as_it_goes(tmp_path):
    folder = write_stage(tmp_path / "base", metrics="step,loss,val_bpb\n1,5.5,\n2,,2.25\n3,4.")
    stage = Stage("base", folder)
    assert stage.series("loss") == [(1, 5.5), (3, 4.0)]
    assert stage.series("val_bpb") == [(2, 2.25)]
    (folder / "metrics.csv").write_text("step,loss\n1,5.5\n\x00\x00\xff")
    assert Stage("base", folder).series("loss") == [(1, 5.5)]


def test_unknown_columns_are_kept_and_text_in_them_ignored(tmp_path):
    folder = write_stage(tmp_path / "rl", metrics="step,reward,mood,entropy\n1,0.5,good,2.0,extra\n")
    assert Stage("rl", folder).rows == [{"step": 1, "reward": 0.5, "entropy": 2.0}]


def test_the_result_comes_before_the_log_and_the_log_serves_without_it(tmp_path):
    folder = write_stage(tmp_path / "base", metrics="step,loss,val_bpb\n7,5.5,\n7,,2.25\n")
    assert (Stage("base", folder).step, Stage("base", folder).val_bpb) == (7, 2.25)
    write_stage(folder, result={"status": "done", "step": 8, "val_bpb": 2.0})
    assert (Stage("base", folder).step, Stage("base", folder).val_bpb) == (8, 2.0)


def test_metrics_keep_numbers_only_and_flatten_nested_ones(tmp_path):
    metrics = {
        "GSM8K": 0.5,
        "pass@k": {"1": 0.25, "8": 0.5},
        "note": "text",
        "broken": float("nan"),
        "ok": True,
    }
    folder = write_stage(tmp_path / "rl", result={"status": "done", "val_bpb": None, "metrics": metrics})
    assert Stage("rl", folder).metrics == {"GSM8K": 0.5, "pass@k.1": 0.25, "pass@k.8": 0.5}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, -(10**400), True, "1", None])
def test_what_no_float_holds_is_no_number(value):
    assert as_number(value) is None


def test_a_stage_without_a_result_was_interrupted_unless_the_run_is_locked(tmp_path):
    """The lock is a real flock, held through a second descriptor."""
    folder = write_demo(tmp_path)
    (folder / "mid" / "result.json").unlink()
    write_stage(folder / "sft", result={"status": "failed", "error": "no rows"})
    (folder / ".lock").touch()
    expected = {"tokenizer": "done", "base": "done", "mid": "interrupted", "sft": "failed", "rl": "done"}
    assert Run(folder).states() == expected
    with (folder / ".lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert Run(folder).states() == expected | {"mid": "running", "sft": "waiting"}
    assert not Run(folder).locked


def test_the_steps_are_the_results_else_the_plans_else_its_guess_for_an_epoch(tmp_path):
    folder = write_stage(tmp_path / "sft", plan={"num_steps": None, "expected_steps": 90})
    assert Stage("sft", folder).num_steps == 90
    write_stage(folder, plan={"num_steps": 80, "expected_steps": 90})
    assert Stage("sft", folder).num_steps == 80
    write_stage(folder, result={"status": "done", "num_steps": 70})
    assert Stage("sft", folder).num_steps == 70
    assert Stage("tokenizer", tmp_path / "tokenizer").num_steps is None


def test_reading_the_lock_leaves_it_free(tmp_path):
    folder = write_demo(tmp_path)
    (folder / ".lock").touch()
    assert not Run(folder).locked
    with (folder / ".lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_locked_run_names_the_stages_of_its_job_that_have_no_folder_yet(tmp_path):
    folder = tmp_path / "runs" / "new"
    write_stage(folder / "base", metrics=metrics_text(3), job={"stages": ["tokenizer", "base", "sft"]})
    (folder / ".lock").touch()
    with (folder / ".lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert Run(folder).states() == {"base": "running", "sft": "waiting"}


def test_runs_come_newest_first_and_other_folders_are_no_runs(tmp_path):
    for name, changed in (("old", 1e9), ("new", 1.2e9), ("middle", 1.1e9)):
        write_stage(tmp_path / "runs" / name / "base", metrics=metrics_text(2), changed=changed)
    (tmp_path / "runs" / "notes").mkdir()
    assert [run.name for run in find_runs(tmp_path)] == ["new", "middle", "old"]
    assert [run.changed for run in find_runs(tmp_path)] == [1.2e9, 1.1e9, 1e9]


def test_an_unknown_run_is_answered_with_the_runs_there_are(tmp_path):
    write_demo(tmp_path)
    write_demo(tmp_path, "d12-modern-s1")
    with pytest.raises(ValueError, match=r"did you mean run=demo\?.*demo.*") as caught:
        open_run(tmp_path, "demoo")
    assert "d12-modern-s1" in str(caught.value)


@pytest.mark.parametrize("name", ["../runs/demo", "demo/base", "."])
def test_a_run_is_a_name_and_not_a_path(tmp_path, name):
    write_demo(tmp_path)
    with pytest.raises(ValueError, match="available: demo"):
        open_run(tmp_path, name)


def test_an_empty_root_is_answered_with_the_command_that_makes_a_run(tmp_path):
    with pytest.raises(ValueError, match="experiment=demo"):
        open_run(tmp_path / "nowhere", "demo")


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[1]", "holds list")])
def test_a_broken_result_is_named_with_its_path(tmp_path, text, message):
    folder = write_stage(tmp_path / "base")
    (folder / "result.json").write_text(text)
    with pytest.raises(ValueError, match=rf"result\.json.* {message}|{message}"):
        _ = Stage("base", folder).result


def test_a_broken_job_is_named_with_its_path(tmp_path):
    folder = write_stage(tmp_path / "demo" / "base")
    (folder / "job.yaml").write_text("a: [1")
    with pytest.raises(ValueError, match=r"job\.yaml is not valid YAML"):
        _ = Run(folder.parent).job


def test_the_newest_job_counts(tmp_path):
    write_stage(tmp_path / "demo" / "base", job={"seed": 1}, changed=1e9)
    write_stage(tmp_path / "demo" / "sft", job={"seed": 2}, changed=1.1e9)
    assert Run(tmp_path / "demo").job["seed"] == 2


def test_the_folder_of_runs_given_as_the_root_is_told(tmp_path):
    write_demo(tmp_path)
    for look in (open_run, lambda root, name: find_release(name, root=root)):
        with pytest.raises(ValueError, match=rf"did you mean root={tmp_path}\?"):
            look(tmp_path / "runs", "demo")
