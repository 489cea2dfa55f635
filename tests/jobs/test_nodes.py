"""A job on several machines, and on machines that somebody else hands out."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nanolit.config.compose import compose
from nanolit.jobs.execute import run
from nanolit.machine.paths import read_json, stage_folder
from tests.jobs.test_execute import TINY as TWO_STEPS
from tests.jobs.tiny_runs import losses
from tests.processes import finish, finish_all, free_ports

TINY = [one.replace("max_steps=2", "max_steps=4") for one in TWO_STEPS]
NODE = ("NANOLIT_NODE_RANK", "NANOLIT_MASTER_ADDR", "NANOLIT_MASTER_PORT")


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    for name in NODE:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> dict[int, str]:
    """The losses of one process on one device: the oracle of all that follows."""
    root = tmp_path_factory.mktemp("one")
    assert run(compose([*TINY, f"root={root}"]))["status"] == "done"
    return losses(root)


def start(arguments: list[str], **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "nanolit.train", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def assert_same(root: Path, expected: dict[int, str]) -> None:
    found = losses(root)
    assert found.keys() == expected.keys()
    for step, loss in found.items():
        assert float(loss) == pytest.approx(float(expected[step]), abs=2e-5)


@pytest.mark.slow
def test_two_machines_learn_what_one_process_learns(tmp_path, one_process):
    """Two machines on loopback, gloo; the machines share the root, and only the first writes to it."""
    arguments = [*TINY, f"root={tmp_path}", "cluster.nodes=2"]
    address = {"NANOLIT_MASTER_ADDR": "localhost", "NANOLIT_MASTER_PORT": str(free_ports(2))}
    nodes = [start(arguments, NANOLIT_NODE_RANK=str(rank), **address) for rank in (1, 0)]
    outputs = finish_all(nodes, seconds=300)
    assert (
        f"base: machine 1 waits for the first at localhost:{int(address['NANOLIT_MASTER_PORT']) + 1}"
        in outputs[0][0]
    )
    assert "NANOLIT_MASTER_ADDR=localhost is 127.0.0.1, which no other machine can reach" in outputs[1][0]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert_same(tmp_path, one_process)
    plan = read_json(stage_folder(tmp_path, "tiny", "base") / "plan.json")
    assert (plan["ranks"], plan["accumulation"] * plan["micro_batch"]) == (2, plan["rows"] // 2)


@pytest.mark.slow
def test_submitit_runs_a_slurm_job_and_its_ranks(tmp_path, one_process):
    """hydra-submitit-launcher's local executor in the place of sbatch; the rest is cluster=slurm_8xgpu."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    executor = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher"
    local = ["cluster=slurm_8xgpu", "hydra/launcher=submitit_local", "hydra.launcher.gpus_per_node=0"]
    local.append(f"hydra.launcher._target_={executor}")
    job = start([*TINY, f"root={tmp_path}", *local, "cluster.gpu=cpu", "cluster.devices=2"])
    output, _ = finish(job, seconds=300)
    assert job.returncode == 0, output
    assert_same(tmp_path, one_process)
    assert read_json(stage_folder(tmp_path, "tiny", "base") / "plan.json")["ranks"] == 2


@pytest.mark.slow
def test_the_readmes_torchrun_learns_the_same(tmp_path, one_process):
    """`torchrun --standalone --nproc-per-node=2 -m nanolit.train … cluster.devices=2`, by torchrun itself."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "nanolit.train", *TINY, f"root={tmp_path}", "cluster.devices=2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path, one_process)


def test_several_machines_must_say_which_they_are(tmp_path, monkeypatch):
    job = compose([*TINY, f"root={tmp_path}", "cluster.nodes=2"])
    for rank in ("", "2", "x"):
        monkeypatch.setenv("NANOLIT_NODE_RANK", rank)
        error = run(job)["error"]
        assert "NANOLIT_NODE_RANK=0 to 1" in error
        assert "\n" not in error
    assert not (tmp_path / "runs").exists()


def test_a_first_machine_that_cannot_listen_says_what_to_give(tmp_path, monkeypatch):
    """192.0.2.1 is nobody's address (RFC 5737)."""
    for name, value in zip(NODE, ("0", "192.0.2.1", "29511"), strict=True):
        monkeypatch.setenv(name, value)
    error = run(compose([*TINY, f"root={tmp_path}", "cluster.nodes=2"]))["error"]
    assert "ranks can't meet at 192.0.2.1:" in error
    assert "NANOLIT_MASTER_ADDR" in error


def test_a_first_machine_whose_port_is_taken_says_so_before_any_work(tmp_path, monkeypatch):
    first = free_ports(2)
    with socket.create_server(("localhost", first + 1)):  # the base's
        for name, value in zip(NODE, ("0", "localhost", str(first)), strict=True):
            monkeypatch.setenv(name, value)
        error = run(compose([*TINY, f"root={tmp_path}", "cluster.nodes=2"]))["error"]
    assert f"ranks can't meet at localhost:{first + 1} (Address already in use); give" in error
    assert not (tmp_path / "tokenizers").exists()


@pytest.fixture
def sbatch(tmp_path) -> dict[str, str]:
    """A PATH with an sbatch that keeps what it is given, and refuses it."""
    for name, line in (("sbatch", f"cp $1 {tmp_path}/submitted; exit 1"), ("srun", "")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


def test_a_slurm_job_asks_for_the_clusters_devices(tmp_path, sbatch):
    job = start([*TINY, f"root={tmp_path}", "cluster=slurm_8xgpu", "cluster.devices=4"], **sbatch)
    output, _ = finish(job, seconds=120)
    assert "tiny · base" in output, "the plan is shown first"
    asked = (tmp_path / "submitted").read_text()
    assert "#SBATCH --gpus-per-node=4" in asked
    assert "#SBATCH --nodes=1" in asked


@pytest.mark.parametrize(
    ("word", "code", "said"),
    [
        ("dry_run=true", 0, "tiny · base"),
        ("cluster.nodes=2", 2, "gives each job one node; give cluster.nodes=1"),
        ("wait=false", 2, "wait=false is for cluster=modal_*"),
        ("cluster.devices=5", 2, "base can't divide its text among 5 devices"),
    ],
)
def test_what_slurm_is_not_to_run_is_not_submitted(tmp_path, sbatch, word, code, said):
    job = start([*TINY, f"root={tmp_path}", "cluster=slurm_8xgpu", "cluster.devices=4", word], **sbatch)
    output, _ = finish(job, seconds=120)
    assert job.returncode == code, output
    assert said in output
    assert not (tmp_path / "submitted").exists()


def test_a_slurm_job_is_refused_outside_slurm(tmp_path):
    job = start([*TINY, f"root={tmp_path}", "cluster=slurm_8xgpu", "hydra.mode=RUN"])
    output, _ = finish(job, seconds=120)
    assert job.returncode == 2
    assert "cluster=slurm_8xgpu does not run on this machine" in output
