"""The command, as it is typed: sweeps without -m, refusals before the first job starts, exit codes."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from hydra_plugins.nanolit_local.launcher import LocalLauncher
from omegaconf import OmegaConf

from nanolit.config.compose import compose
from nanolit.jobs import sweep
from nanolit.jobs.sweep import check_jobs, gpu_slots, run_jobs
from nanolit.machine.paths import read_json, stage_folder, write_json
from tests.jobs.test_execute import TINY

NAMELESS = [one for one in TINY if not one.startswith(("run=", "model.depth"))]


def typed(*arguments: str, folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "nanolit.train", f"root={folder}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


@pytest.mark.slow
def test_a_sweep_runs_a_job_for_every_combination_without_m(tmp_path):
    combinations = [*NAMELESS, "model.depth=1,2", "seed=1,2"]
    done = typed(*combinations, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    runs = sorted(folder.name for folder in (tmp_path / "runs").iterdir())
    names = [f"d{depth}-modern-s{seed}" for depth in (1, 2) for seed in (1, 2)]
    assert [name.rsplit("-", 1)[0] for name in runs] == names
    for name in runs:
        assert read_json(stage_folder(tmp_path, name, "base") / "result.json")["status"] == "done"
    table = done.stdout.splitlines()
    assert sum("±" in line for line in table) == 2  # a line for each depth, over its seeds
    assert [Path(table[-1])] == [*tmp_path.glob("sweeps/sweep-*.csv")]
    again = typed(*combinations, folder=tmp_path)
    assert again.stdout.count("already finished at step 2") == 4
    assert "loss" not in again.stdout  # nothing was trained


def test_a_job_that_was_killed_is_not_done_by_what_its_stages_have_left(tmp_path, monkeypatch):
    def start(job, *_, **__):
        done = stage_folder(tmp_path, job["run"], "base") / "result.json"
        done.parent.mkdir(parents=True)
        write_json(done, {"status": "done", "run": job["run"], "stage": "base", "val_bpb": 1.0})
        return subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])

    monkeypatch.setattr(sweep, "start", start)
    jobs = [compose([*NAMELESS, "model.depth=1", f"seed={seed}", f"root={tmp_path}"]) for seed in (1, 2)]
    with pytest.raises(sweep.JobFailed, match="failed: its process ended without a result"):
        run_jobs(jobs)


def test_results_are_in_the_order_of_the_jobs_whichever_ends_first(tmp_path, monkeypatch):
    def start(job, _slot, answer, **_):
        write_json(answer, {"status": "done", "run": job["run"], "val_bpb": float(job["seed"])})
        return subprocess.Popen(["sleep", str(0.5 / job["seed"])])

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(sweep, "start", start)
    jobs = [compose([*NAMELESS, "model.depth=1", f"seed={seed}", f"root={tmp_path}"]) for seed in (1, 9)]
    assert run_jobs(jobs) == [1.0, 9.0]


@pytest.mark.parametrize("error", ["stopped after step 3", sweep.CUT_SHORT])
def test_a_sweep_that_is_interrupted_says_what_was_stopped_and_what_not_begun(error, tmp_path, monkeypatch):
    """A job that is stopped while it starts leaves no answer."""

    def start(job, _slot, answer, **_):
        if error != sweep.CUT_SHORT:
            write_json(answer, {"status": "interrupted", "run": job["run"], "error": error})
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        return subprocess.Popen(["sleep", "60"])

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(sweep, "start", start)
    names = ("first", "second")
    jobs = [compose([*NAMELESS, "model.depth=1", f"run={name}", f"root={tmp_path}"]) for name in names]
    with pytest.raises(sweep.JobFailed) as stopped:
        run_jobs(jobs)
    assert stopped.value.code == 130
    assert str(stopped.value).splitlines() == [
        f"first: interrupted: {error}",
        "second: interrupted: not started when the sweep was stopped; the same command starts it",
    ]


@pytest.mark.parametrize("rate", [None, 0.0, 0.5])
def test_a_search_gets_the_failures_that_it_allows(rate, tmp_path, monkeypatch):
    """As Hydra's sweepers read them: return_value raises. A plain sweep has no rate."""
    results = [{"status": "done", "run": "a", "val_bpb": 1.0}, {"status": "failed", "run": "b"}]
    monkeypatch.setattr(sweep, "run_jobs", lambda jobs: sweep.conclude(jobs, results))
    launcher, sweeper = LocalLauncher(), {} if rate is None else {"max_failure_rate": rate}
    launcher.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}, "sweeper": sweeper}})
    words = [[*NAMELESS, "model.depth=1", f"seed={seed}", f"root={tmp_path}"] for seed in (1, 2)]
    with nullcontext() if rate else pytest.raises(sweep.JobFailed, match="b: failed"):
        done, failed = launcher.launch(words, 0)
        assert done.return_value == 1.0
        with pytest.raises(sweep.JobFailed, match="b: failed"):
            _ = failed.return_value


