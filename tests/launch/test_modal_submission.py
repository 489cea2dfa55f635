"""What the launcher refuses, and asks of Modal, before anything runs. The control plane is the fake one."""

import contextlib
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import modal
import pytest
from hydra_plugins.nanolit_modal.launcher import plain

from launch import calls, commands, remote, spending, uploads
from launch.compile_cache import CompileCache
from launch.image import unwanted
from launch.sweep import remarks, shares
from launch.uploads import fingerprint
from nanolit.config.compose import CONVERSATIONS, compose, compose_config
from nanolit.planning.plans import fresh_plans, total
from tests.fake_modal.account import Account


@pytest.fixture(scope="module")
def laptop(tmp_path_factory):
    """An account of its own, so that what no request was made for can be said."""
    account = Account(tmp_path_factory.mktemp("laptop"), secrets={})
    yield account
    account.close()


def all_requests(account: Account) -> str:
    path = account.state / "rpc.jsonl"
    return path.read_text() if path.exists() else ""


def test_a_dry_run_shows_the_job_and_makes_no_call(laptop):
    before = all_requests(laptop)
    words = laptop.overrides("dry", "dry_run=true", "hydra.launcher.show_request=true")
    code, output = laptop.run("nanolit.train", *words)
    assert code == 0, output
    shown = json.loads(output[output.index("\n{") : output.rindex("}") + 1])
    assert shown["functions"]["train"]["gpu"] == "H100:1"
    assert shown["job"]["run"] == "dry"
    assert shown["job"]["root"] == str(laptop.volume)
    assert "dry not submitted" in output
    assert "$" in output, "the plan has a price"
    assert all_requests(laptop) == before
    assert not (laptop.root / "runs" / "dry").exists()


def test_a_missing_secret_is_one_line_with_its_command(laptop):
    code, output = laptop.run("nanolit.train", *laptop.overrides("dark", "logger=wandb"))
    assert code == 2, output
    assert "create it with: modal secret create wandb WANDB_API_KEY=VALUE" in output
    assert "Traceback" not in output
    assert laptop.requests("AppCreate") == [], "the image does not begin to build"


def test_no_token_is_one_line(laptop):
    words = laptop.overrides("nobody")
    code, output = laptop.run("nanolit.train", *words, MODAL_TOKEN_ID="", MODAL_TOKEN_SECRET="")
    assert code == 2, output
    assert "modal token new" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (["cluster=local,modal_h100"], {}, "modal_h100 does not run on this machine"),
        (["cluster=modal_h100,modal_a10g"], {}, "modal_h100 does not run on this machine"),
        (["hydra.mode=RUN"], {}, "its launcher submits jobs"),
        (["max_cost=1e-9"], {}, "above max_cost"),
        (["seed=1"], {"MODAL_IS_REMOTE": "1"}, "cannot submit any"),
        (["cluster.devices=4", "hydra.launcher.gpu=H100"], {}, "give both the same number"),
        (["hydra.launcher.gpu=T4"], {}, "cluster.gpu=H100 is planned and priced; give both the same GPU"),
        (["wait=false", "run=no-${seed}", "seed=1,2", "hydra.launcher.max_parallel=1"], {}, "max_parallel"),
        (["data=local", "data.path=/nowhere/at/all", "data.text_column=text"], {}, "does not exist"),
    ],
)
def test_what_cannot_be_submitted_is_refused_without_a_call(laptop, words, environment, message):
    given = {word.partition("=")[0] for word in words}
    kept = [one for one in laptop.overrides("no") if one.partition("=")[0] not in given]
    if any(word.startswith("cluster=") for word in words):
        kept = [one for one in kept if not one.startswith("hydra.")]  # the keys of one launcher
    before = all_requests(laptop)
    code, output = laptop.run("nanolit.train", *kept, *words, "dry_run=true", **environment)
    assert code == 2, output
    assert message in output
    assert "Traceback" not in output
    assert all_requests(laptop) == before


