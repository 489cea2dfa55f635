"""mid, sft and rl resume as base does, and two ranks train as one. The oracle is the run never stopped."""

import csv
import os
import shutil
import signal
from pathlib import Path

import pytest

from nanolit.config.compose import compose
from nanolit.evaluation import evaluators
from nanolit.jobs import watch
from nanolit.jobs.execute import run
from nanolit.jobs.parts import build_parts
from nanolit.machine.paths import read_json
from nanolit.planning.plans import fresh_plan

MIXTURE = """\
mirror: sample
sources:
  - {_target_: nanolit.tasks.sums.Sums, split: train, size: 120}
  - {_target_: nanolit.tasks.spelling.SimpleSpelling, split: train, size: 120, source: sample}
validation:
  - {_target_: nanolit.tasks.sums.Sums, split: test, size: 20}
"""
CHAT_TASKS = """\
mirror: sample
max_tokens: 4
tasks:
  - {_target_: nanolit.tasks.sums.Sums, split: test, size: 2}
"""
STEPS = {"base": 3, "mid": 9, "sft": 9, "rl": 5}


def overrides(folder: Path, root: Path, *more: str) -> list[str]:
    """The demo's stages at a size for tests; every step is saved."""
    (folder / "mixture.yaml").write_text(MIXTURE)
    (folder / "chat.yaml").write_text(CHAT_TASKS)
    stages = [
        setting
        for stage, steps in STEPS.items()
        for setting in (f"stage.{stage}.max_steps={steps}", f"stage.{stage}.save_every=1")
    ]
    return [
        "experiment=demo",
        "recipe=classic",
        "model.width=32",
        "model.heads=2",
        "model.context=64",
        "stage.tokenizer.vocab_size=600",
        "total_batch=512",
        "micro_batch=2",
        *stages,
        f"stage.mid.mixture={folder / 'mixture.yaml'}",
        f"stage.sft.mixture={folder / 'mixture.yaml'}",
        f"chat_tasks={folder / 'chat.yaml'}",
        "stage.base.eval_tokens=512",
        "stage.rl.questions=4",
        "stage.rl.samples=4",
        "stage.rl.max_new_tokens=4",
        f"root={root}",
        *more,
    ]


def rows(root: Path, stage: str) -> list[list[str]]:
    """(step, loss, reward, flops) as written, to the last digit."""
    with (root / "runs" / "demo" / stage / "metrics.csv").open(newline="") as file:
        columns = ("step", "loss", "reward", "flops")
        return [[row[name] for name in columns] for row in csv.DictReader(file) if row["loss"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings")


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "root"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "KEPT_CHECKPOINTS", 100)
        result = run(compose(overrides(folder, root)))
    assert result["status"] == "done", result
    return root


@pytest.mark.parametrize(("stage", "step"), [("mid", 2), ("sft", 7), ("rl", 1), ("rl", 4)])
def test_a_stage_resumed_after_any_step_goes_on_to_the_last_digit(
    whole: Path, folder: Path, tmp_path: Path, stage: str, step: int
) -> None:
    root = tmp_path / "root"
    shutil.copytree(whole, root)
    broken_off = root / "runs" / "demo" / stage
    (broken_off / "result.json").unlink()
    for checkpoint in (broken_off / "checkpoints").iterdir():
        if checkpoint.name != f"step_{step:06d}":
            shutil.rmtree(checkpoint)
    result = run(compose(overrides(folder, root, f"phase={stage}", f"stages=[{stage}]")))
    assert result["status"] == "done", result
    assert rows(root, stage) == rows(whole, stage)
    assert len(rows(root, stage)) == STEPS[stage]


@pytest.mark.parametrize("warm", [False, True])
def test_the_optimizer_goes_on_from_the_stage_before_only_if_the_recipe_says_so(
    whole: Path, folder: Path, warm: bool
) -> None:
    more = ("phase=sft", "stages=[sft]", "run=other", "start_from=demo", f"recipe.sft.warm_start={warm}")
    job = compose(overrides(folder, whole, *more))
    phase = build_parts(job, fresh_plan(job, "sft")).phase
    state = phase.configure_optimizers().state_slices()
    steps = {int(piece.tensor) for key, piece in state.items() if key.endswith("/step")}
    assert steps == {STEPS["mid"] if warm else 0}


@pytest.mark.parametrize("stage", ["base", "mid", "sft"])
def test_flops_count_what_the_model_took_in_and_tokens_what_it_learned(whole: Path, stage: str) -> None:
    """Oracle: the plan's. Rows of 64 are narrower than any width that sft cuts its padding to."""
    folder = whole / "runs" / "demo" / stage
    plan, result = read_json(folder / "plan.json"), read_json(folder / "result.json")
    flops = float(rows(whole, stage)[-1][3])
    assert flops == STEPS[stage] * plan["total_batch"] * plan["flops_per_token"]
    assert (result["tokens"] == result["processed_tokens"]) == (stage != "sft")


def test_two_ranks_train_as_one_in_every_stage(
    whole: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    result = run(compose(overrides(folder, tmp_path / "root", "cluster.devices=2")))
    assert result["status"] == "done", result
    for stage in ("base", "mid", "sft"):
        one = [float(loss) for _, loss, _, _ in rows(whole, stage)]
        two = [float(loss) for _, loss, _, _ in rows(tmp_path / "root", stage)]
        assert two == pytest.approx(one, abs=5e-4), stage
        assert rows(tmp_path / "root", stage)[-1][3] == rows(whole, stage)[-1][3], stage
        results = [root / "runs" / "demo" / stage / "result.json" for root in (whole, tmp_path / "root")]
        assert len({str(read_json(path)["val_rows"]) for path in results}) == 1, stage
    # sampled answers may part where two logits are equal to rounding; the first step has equal weights
    assert float(rows(tmp_path / "root", "rl")[0][1]) == pytest.approx(
        float(rows(whole, "rl")[0][1]), abs=5e-3
    )


@pytest.mark.parametrize(
    ("times", "error"), [(1, "base finished; the same command continues with mid"), (2, "at once")]
)
def test_ctrl_c_in_the_last_step_begins_no_other_stage(
    times: int, error: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scores(*_: object) -> tuple[float, float]:
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
        return 1.0, 1.0

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.setattr(evaluators, "validation_scores", scores)
    result = run(compose(overrides(folder, tmp_path / "root")))
    assert result["status"] == "interrupted"
    assert error in result["error"]
    assert not (tmp_path / "root" / "runs" / "demo" / "mid").exists()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
