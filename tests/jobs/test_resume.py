"""Resuming gives the same curve as never having stopped. The oracle is the run that was never stopped."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nanolit.callbacks import saving
from nanolit.callbacks.checkpoint import file_hash
from nanolit.config.compose import compose
from nanolit.jobs import watch
from nanolit.jobs.execute import run
from nanolit.jobs.processes import descendants
from nanolit.machine.paths import read_json, write_json
from nanolit.phases.core import Phase
from tests.jobs.tiny_runs import STEPS, keep_only_checkpoint, losses, overrides, write_corpus
from tests.processes import finish


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text")


@pytest.fixture(scope="module", params=["modern", "classic"])
def whole(request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory):
    """A finished run with a checkpoint of every step: (overrides without root, its root)."""
    root = tmp_path_factory.mktemp(request.param) / "root"
    more = [f"recipe={request.param}", "save_every=1", "sample_every=12"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "KEPT_CHECKPOINTS", STEPS)
        result = run(compose(overrides(corpus, root, *more)))
    assert result["status"] == "done", result
    return more, root


def samples(root: Path) -> str:
    return (root / "runs" / "tiny" / "base" / "samples.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("step", [1, 7, 13, 23])
def test_a_run_resumed_after_any_step_has_the_same_losses_to_the_last_digit(
    whole: tuple[list[str], Path], corpus: Path, tmp_path: Path, step: int
) -> None:
    more, root = whole
    resumed = tmp_path / "root"
    keep_only_checkpoint(root, resumed, step)
    result = run(compose(overrides(corpus, resumed, *more)))
    assert result["status"] == "done", result
    assert losses(resumed) == losses(root)
    assert sorted(losses(root)) == list(range(1, STEPS + 1))
    assert samples(resumed) == samples(root)
    assert samples(root).count("## Step ") == 2


def test_a_run_resumed_at_its_last_step_reports_what_was_measured_before(
    whole: tuple[list[str], Path], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, root = whole
    keep_only_checkpoint(root, tmp_path / "root", STEPS)
    result = run(compose(overrides(corpus, tmp_path / "root", *more)))
    whole_result = read_json(root / "runs" / "tiny" / "base" / "result.json")
    for key in ("tokens_per_second", "loss", "epoch", "cropped_fraction", "data_wait_fraction"):
        assert result[key] == whole_result[key] is not None, key
    assert f"base: {result['epoch']:.2f} epochs" in capsys.readouterr().out


@pytest.mark.parametrize("before", [0, 7])
def test_a_long_step_is_given_up_between_micro_batches_and_begun_again(
    before: int,
    whole: tuple[list[str], Path],
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGTERM in a step's first micro-batch: those `before` it are saved; the curve is that of no stop."""
    more, root = whole
    calls, real = [], Phase.loss

    def loss(self: Phase, *batch: Any) -> Any:
        if self.finished_steps == before and self.training and not calls:
            calls.append(self.finished_steps)
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *batch)

    monkeypatch.setattr(saving, "LONG_STEP_SECONDS", -1.0)
    monkeypatch.setattr(Phase, "loss", loss)
    words = [*overrides(corpus, tmp_path / "root", *more), "save_every=1000"]
    stopped = run(compose(words))
    assert (stopped["status"], stopped["step"]) == ("interrupted", before), stopped
    saved = [path.name for path in (tmp_path / "root").glob("runs/tiny/base/checkpoints/*")]
    assert saved == [f"step_{before:06d}"] * bool(before)
    assert run(compose(words))["status"] == "done"
    assert losses(tmp_path / "root") == losses(root)


def test_epochs_cropped_tokens_and_the_wait_are_recorded(whole: tuple[list[str], Path]) -> None:
    """The epoch ends within the run; classic's flat stream crops nothing."""
    more, root = whole
    folder = root / "runs" / "tiny" / "base"
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    result = read_json(folder / "result.json")
    assert float(rows[-1]["epoch"]) == round(result["epoch"], 4) > 2
    assert float(rows[-1]["cropped_fraction"]) == round(result["cropped_fraction"], 4)
    assert (result["cropped_fraction"] == 0) == ("recipe=classic" in more)
    assert all(0 <= float(row["data_wait_fraction"]) <= 1 for row in rows)
    assert 0 <= result["data_wait_fraction"] <= 1
    assert "| cropped_fraction" in (root / "runs" / "tiny" / "report.md").read_text()


