"""Runs on a fake Modal: what happens to them there, and that nothing is lost.

The oracle is the curve of the same job, undisturbed and on this machine.
"""

import json
import os
import signal
import sys
import time

import pytest
import yaml

from launch.remote import margin
from nanolit.machine.system import code_version
from tests.processes import finish, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the fake ends containers through /proc"),
]
STEPS = ("max_steps=16", "save_every=2", "sample_every=4")
SLOW = (*STEPS[:2], "sample_every=1")  # samples take time, and change nothing


def rounded(curve):
    return [(step, round(float(loss), 4)) for step, loss in curve]


@pytest.fixture(scope="module")
def trained(account, reference):
    """The required command on two ranks; its orchestrator is killed in mid-training."""
    words = account.overrides("plain", *STEPS, "cluster.devices=2", cluster="modal_8xh100")
    command = account.start("nanolit.train", *words)
    account.wait_for_step("plain", 2)
    account.end_container("plain", "orchestrate", signal.SIGKILL)
    output, _ = finish(command, seconds=600)
    return command.returncode, output


def test_the_plain_command_trains_on_two_ranks_and_ends_with_its_result(account, trained, reference):
    code, output = trained
    assert code == 0, output
    assert "[plain] base: 16 steps" in output, "the logs carry the run's name"
    assert output.count("FLOPs") == 1, "the plan is shown once, before the log"
    assert "── plain: done at step 16" in output
    assert output.splitlines()[-1].strip().startswith("python -m launch fetch plain downloads it; then ")
    assert rounded(account.curve("plain")) == rounded(reference)


def test_a_killed_orchestrator_comes_back_and_starts_no_second_gpu_call(account, trained):
    orchestrators = [one for one in account.containers("orchestrate", live=False)]
    assert len(orchestrators) == 2
    assert len({call for _, _, call in orchestrators}) == 1, "the same call in another container"
    assert [call["function"] for call in account.calls("plain")] == ["prepare", "train"]
    assert len(account.containers("train", live=False)) == 1


def test_the_requests_are_those_of_the_cluster(account, trained):
    functions = {
        one["function"]["functionName"]: one["function"] for one in account.requests("FunctionCreate")
    }
    train, cpu = functions["train"], [functions["orchestrate"], functions["prepare"]]
    assert train["resources"] == {
        "gpuConfig": {"gpuType": "H100", "count": 2},
        "milliCpu": 32_000,
        "memoryMb": 262_144,
    }
    assert not any("gpuType" in one["resources"].get("gpuConfig", {}) for one in cpu)
    for function in (train, *cpu):
        assert function["timeoutSecs"] == 86_400
        assert function["startupTimeoutSecs"] == 1_800
        assert function["retryPolicy"]["retries"] == 3
        assert function["singleUseContainers"]
        (mount,) = function["volumeMounts"]
        assert (mount["volumeId"], mount["mountPath"]) == ("vo-nanolit", str(account.volume))
    (app,) = account.requests("AppCreate")
    assert app["appState"] == "APP_STATE_DETACHED"
    assert app["tags"] == {"run": "plain", "phase": "base"}


def test_the_volume_is_committed_while_it_trains(account, trained):
    tasks = [
        path.parent.name for path in account.state.glob("tasks/*/process.txt") if "train" in path.read_text()
    ]
    commits = [one for one in account.requests("VolumeCommit") if one["task"] in tasks]
    assert len(commits) >= 2, "while it trains, and once at its end"


def test_the_image_has_locked_dependencies_first_and_the_code_last(account, trained):
    commands = [
        command
        for one in account.requests("ImageGetOrCreate")
        for command in one["image"]["dockerfileCommands"]
        if not command.startswith("FROM base")
    ]
    order = ["FROM python:3.12", "apt-get install", "uv sync", "/root/.cargo/env", "COPY . /"]
    places = [next(i for i, command in enumerate(commands) if word in command) for word in order[:4]]
    assert places == sorted(places)
    assert "--frozen" in commands[places[2]]
    assert "--extra=cudnn" in commands[places[2]], "the speeds that are published are those of its attention"
    assert commands[-1] == "COPY . /"