def test_there_is_no_folder_with_a_time_in_its_name(laptop):
    laptop.run("nanolit.train", *laptop.overrides("dry", "dry_run=true"))
    assert sorted(path.name for path in laptop.root.iterdir()) == ["sweeps"]


@pytest.mark.parametrize(
    "name",
    [
        ".env",
        ".git/config",
        "data/.cache/x.json",
        "__pycache__/a.py",
        "a.pyc",
        "_rustbpe.abi3.so",
        "target/x.rs",
        "runs/demo/job.yaml",
        "key.pem",
        "modal_secrets.json",
        "model.safetensors",
        "core",
    ],
)
def test_junk_and_secrets_stay_here(name):
    assert unwanted(Path(name))


def test_every_file_of_the_code_is_sent():
    """The oracle is what git tracks of the folders that the image has."""
    root = Path(__file__).resolve().parent.parent.parent
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "nanolit", "launch", "conf", "rustbpe"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert listed
    assert [name for name in listed if unwanted(Path(*Path(name).parts[1:]))] == []


def test_a_local_folder_is_uploaded_once_and_named_by_its_content(laptop, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "val.parquet").write_bytes(b"held out")
    (folder / "train.parquet").write_bytes(b"text" * 1000)
    code, output = laptop.run("launch", "put", str(folder), f"uploads/{fingerprint(folder)}/texts")
    assert code == 0, output
    there = laptop.state / "volumes" / "nanolit" / "uploads" / fingerprint(folder) / "texts"
    assert (there / "train.parquet").read_bytes() == b"text" * 1000
    (folder / "train.parquet").write_bytes(b"other")
    assert not (laptop.state / "volumes" / "nanolit" / "uploads" / fingerprint(folder)).exists()


