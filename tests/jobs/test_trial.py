"""The search for the largest micro-batch, and what a person is told when memory runs out."""

import pytest
import torch

from nanolit.config.compose import compose
from nanolit.config.stored import read_job
from nanolit.jobs import execute, trial, worker
from nanolit.jobs.trial import out_of_memory
from nanolit.machine.paths import read_json, stage_folder
from nanolit.model.accounting import peak_memory_gib
from nanolit.planning.micro_batch import Tried, tried
from nanolit.planning.plans import fresh_plan, read_plan

GPU = ["cluster.gpu=NVIDIA H100 80GB HBM3", "model=d12", "micro_batch=auto"]


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def auto_job(root, *overrides: str):
    return compose([*GPU, f"root={root}", *overrides])


class Memory:
    """A probe of a device with room for `most` rows, which counts its trials."""

    def __init__(self, most: float) -> None:
        self.most, self.trials = most, list[int]()

    def __call__(self, rows: int) -> None:
        self.trials.append(rows)
        if rows > self.most:
            raise torch.OutOfMemoryError(f"{rows} rows of {self.most}")


@pytest.mark.parametrize("start", [1, 8, 96])
@pytest.mark.parametrize("most", [0, 1, 2, 7, 12, 40, 96, 1000])
def test_the_search_finds_the_largest_that_fits(start, most):
    """Oracle: the largest choice that is not above what the device takes."""
    choices = [one for one in range(1, 97) if 96 % one == 0]
    found = trial.search(choices, Memory(most), start=start, known=Tried())
    assert found.fits == max([one for one in choices if one <= most], default=0)
    assert found.fails == min([one for one in choices if one > most], default=None)


def test_a_good_first_guess_takes_two_trials():
    probe = Memory(32)
    trial.search([2**power for power in range(9)], probe, start=32, known=Tried())
    assert probe.trials == [32, 64]


def test_what_is_known_is_not_tried_again():
    probe = Memory(32)
    found = trial.search([1, 2, 4, 8, 16, 32, 64, 128], probe, start=8, known=Tried(fits=16, fails=64))
    assert (probe.trials, found) == ([32], Tried(32, 64))
    assert trial.search([16, 64], probe, start=16, known=found) == found
    assert probe.trials == [32]


def test_only_lack_of_memory_means_too_large():
    def probe(rows: int) -> None:
        raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        trial.search([1, 2], probe, start=1, known=Tried())


def test_by_the_plans_own_estimate_the_search_agrees_with_the_plan(tmp_path):
    """Oracle: the plan's largest micro-batch of an L40S; the probe asks the same formula for its 44.3 GiB."""
    plan = fresh_plan(compose(["cluster.gpu=L40S", "model=d20", f"root={tmp_path}"]), "base")

    def probe(rows: int) -> None:
        if peak_memory_gib(plan.gpt, micro_batch=rows)["peak"] > 0.95 * 44.3:
            raise torch.OutOfMemoryError(str(rows))

    found = trial.search([2**power for power in range(9)], probe, start=plan.micro_batch, known=Tried())
    assert found.fits == plan.memory["largest_micro_batch"]["L40S"]


@pytest.mark.slow
def test_a_job_on_a_machine_without_the_gpu_still_runs(tmp_path):
    """The trial is started, finds no CUDA device, and leaves the derived default."""
    tiny = ["data=sample", "recipe=classic", "model.depth=2", "model.width=32", "model.heads=2"]
    tiny += ["model.context=32", "stage.tokenizer.vocab_size=300", "stage.tokenizer.max_chars=20000"]
    tiny += ["total_batch=256", "max_steps=2", "stage.base.eval_tokens=128", "compile=false", "run=tiny"]
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    job = compose([*tiny, "cluster.gpu=H100", "micro_batch=auto", f"root={tmp_path}"])
    assert execute.run(job)["status"] == "done"
    assert read_json(stage_folder(tmp_path, "tiny", "base") / "plan.json")["micro_batch"] == 8
    assert not (tmp_path / "micro_batch.json").exists()


def test_a_trial_reads_the_plan_that_the_job_derived(tmp_path):
    job = auto_job(tmp_path)
    plan = fresh_plan(job, "base")
    folder = execute.hand_over(job, plan, tmp_path / "handed over")
    assert read_plan(folder) == plan
    assert read_job(folder / "job.yaml") == job


