"""What the launcher refuses, and asks of Modal, before anything runs. The control plane is the fake one."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from launch import commands, remote
from launch.image import unwanted
from launch.uploads import fingerprint, strings
from nanolit.config.compose import compose
from tests.fake_modal.account import Account

pytestmark = pytest.mark.xdist_group("modal")


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
    code, output = laptop.run("nanolit.train", *laptop.overrides("dry", "dry_run=true"))
    assert code == 0, output
    shown = json.loads(output[output.index("\n{") : output.rindex("}") + 1])
    assert shown["functions"]["train"]["gpu"] == "H100!:1"
    assert shown["job"]["run"] == "dry"
    assert shown["job"]["root"] == str(laptop.volume)
    assert "dry was not submitted" in output
    assert "$" in output, "the plan has a price"
    assert all_requests(laptop) == before
    assert not (laptop.root / "runs" / "dry").exists()


def test_a_missing_secret_is_one_line_with_its_command(laptop):
    code, output = laptop.run("nanolit.train", *laptop.overrides("dark", "logger=wandb"))
    assert code == 2, output
    assert "Secret 'wandb' not found" in output
    assert "modal secret create" in output
    assert "Traceback" not in output
    assert laptop.requests("FunctionMap") == []


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
        (["hydra.mode=RUN"], {}, "its launcher submits it"),
        (["max_cost=1e-9"], {}, "above max_cost"),
        (["seed=1"], {"MODAL_IS_REMOTE": "1"}, "never submits one"),
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


def test_every_path_of_a_job_is_seen():
    job = compose(["phase=sft", "model=d2", "data=local", "data.path=/a/b", "start_from=/c/d"])
    found = dict(strings(dict(job)))
    assert found["path"] == "/a/b"
    assert found["start_from"] == "/c/d"


def test_the_doctor_names_what_is_wrong(laptop):
    laptop.run("launch", "put", __file__)
    code, output = laptop.run("launch", "doctor", "--secret", "wandb")
    assert code == 1, output
    assert "token: " in output
    assert "volume nanolit: there" in output
    assert "secret wandb: WRONG: Secret 'wandb' not found" in output


@pytest.mark.slow
def test_the_doctor_tries_a_gpu_in_the_job_image(laptop):
    code, output = laptop.run("launch", "doctor", "--gpu", "T4")
    assert code == 1, "this machine has none"
    assert "GPU T4: WRONG: PyTorch sees no GPU there" in output
    (function,) = [one["function"] for one in laptop.requests("FunctionCreate")]
    assert function["resources"]["gpuConfig"] == {"gpuType": "T4", "count": 1}


def test_only_what_lives_is_billed_up_to_now(monkeypatch, capsys):
    """A call from an hour ago that lives, one that ended after half an hour, and two whose end is unknown."""
    begun = {"stage": "base", "function": "train", "state": "begun", "at": time.time() - 3600}
    ended = {**begun, "state": "done", "ended": begun["at"] + 1800}
    calls = [{**call, "call": name} for call, name in [(begun, "lives"), (ended, "ended"), (begun, "dead")]]
    calls.append({**begun, "call": "other", "state": "lost"})
    submission = {"run": "r", "gpu": "H100!:1", "nodes": 1, "dollars_per_hour": 4.0}
    monkeypatch.setattr(commands, "read_submission", lambda *_: submission)
    monkeypatch.setattr(commands, "calls_of", lambda _: calls)
    monkeypatch.setattr(remote, "lives", lambda call: call == "lives")
    assert commands.cost(commands.OneRun(run="r")) == 0
    out = capsys.readouterr().out
    assert [line.split("|")[-2].strip() for line in out.splitlines()[2:6]] == ["1.00", "0.50", "-", "-"]
    assert "1.50 hours" in out
    assert "about $6.00" in out
    assert "not counted: 2 call(s) whose end is not known" in out


def test_a_call_of_another_submission_that_died_is_lost_and_not_waited_for(monkeypatch):
    calls = remote.Calls.__new__(remote.Calls)
    calls.payload = {"submission": "mine"}
    calls.calls = [
        {"function": "train", "stage": "base", "state": "begun", "submission": "other", "call": "c"}
    ]
    monkeypatch.setattr(remote, "lives", lambda _: False)
    assert calls.live("train", "base") is None
    assert calls.calls[0]["state"] == "lost"


def test_a_run_that_was_not_submitted_is_named(laptop):
    code, output = laptop.run("launch", "attach", "never")
    assert code == 2
    assert "run never was not submitted" in output