def test_nothing_but_code_is_sent(account, trained):
    sent = [file["filename"] for one in account.requests("MountGetOrCreate") for file in one.get("files", [])]
    assert "/root/nanolit/train.py" in sent
    assert "/root/launch/remote.py" in sent
    assert "/root/nanolit/data/sample/train.parquet" in sent
    assert "/src/rustbpe/Cargo.lock" in sent
    junk = (".git", "__pycache__", "/target/", "/runs/", ".env", "secret", ".pyc", ".so")
    assert [name for name in sent if any(word in name for word in junk)] == []


def test_left_by_its_client_preempted_and_crashed_it_goes_on_to_the_same_curve(account, reference):
    client = account.start("nanolit.train", *account.overrides("hard", *SLOW, "logger=wandb", "offline=true"))
    account.wait_for_step("hard", 1)
    os.killpg(client.pid, signal.SIGINT)
    output, _ = finish(client, seconds=100)
    assert client.returncode == 130, output
    assert "hard continues; python -m launch attach hard" in output
    account.end_container("hard", "train", signal.SIGINT)  # how Modal preempts
    account.wait_for_step("hard", account.curve("hard")[-1][0] + 1)
    account.end_container("hard", "train", signal.SIGKILL)  # the machine is gone
    code, output = account.run("launch", "attach", "hard")
    assert code == 0, output
    assert "── hard: done at step 16" in output
    assert output.count("base: resuming after step") == 2, output
    assert account.curve("hard") == reference
    written = (account.volume / "runs" / "hard" / "base" / "wandb").glob("offline-run-*")
    runs = [folder.name.split("-", 3)[3] for folder in written]
    assert len(runs) == 3, "a container each"
    assert len(set(runs)) == 1, "one run of W&B"


def test_what_was_made_there_comes_here(account, reference):
    """Of the run above: the release, the report, the metrics, not the checkpoints."""
    code, output = account.run("launch", "fetch", "hard")
    assert code == 0, output
    folder = account.root / "runs" / "hard"
    assert (folder / "base" / "release" / "model.safetensors").stat().st_size > 1_000_000
    assert json.loads((folder / "base" / "release" / "meta.json").read_text())["code"] == code_version()
    assert not (folder / "base" / "checkpoints").exists()
    assert account.curve("hard", root=account.root) == reference
    assert "hard: done at step 16" in account.run("launch", "status", "hard")[1]
    assert "base" in account.run("launch", "cost", "hard")[1]
    assert "base: 16 steps" in account.run("launch", "logs", "hard")[1]


def test_identity_alone_is_taught_from_a_base_there_with_a_file_from_here(account, reference, tmp_path):
    """Begins from the run above; the mixture names a file of the laptop, which is uploaded."""
    told = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A test."}]
    (tmp_path / "me.jsonl").write_text("".join(json.dumps({"messages": told}) + "\n" for _ in range(40)))
    sums = "{_target_: nanolit.tasks.sums.Sums, split: test, size: 8}"
    identity = f"{{_target_: nanolit.tasks.identity.Identity, path: {tmp_path}/me.jsonl}}"
    (tmp_path / "mix.yaml").write_text(f"mirror: sample\nsources: [{identity}]\nvalidation: [{sums}]\n")
    (tmp_path / "ask.yaml").write_text(f"mirror: sample\nmax_tokens: 8\ntasks: [{sums}]\n")
    files = [f"stage.sft.mixture={tmp_path}/mix.yaml", f"chat_tasks={tmp_path}/ask.yaml"]
    words = [one for one in account.overrides("taught", "max_steps=2", *files) if one != "phase=base"]
    code, output = account.run("nanolit.train", "phase=identity", "start_from=hard", *words)
    assert code == 0, output
    assert "[taught] sft: 2 steps from hard/base" in output
    (uploaded,) = account.volume.glob("uploads/*/me.jsonl")
    job = (account.volume / "runs" / "taught" / "sft" / "job.yaml").read_text()
    assert str(uploaded) in job
    assert str(tmp_path) not in job.partition("overrides:")[0]


def test_a_time_limit_of_half_a_minute_and_a_dead_client_lose_nothing(account, reference):
    """Held up after its first step until the limit is over; the limit grows where this machine is slow."""
    limit = max(30, round(1.7 * account.seconds))
    client = account.start(
        "nanolit.train", *account.overrides("short", *SLOW, f"hydra.launcher.timeout={limit}")
    )
    wait_until(lambda: bool(account.calls("short")), seconds=100)
    os.killpg(client.pid, signal.SIGKILL)
    client.communicate()
    account.wait_for_step("short", 1)
    rank = account.rank_of("short")
    os.kill(rank, signal.SIGSTOP)
    begun = next(call["at"] for call in account.calls("short") if call["function"] == "train")
    time.sleep(max(0, begun + limit - margin(limit) + 3 - time.time()))
    os.kill(rank, signal.SIGCONT)
    code, output = account.run("launch", "attach", "short")
    assert code == 0, output
    states = [call["state"] for call in account.calls("short") if call["function"] == "train"]
    assert (states[0], states[-1]) == ("unfinished", "done")
    assert account.curve("short") == reference