def test_a_job_finds_there_the_paths_that_it_finds_here(monkeypatch, tmp_path):
    """Oracle: find_file, and start_from: `run` is a run, not the folder beside it."""
    monkeypatch.setattr(uploads, "upload", lambda path, settings: f"/vol/uploads/{path}")
    monkeypatch.chdir(tmp_path)
    for name in ("mine.jsonl.gz", "mirror/chat/more.json", "chat/chat-test", "run/x", "release/gpt.json"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text('{"vocab_size": 300}')
    files = {
        ("mine", "."): ("/vol/uploads/mine.jsonl.gz", None),
        ("chat/more", "mirror"): ("chat/more", "/vol/uploads/mirror"),
        ("chat/chat-test", "stories"): ("chat/chat-test", "stories"),
        ("chat/x", "/vol/mirror"): ("chat/x", "/vol/mirror"),
    }
    settings = {"root": "/vol", "volumes": {}}
    for (path, source), there in files.items():
        node = {"_target_": CONVERSATIONS, "path": path, "source": source}
        (moved,) = uploads.upload_paths({"sources": [node]}, settings)["sources"]
        assert (moved["path"], moved.get("source")) == there
    job = compose(["phase=sft", "model=d2", "data=local", "data.path=mirror", "start_from=release"])
    sent = uploads.upload_paths(job, settings)
    assert (sent["data"]["path"], sent["start_from"]) == ("/vol/uploads/mirror", "/vol/uploads/release")
    assert uploads.upload_paths({**job, "start_from": "run"}, settings)["start_from"] == "run"
    with pytest.raises(ValueError, match="start_from=/c/d is neither on this machine"):
        uploads.upload_paths({**job, "start_from": "/c/d"}, settings)


def test_the_doctor_names_what_is_wrong(laptop):
    laptop.run("launch", "put", __file__)
    code, output = laptop.run("launch", "doctor", "--secret", "wandb")
    assert code == 1, output
    assert "token: " in output
    assert "volume nanolit: there" in output
    assert (
        "volume new: does not exist yet; the first submission creates it"
        in laptop.run("launch", "doctor", "--volume", "new")[1]
    )
    assert "secret wandb: WRONG: Secret 'wandb' not found" in output


@pytest.mark.slow
def test_the_doctor_tries_a_gpu_in_the_job_image(laptop):
    code, output = laptop.run("launch", "doctor", "--gpu", "T4")
    assert code == 1, "this machine has none"
    assert "GPU T4: WRONG: PyTorch sees no GPU there" in output
    (function,) = [one["function"] for one in laptop.requests("FunctionCreate")]
    assert function["resources"]["gpuConfig"] == {"gpuType": "T4", "count": 1}


def stands(laptop: Account, run: str, files: dict[str, object], *, price: float = 36.0) -> str:
    """What `status` says of a run that is submitted and alive, with these files on its volume."""
    folder = laptop.state / "volumes" / "nanolit" / "runs" / run
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    submission = {"run": run, "volume": "nanolit", "environment": None, "gpu": "H100:8", "nodes": 1}
    submission |= {"dollars_per_hour": price, "app": "ap-1", "call": "fc-1", "stages": ["base"]}
    submission |= {"dashboard": "https://modal.com/id/ap-1", "submitted": "2026-11-30T00:00:00Z"}
    path = laptop.root / "runs" / run / "submission.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(submission))
    script = (
        "from launch import progress; from launch.submit import read_submission; "
        f"print(progress.progress(progress.OnVolume(read_submission({str(laptop.root)!r}, {run!r}))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=laptop.environment(), capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_status_tells_step_loss_time_left_and_dollars(laptop):
    """Ten steps of two seconds, an hour of GPUs: 90 steps are left, so three minutes."""
    begun = time.time() - 3600
    rows = [f"{step},3.{step:03},{2 * step},1000" for step in range(1, 11)]
    files = {
        "calls.json": {"calls": [{"stage": "base", "function": "train", "state": "begun", "at": begun - 99}]},
        "gpu_seconds.json": {"seconds": {str(begun): 3600.0}},
        "base/metrics.csv": "\n".join(["step,loss,seconds,tokens_per_second", *rows]) + "\n",
        "base/plan.json": {"num_steps": 100},
    }
    assert stands(laptop, "going", files) == (
        "base: step 10 of 100, loss 3.010, 1,000 tokens/s, 3:00 left, $36.00 so far; checkpoint: none\n"
    )


def test_the_status_tells_that_a_run_waits_for_its_gpus(laptop):
    call = {"stage": "base", "function": "train", "state": "begun", "at": time.time() - 192}
    said = stands(laptop, "queued", {"calls.json": {"calls": [call]}})
    assert said.startswith("base: waiting for H100:8, or starting, for 3:")


def test_a_result_that_modal_keeps_no_longer_is_that_of_the_volume(monkeypatch, tmp_path):
    """Modal forgets what a call returned after some days."""

    def expired(submission, *, timeout):
        raise modal.exception.OutputExpiredError("expired")

    files = {"base/result.json": {"status": "done", "step": 16}}
    monkeypatch.setattr(commands, "wait", expired)
    monkeypatch.setattr(
        commands, "OnVolume", lambda _: SimpleNamespace(json=lambda name: files.get(name, {}))
    )
    submission = {"run": "old", "app": "ap-1", "stages": ["base"]}
    assert commands.state(submission, tmp_path) == "done at step 16"
    files.clear()
    assert commands.state(submission, tmp_path) == "ended by Modal (OutputExpiredError)"


@pytest.mark.parametrize(
    ("words", "remark"),
    [
        (["cluster=modal_a10g", "model=d26"], "29 time limits of 24 hours, each resumed by the next"),
        (["cluster=modal_2x8xh100"], "16 GPUs at once: Modal's Starter plan has 10, Team 50"),
        (["cluster=modal_2x8xh100"], "Modal must enable this for your workspace"),
        (["cluster=modal_8xh100", "cluster.devices=2"], "are rented for 2 GPU(s); cluster.cpu=8 "),
        (
            ["cluster=modal_h100", "hydra.launcher.gpu=[H100,H200]"],
            "at most $5.43 per hour, whichever it gets",
        ),
    ],
)
def test_a_plan_says_what_it_will_meet_at_modal(words, remark):
    launcher = compose_config(words).hydra.launcher
    settings = {key: plain(value) for key, value in launcher.items() if key != "_target_"}
    job = compose(["phase=base", *(word for word in words if not word.startswith("hydra"))])
    assert remark in "\n".join(remarks([(job, fresh_plans(job))], settings))


def test_a_meter_adds_up_machines_and_keeps_to_max_cost(tmp_path):
    """An hour of an earlier machine at $4: of $5, a quarter of an hour is left, less the reserve."""
    (tmp_path / spending.FILE).write_text(json.dumps({"seconds": {"1.0": 3600.0}}))
    meter = spending.Meter(tmp_path)
    left = meter.seconds_left(5.0, 4.0)
    assert left == pytest.approx(900 - spending.RESERVE_SECONDS, abs=2)
    assert meter.seconds_left(None, 4.0) == math.inf
    meter.keep()
    assert set(json.loads((tmp_path / spending.FILE).read_text())["seconds"]) == {"1.0", f"{meter.begun:.3f}"}


def test_compiled_kernels_come_back_on_the_next_machine(tmp_path):
    first = CompileCache(tmp_path / "vol", tmp_path / "first", model="d12")
    first.keep()
    assert not first.path.exists(), "nothing was compiled"
    (tmp_path / "first" / "triton" / "ab").mkdir(parents=True)
    (tmp_path / "first" / "triton" / "ab" / "kernel.cubin").write_bytes(b"code")
    first.keep()
    second = CompileCache(tmp_path / "vol", tmp_path / "second", model="d12")
    assert (Path(second.environment["TRITON_CACHE_DIR"]) / "ab" / "kernel.cubin").read_bytes() == b"code"
    written = second.path.stat().st_mtime_ns
    second.keep()
    assert second.path.stat().st_mtime_ns == written, "nothing new"


def test_of_two_that_find_a_dead_claim_one_gets_the_stage(monkeypatch):
    """A Dict of Modal's is modelled by its two documented rules: put refuses what exists, get reads it."""

    class Claims(dict):
        def put(self, key, value, *, skip_if_exists):
            assert skip_if_exists
            new = key not in self
            self.setdefault(key, value)
            return new

    claims, alive = Claims(), {"a", "b", "c"}
    monkeypatch.setattr(calls.modal.Dict, "from_name", lambda *_, **__: claims)
    monkeypatch.setattr(calls, "lives", lambda call: call in alive)

    def claimed(call):
        monkeypatch.setattr(calls.modal, "current_function_call_id", lambda: call)
        return calls.claimed("run/base", environment=None)

    assert [claimed("a"), claimed("a"), claimed("b")] == [None, None, "a"]
    alive.remove("a")
    assert [claimed("b"), claimed("c"), claimed("b")] == [None, "b", None]


def test_a_sweep_shares_max_cost_by_what_its_jobs_are_planned_to_cost():
    jobs = [compose(["cluster=modal_h100", f"model={model}", "max_cost=100"]) for model in ("d12", "d20")]
    shared = [job["max_cost"] for job in shares(jobs)]
    planned = [total([*fresh_plans(job).values()])[1] for job in jobs]
    assert sum(shared) == pytest.approx(100)
    assert shared[0] / shared[1] == pytest.approx(planned[0] / planned[1])


def test_a_call_of_another_submission_that_died_is_lost_and_not_waited_for(monkeypatch):
    orchestrator = calls.Calls.__new__(calls.Calls)
    orchestrator.payload = {"submission": "mine"}
    orchestrator.calls = [
        {"function": "train", "stage": "base", "state": "begun", "submission": "other", "call": "c"}
    ]
    monkeypatch.setattr(calls, "lives", lambda _: False)
    assert orchestrator.live("train", "base") is None
    assert orchestrator.calls[0]["state"] == "lost"


@pytest.mark.parametrize(
    ("limits", "ended"),
    [
        ([0, None, 0], "failed"),
        ([500, None, 500, None, 500], "failed"),
        ([0, 500, None, 500, 900, None, 900], None),
    ],
)
def test_two_time_limits_without_a_step_end_a_run(limits, ended, monkeypatch, tmp_path):
    """None: the orchestrator hands over, which happens about as often as a limit is reached."""
    results = iter([step if step is None else {"status": "unfinished", "step": step} for step in limits])

    def get(timeout):
        if (result := next(results, None)) is None:
            raise TimeoutError
        return result

    call = SimpleNamespace(object_id="fc-1", get=get, spawn=lambda *_: call)
    for kind in (modal.Function, modal.FunctionCall):
        monkeypatch.setattr(kind, "from_id", lambda _: call)
    monkeypatch.setattr(calls, "volume_of", lambda _: SimpleNamespace(commit=lambda: None))
    payload = {"job": {"root": str(tmp_path), "run": "r"}, "submission": "s", "timeout": 86_400}
    payload["functions"] = {"train": "fu-1"}
    for _ in range(1 + limits.count(None)):
        result = remote.run_step(calls.Calls(payload), "train", "base", deadline=0)
    assert (result and result["status"]) == ended


def test_a_stage_that_is_killed_at_its_time_limit_has_the_step_of_its_checkpoint(monkeypatch, tmp_path):
    manifest = tmp_path / "runs" / "r" / "base" / "checkpoints" / "step_000500" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    graces = []

    def stage_in_time(payload, stage, seconds, environment, *, grace):
        graces.append(grace)
        return {"status": "failed", "error": "base ended without a result"}, True

    monkeypatch.setattr(remote, "claimed", lambda *_, **__: None)
    monkeypatch.setattr(remote, "commits", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(remote, "stage_in_time", stage_in_time)
    job = {"root": str(tmp_path), "run": "r", "cluster": {"nodes": 1}, "model": {"depth": 2}}
    payload = {"volume": "v", "environment": None, "dollars_per_hour": 1.0, "timeout": 86_400}
    result = remote.train({**payload, "job": {**job, "max_cost": None}}, "base")
    assert (result["status"], result["step"]) == ("unfinished", 500)
    assert remote.train({**payload, "job": {**job, "max_cost": 1.0}}, "base")["status"] == "failed"
    assert graces == [540, spending.RESERVE_SECONDS]


@pytest.mark.parametrize(("node", "raised"), [("0", True), ("1", False)])
def test_ranks_that_stop_because_the_first_machine_does_are_no_preemption(
    node, raised, monkeypatch, tmp_path
):
    """Modal gives a preempted machine's input to another one."""
    result = {"status": "interrupted", "run": "r"}
    monkeypatch.setattr(remote, "place_of_node", lambda _: {"NANOLIT_NODE_RANK": node})
    monkeypatch.setattr(remote, "claimed", lambda *_, **__: None)
    monkeypatch.setattr(remote, "commits", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(remote, "stage_in_time", lambda *_, **__: (result, False))
    job = {"root": str(tmp_path), "run": "r", "model": {"depth": 2}, "max_cost": None}
    payload = {"job": job, "volume": "v", "environment": None, "dollars_per_hour": 1.0, "timeout": 100}
    with pytest.raises(KeyboardInterrupt) if raised else contextlib.nullcontext():
        assert remote.train(payload, "base") == result


def test_a_run_that_was_not_submitted_is_named(laptop):
    code, output = laptop.run("launch", "attach", "never")
    assert code == 2
    assert "run never was not submitted" in output