def test_the_error_says_which_setting_fits(tmp_path):
    job = compose(["cluster=modal_a10g", "model=d20", "micro_batch=16", f"root={tmp_path}"])
    plan = fresh_plan(job, "base")
    assert plan.memory["fits"] is False
    line = out_of_memory(job, plan)
    assert "base ran out of memory on A10G with micro_batch=16; give micro_batch=" in line
    rows = plan.memory["largest_micro_batch"]["A10G"]
    assert f"give micro_batch={rows}, which fits by the plan's estimate" in line


def test_the_error_at_a_single_row_names_what_else_helps(tmp_path):
    job = compose(["cluster=modal_a10g", "model=d32", "micro_batch=1", f"root={tmp_path}"])
    assert "a smaller model" in out_of_memory(job, fresh_plan(job, "base"))


def test_with_auto_the_failure_is_remembered(tmp_path):
    job = auto_job(tmp_path)
    plan = fresh_plan(job, "base")
    assert "the same command tries fewer rows" in out_of_memory(job, plan)
    assert tried(job, plan.gpt, equal_rows=True) == Tried(fits=0, fails=32)
    assert fresh_plan(job, "base").micro_batch == 16


def test_ranks_that_run_out_together_remember_one_failure(tmp_path, monkeypatch):
    def train(*_):
        raise torch.OutOfMemoryError("no room")

    job = auto_job(tmp_path)
    plan = fresh_plan(job, "base")
    execute.write_plan(job, plan)
    monkeypatch.setattr(worker, "train", train)
    for _ in range(3):
        assert "with micro_batch=32; this is recorded" in worker.run(job, plan)["error"]
    assert tried(job, plan.gpt, equal_rows=True) == Tried(fits=0, fails=32)


def test_rl_says_so_too(tmp_path):
    job = compose(["phase=rl", "model=d12", "micro_batch=8", f"root={tmp_path}"])
    assert "give micro_batch=4" in out_of_memory(job, fresh_plan(job, "rl"))


@pytest.mark.gpu
@needs_cuda
def test_on_a_gpu_the_largest_that_fits_is_found_by_trying(tmp_path):
    """A tenth of the GPU's memory and an uncompiled d4: the search meets a real error, and its find fits."""
    job = compose(["model=d4", "compile=false", "micro_batch=auto", f"root={tmp_path}"])
    plan = fresh_plan(job, "base")

    def probe(rows: int) -> None:
        trial.train_twice(job, plan, rows)

    torch.cuda.set_per_process_memory_fraction(0.1)
    try:
        found = trial.search([2**power for power in range(12)], probe, start=8, known=Tried())
        assert found.fails == 2 * found.fits
        assert trial.has_memory(probe, found.fits)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.gpu
@needs_cuda
def test_on_a_gpu_auto_trains_with_what_it_found_and_remembers_it(tmp_path):
    overrides = ["data=sample", "model=d4", "stage.tokenizer.vocab_size=1024", "max_steps=2", "run=auto"]
    overrides += ["total_batch=32768", "stage.base.eval_tokens=4096", "micro_batch=auto", f"root={tmp_path}"]
    job = compose(overrides)
    assert execute.run(job)["status"] == "done"
    (known,) = read_json(tmp_path / "micro_batch.json")["tried"].values()
    assert known == {"fits": 16, "fails": None}
    assert read_json(stage_folder(tmp_path, "auto", "base") / "plan.json")["micro_batch"] == 16


@pytest.mark.gpu
@needs_cuda
def test_on_a_gpu_a_stage_that_runs_out_of_memory_says_what_fits(tmp_path):
    overrides = ["data=sample", "model=d4", "stage.tokenizer.vocab_size=1024", "max_steps=2", "run=full"]
    overrides += ["total_batch=524288", "compile=false", "micro_batch=256", f"root={tmp_path}"]
    torch.cuda.set_per_process_memory_fraction(0.03)
    try:
        result = execute.run(compose(overrides))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert result["status"] == "failed"
    assert "ran out of memory" in result["error"]
    assert "give micro_batch=" in result["error"]