def test_a_sweep_runs_side_by_side_and_a_failed_rank_is_told_once(account, reference):
    words = account.overrides("swept-${seed}", *STEPS, "seed=1,2")
    sweep = account.start("nanolit.train", *words)
    account.wait_for_step("swept-2", 1)
    os.kill(account.rank_of("swept-2"), signal.SIGKILL)
    output, _ = finish(sweep, seconds=600)
    assert sweep.returncode == 1, output
    assert "── swept-1: done at step 16" in output
    assert output.count("base ended with exit code -9") == 2, "when it happens, and at the end"
    assert len([call for call in account.calls("swept-2") if call["function"] == "train"]) == 1
    assert account.curve("swept-1") == reference


def test_optuna_minimizes_what_jobs_there_return(account, reference):
    pytest.importorskip("optuna", reason="needs the extra optuna")
    words = [one for one in account.overrides("", "max_steps=2", "seed=1") if one != "run="]
    sweeper = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.direction=minimize"]
    code, output = account.run("nanolit.train", *words, *sweeper, "stage.base.lr_scale=interval(0.5,1.5)")
    assert code == 0, output
    best = yaml.safe_load((account.root / "sweeps" / "optimization_results.yaml").read_text())
    results = [json.loads(path.read_text()) for path in account.volume.glob("runs/d2-*/base/result.json")]
    assert len(results) == 2
    assert best["best_value"] == min(result["val_bpb"] for result in results)


def test_a_stopped_run_leaves_a_checkpoint_and_no_machine(account, reference):
    code, output = account.run("nanolit.train", *account.overrides("halted", "max_steps=500", "wait=false"))
    assert code == 0, output
    account.wait_for_step("halted", 3)
    logs = account.start("launch", "logs", "-f", "halted")
    code, output = account.run("launch", "stop", "halted")
    assert code == 0, output
    wait_until(lambda: not account.containers(), seconds=30)
    assert list((account.volume / "runs" / "halted" / "base" / "checkpoints").glob("step_*/manifest.json"))
    assert "stopped: base at step" in account.run("launch", "status")[1]
    assert "stopped: base at step" in account.run("launch", "status", "halted")[1]
    call = account.calls("halted")[-1]
    assert (call["function"], call["state"]) == ("train", "stopped")
    assert call["at"] < call["ended"] < time.time(), "what it cost is over"
    output, _ = finish(logs, seconds=60)
    assert "base" in output, "logs -f tells what is trained, and ends with the run"


def test_max_cost_holds_while_it_trains_and_more_money_resumes(account, reference):
    """Planned: 75 seconds of starting, $0.101. Of $0.104 that leaves some 17 s before the reserve."""
    words = account.overrides("dear", "max_steps=20000", "save_every=5000", "sample_every=20000")
    code, output = account.run("nanolit.train", *words, "max_cost=0.104")
    assert code == 1, output
    assert "of max_cost=0.104; the same command with a larger max_cost resumes" in output
    assert len([call for call in account.calls("dear") if call["function"] == "train"]) == 1
    (saved,) = (account.volume / "runs" / "dear" / "base" / "checkpoints").glob("step_*/manifest.json")
    code, output = account.run("nanolit.train", *words, "max_cost=0.15")
    assert code == 1, output
    assert f"resuming after step {int(saved.parent.name[5:]):,}" in output


def test_a_mistake_of_the_user_is_told_once_and_takes_no_gpu(account, reference):
    words = [one for one in account.overrides("lost") if one != "phase=base" and "stage.base" not in one]
    before = len(account.containers("train", live=False))
    code, output = account.run("nanolit.train", "phase=sft", *words, "total_batch=64")
    assert code == 1, output
    assert "sft needs the finished base of run lost" in output
    assert len(account.containers("train", live=False)) == before
    assert json.loads((account.root / "runs" / "lost" / "submission.json").read_text())["run"] == "lost"