@pytest.mark.slow
def test_optuna_minimizes_what_train_returns(tmp_path):
    pytest.importorskip("optuna", reason="needs the extra optuna")
    settings = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.direction=minimize"]
    done = typed(*NAMELESS, *settings, "stage.base.lr_scale=interval(0.5,1.5)", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    best = yaml.safe_load((tmp_path / "sweeps" / "optimization_results.yaml").read_text())
    results = [read_json(path) for path in tmp_path.glob("runs/*/base/result.json")]
    assert len(results) == 3
    assert best["best_value"] == min(result["val_bpb"] for result in results)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["max_steps=2,two"], "max_steps is 'two'"),
        (["total_batch=256,100"], "try 96 or 128"),
        (["micro_batch=1,2"], "2 jobs of the sweep have the same run name tiny"),
        (["cluster=local,modal_8xh100"], "cluster=modal_8xh100 does not run on this machine"),
        (["modle=d6"], "did you mean model?"),
        (["cluster=modal_8xh100", "hydra.launcher.timeout=90000"], "Modal allows 1 to 86,400"),
        (["cluster=modal_8xh100", "hydra.launcher.gpuu=T4"], "did you mean hydra.launcher.gpu?"),
        (["--cfg", "job", "seed=1,2"], "--cfg shows one job"),
    ],
)
def test_nothing_starts_when_one_job_is_refused(arguments, message, tmp_path):
    done = typed(*TINY, *arguments, folder=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_a_root_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    done = typed(*TINY, f"root={tmp_path}/file", folder=tmp_path)
    assert done.returncode == 2
    assert f"root={tmp_path}/file cannot be written" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_job_for_rented_gpus_never_runs_here(tmp_path):
    """Not by Hydra's own running either; under SLURM its own job is where it belongs."""
    done = typed(*TINY, "cluster=modal_8xh100", "hydra.mode=RUN", folder=tmp_path)
    assert done.returncode == 2
    assert "does not run on this machine" in done.stderr


def test_a_slurm_job_runs_inside_slurm_alone(monkeypatch):
    job = compose([*TINY, "cluster=slurm_8xgpu"])
    with pytest.raises(ValueError, match="does not run on this machine"):
        check_jobs([job])
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    check_jobs([job])


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys):
    assert run_jobs([compose([*TINY, f"root={tmp_path}", "dry_run=true"])]) == [None]
    assert "tiny · base" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_would_keep_the_job_from_starting(tmp_path, capsys):
    assert run_jobs([compose([*TINY, "phase=sft", f"root={tmp_path}", "dry_run=true"])]) == [None]
    assert "tiny would not start: sft needs the finished base of run tiny" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("visible", "devices", "slots"),
    [
        ("0,1,2,3", 1, ["0", "1", "2", "3"]),
        ("0,1,2,3", 2, ["0,1", "2,3"]),
        ("4,5,6", 2, ["4,5"]),
        ("3", 2, ["3"]),
        ("", 1, [""]),
    ],
)
def test_every_job_has_its_own_gpus(visible, devices, slots, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_slots(devices) == slots