def test_a_compiled_modern_run_of_older_versions_says_from_which_step_its_gradients_are_right(
    whole: tuple[list[str], Path], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stored as those versions did on a GPU: no `gradients` in the checkpoint, MFU in metrics.csv.

    The second resume is from a checkpoint of this version, which carries the mark on.
    """
    more, root = whole
    first, second = tmp_path / "first", tmp_path / "second"
    keep_only_checkpoint(root, first, 7)
    base = first / "runs" / "tiny" / "base"
    forget_gradients(base / "checkpoints" / "step_000007")
    header, *rows = (base / "metrics.csv").read_text().splitlines()
    mfu = header.split(",").index("mfu")
    table = [row.split(",") for row in rows]
    lines = [",".join([*cells[:mfu], "0.4", *cells[mfu + 1 :]]) for cells in table]
    (base / "metrics.csv").write_text("\n".join([header, *lines]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "KEPT_CHECKPOINTS", STEPS)
        result = run(compose(overrides(corpus, first, *more)))
    keep_only_checkpoint(first, second, 13)
    again = run(compose(overrides(corpus, second, *more)))
    line = "gradients are correct from step 7 on (before: compiled modern trained with wrong gradients"
    said, modern = capsys.readouterr().out, "recipe=modern" in more
    assert said.count(f"base: {line}") == (2 if modern else 0)
    for folder, last in ((first, result), (second, again)):
        assert last["gradients"]["right_from"] == (7 if modern else 0)
        assert (f"\nG{line[1:]}" in (folder / "runs" / "tiny" / "report.md").read_text()) == modern


def forget_gradients(folder: Path) -> None:
    """Make the checkpoint one of a version that stored no `gradients`."""
    path = folder / "progress.json"
    progress, manifest = read_json(path), read_json(folder / "manifest.json")
    assert progress.pop("gradients") == {"version": 2, "right_from": 0}
    write_json(path, progress)
    manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
    write_json(folder / "manifest.json", manifest)


def test_a_broken_checkpoint_is_skipped_for_the_one_before(
    whole: tuple[list[str], Path], corpus: Path, tmp_path: Path
) -> None:
    more, root = whole
    resumed = tmp_path / "root"
    keep_only_checkpoint(root, resumed, 7)
    folder = resumed / "runs" / "tiny" / "base" / "checkpoints"
    broken = folder / "step_000009"
    broken.mkdir()
    for file in (folder / "step_000007").iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-1])
    with pytest.warns(UserWarning, match="step_000009 is not a complete checkpoint"):
        result = run(compose(overrides(corpus, resumed, *more)))
    assert result["status"] == "done", result
    assert losses(resumed) == losses(root)


def test_a_killed_run_resumes_to_the_same_losses(
    whole: tuple[list[str], Path], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, root = whole
    if "recipe=classic" in more:
        pytest.skip("one recipe is enough for a test that starts processes")
    killed = tmp_path / "root"
    arguments = overrides(corpus, killed, *more)
    process = subprocess.Popen(
        [sys.executable, "-m", "nanolit.train", *arguments],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    folder = killed / "runs" / "tiny" / "base" / "checkpoints"
    deadline = time.monotonic() + 120
    while not any(folder.glob("step_*/manifest.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder.parent / "result.json").exists()
    result = run(compose(arguments))
    assert result["status"] == "done", result
    assert "resuming after step" in capsys.readouterr().out
    assert losses(killed) == losses(root)


def begin(corpus: Path, root: Path, *more: str) -> tuple[subprocess.Popen[str], Path]:
    """Start a run of many steps; return it once it logs, with its stage's folder."""
    arguments = overrides(corpus, root, "max_steps=100000", "eval_every=null", *more)
    process = subprocess.Popen(
        [sys.executable, "-m", "nanolit.train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    metrics = root / "runs" / "tiny" / "base" / "metrics.csv"
    deadline = time.monotonic() + 120
    while (not metrics.exists() or metrics.read_text().count("\n") < 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    return process, metrics.parent


@pytest.mark.parametrize(
    ("number", "ranks"),
    [
        (signal.SIGINT, 1),
        pytest.param(signal.SIGINT, 2, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 1, marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_a_lost_terminal_and_slurms_warning_leave_a_checkpoint_and_one_line(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, ranks: int
) -> None:
    """In a SLURM job of two tasks, which Lightning by itself refuses."""
    if number == signal.SIGUSR1:
        slurm = {"JOB_ID": "5", "NTASKS": "2", "JOB_NAME": "x", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
        for name, value in slurm.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
    process, stage = begin(corpus, tmp_path / "root", f"cluster.devices={ranks}")
    process.send_signal(number)
    _, errors = finish(process, seconds=60)
    assert process.returncode == 130, errors
    assert errors.count("\n") == 1
    assert "resume with: python -m nanolit.train" in errors
    (checkpoint,) = (stage / "checkpoints").iterdir()
    assert (checkpoint / "manifest.json").exists()


@pytest.mark.slow
def test_many_ctrl_c_end_the_run_with_a_true_sentence(corpus: Path, tmp_path: Path) -> None:
    """Whether the first of them still got its checkpoint or not."""
    process, stage = begin(corpus, tmp_path / "root")
    for _ in range(12):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, errors = finish(process, seconds=60)
    assert process.returncode == 130, errors
    assert errors.count("\n") == 1
    whole = sorted(path.parent.name for path in stage.glob("checkpoints/step_*/manifest.json"))
    step = int(whole[-1].removeprefix("step_")) if whole else None
    told = f"after step {step:,}" if step else "at step 1"
    assert f"stopped {told} of" in errors or f"the same command resumes {told}" in errors


def test_two_ranks_train_as_one_and_resume_exactly(
    whole: tuple[list[str], Path], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses of one rank within float tolerance; the resumed run equals its own to the last digit."""
    more, root = whole
    if "recipe=classic" in more:
        pytest.skip("one recipe is enough for a test that starts processes")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    two, resumed, one = tmp_path / "two", tmp_path / "resumed", tmp_path / "one"
    arguments = [*more[:1], "save_every=10", "cluster.devices=2"]
    first = run(compose(overrides(corpus, two, *arguments)))
    assert first["status"] == "done", first
    alone, together = losses(root), losses(two)
    assert [float(together[step]) for step in alone] == pytest.approx(
        [float(loss) for loss in alone.values()], abs=2e-4
    )
    keep_only_checkpoint(two, resumed, 20)
    second = run(compose(overrides(corpus, resumed, *arguments)))
    assert second["status"] == "done", second
    assert losses(resumed) == together
    keep_only_checkpoint(two, one, 20)
    result = run(compose(overrides(corpus, one, *more[:1], "save_every=10")))
    assert result["status"] == "done", result
    assert [float(loss) for loss in losses(one).values()] == pytest.approx(
        [float(loss) for loss in together.values()], abs=2e-4
    )


@pytest.mark.slow
def test_one_rank_then_two_then_one_read_the_same_rows_and_learn_the_same(
    whole: tuple[list[str], Path],
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Oracle: one rank all the way. Tokens, epochs and the share that was cropped tell other rows apart.

    That share is a mean over ranks in float32, written to four digits.
    """
    more, root = whole
    if "recipe=classic" in more:
        pytest.skip("one recipe is enough for a test that starts processes")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    two, one = tmp_path / "two", tmp_path / "one"
    keep_only_checkpoint(root, two, 8)
    words = [more[0], "save_every=16"]
    second = run(compose(overrides(corpus, two, *words, "cluster.devices=2")))
    assert second["status"] == "done", second
    assert "resuming after step 8" in capfd.readouterr().out
    keep_only_checkpoint(two, one, 16)
    result = run(compose(overrides(corpus, one, *words)))
    assert result["status"] == "done", result
    read = "step", "tokens", "epoch"
    assert columns(one, *read) == columns(root, *read)
    cropped = [[float(row[0]) for row in columns(folder, "cropped_fraction")] for folder in (one, root)]
    assert cropped[0] == pytest.approx(cropped[1], abs=2e-4)
    assert [float(loss) for loss in losses(one).values()] == pytest.approx(
        [float(loss) for loss in losses(root).values()], abs=2e-4
    )


def columns(root: Path, *names: str) -> list[list[str]]:
    with (root / "runs" / "tiny" / "base" / "metrics.csv").open(newline="") as file:
        return [[row[name] for name in names] for row in csv.DictReader(file) if row["loss"]]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks through /proc")
def test_a_killed_rank_ends_the_others_soon_and_the_run_goes_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Four ranks, of which the last is killed; two go on, which start sooner."""
    root = tmp_path / "root"
    num_steps = 40  # enough that it is not over before it is killed
    arguments = overrides(corpus, root, f"max_steps={num_steps}", "save_every=5")
    command = [sys.executable, "-m", "nanolit.train", *arguments, "cluster.devices=4"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)
    folder = root / "runs" / "tiny" / "base" / "checkpoints"
    deadline = time.monotonic() + 120
    while not any(folder.glob("step_*/manifest.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(max(ranks_of(process.pid)), signal.SIGKILL)
    killed = time.monotonic()
    output, _ = finish(process, seconds=60)
    assert process.returncode == 1, output
    assert time.monotonic() - killed < 30
    assert "rank 3 was killed by SIGKILL" in output
    assert "Traceback" not in output
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    result = run(compose([*arguments, "cluster.devices=2"]))
    assert result["status"] == "done", result
    assert "resuming after step" in capfd.readouterr().out
    assert sorted(losses(root)) == list(range(1, num_steps + 1))


def ranks_of(pid: int) -> list[int]:
    commands = {child.pid: child.as_dict(["cmdline"])["cmdline"] or [] for child in descendants(pid)}
    return [one for one, words in commands.items() if words[1:3] == ["-u", "-m"] and "run" not in words[3]]
