"""Ranks of one machine listen on loopback alone, and end with their parent; the first that fails is named."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest

from nanolit.config.compose import compose
from nanolit.jobs import ranks, worker
from nanolit.jobs.ranks import LEFT, Node, first_of, run_together
from nanolit.machine.paths import stage_folder, write_json
from nanolit.planning.plans import fresh_plan
from tests.jobs.test_execute import TINY
from tests.processes import finish, free_ports
from tests.ranks import run_ranks

TOLD = -signal.SIGTERM


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        ([LEFT, LEFT, None, -signal.SIGKILL], "rank 3 was killed by SIGKILL, the first to end"),
        ([None, 1, LEFT, LEFT], "rank 1 ended with code 1, the first to end"),
        ([LEFT, None], f"rank 0 ended with code {LEFT}, the first to end"),
    ],
)
def test_the_rank_that_began_it_is_named(codes: list[int | None], said: str) -> None:
    assert first_of(codes) == said


def test_a_stop_while_the_ranks_end_is_not_forgotten(tmp_path: Path, monkeypatch) -> None:
    """Rank 0 has written the stage's result; W&B may take seconds to send the rest of its run."""
    job = compose([*TINY, f"root={tmp_path}", "cluster.devices=2"])

    def stopped(*_, **__) -> str:
        write_json(
            stage_folder(tmp_path, "tiny", "base") / "result.json", {"status": "done", "stage": "base"}
        )
        raise KeyboardInterrupt

    monkeypatch.setattr(ranks, "run_together", stopped)
    result = ranks.run_ranks(job, fresh_plan(job, "base"), tmp_path, node=Node())
    assert (result["status"], result["asked_to_stop"]) == ("done", True)


def test_when_one_rank_fails_the_others_are_stopped(capfd: pytest.CaptureFixture[str]) -> None:
    code = "import os, time; time.sleep(0.3); os._exit(3) if os.environ['RANK'] == '1' else time.sleep(60)"
    begun = time.monotonic()
    failure = run_together([sys.executable, "-c", code], devices=3, nodes=1, node=Node())
    assert failure == "rank 1 ended with code 3, the first to end"
    assert time.monotonic() - begun < 20
    assert failure in capfd.readouterr().err


def test_interrupted_ranks_have_the_grace_that_whoever_started_us_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    def stop(started: list[subprocess.Popen], *, grace: float) -> None:
        graces.append(grace)
        for process in started:
            process.wait()

    graces = []
    monkeypatch.setenv("NANOLIT_GRACE_SECONDS", "535")
    monkeypatch.setattr(ranks, "wait", interrupt)
    monkeypatch.setattr(ranks, "stop", stop)
    with pytest.raises(KeyboardInterrupt):
        run_together(["true"], devices=1, nodes=1, node=Node())
    assert graces == [535]


TRAIN = """
import sys
from nanolit.config.compose import compose
from nanolit.jobs.execute import run
run(compose(sys.argv[1:]))
"""


@pytest.fixture
def training(tmp_path: Path):
    """Two ranks in training, and what they print."""
    words = [word.replace("max_steps=2", "max_steps=100000") for word in TINY]
    command = [sys.executable, "-c", TRAIN, *words, f"root={tmp_path}", "cluster.devices=2"]
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    metrics = tmp_path / "runs/tiny/base/metrics.csv"
    for _ in range(1200):
        if metrics.exists() and len(metrics.read_text().splitlines()) > 2:
            break
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    else:
        pytest.fail(log.read_text())
    yield process
    process.kill()
    process.wait()


def listeners(pids: list[int]) -> set[str]:
    """The addresses, in the kernel's hexadecimal form, at which processes listen."""
    sockets = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(descriptor)
            except OSError:
                continue
            if target.startswith("socket:["):
                sockets.add(target[8:-1])
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:  # LISTEN
                found.add(fields[1].split(":")[0])
    return found


LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ranks_listen_on_loopback_alone_and_end_with_their_parent(training: subprocess.Popen) -> None:
    children = [child.pid for child in psutil.Process(training.pid).children(recursive=True)]
    assert len(children) >= 2
    found = listeners([training.pid, *children])
    assert found, "the ranks' store listens"
    assert found <= LOOPBACK
    training.kill()  # as the kernel does when memory runs out
    for _ in range(300):
        if not any(Path(f"/proc/{pid}").exists() for pid in children):
            return
        time.sleep(0.1)
    pytest.fail("ranks are left after 30 seconds")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to handle")
def test_ranks_give_up_a_long_step_together_when_one_of_them_is_asked_to_stop(tmp_path: Path) -> None:
    """Saved is the step before it, by both."""
    words = [word.replace("max_steps=2", "max_steps=1000") for word in TINY]
    words += [f"root={tmp_path}", "cluster.devices=2", "total_batch=1024", "micro_batch=1"]
    code = TRAIN.replace("run(", "print(run(").replace("]))", "])))")
    patient = "from nanolit.jobs import ranks; ranks.WORKER = 'tests.jobs.long_step_worker'\n"
    command = [sys.executable, "-c", patient + code, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "'status': 'interrupted'" in done.stdout, done.stdout + done.stderr
    (folder,) = (tmp_path / "runs/tiny/base/checkpoints").iterdir()
    assert folder.name == "step_000003"
    assert len([*folder.glob("optimizer-*-of-00002.safetensors")]) == 2
    assert (folder / "manifest.json").exists()


@pytest.mark.parametrize(
    "text",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection reset by peer",
        "Application timeout caused pair closure",
        "Timed out waiting 6000ms for recv operation to complete",
    ],
)
def test_gloos_errors_are_told_as_another_ranks_silence(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The texts were seen in runs, or stand in gloo's source."""
    monkeypatch.setattr(worker.torch.distributed, "is_initialized", lambda: True)
    assert worker.others_are_gone(RuntimeError(text))
    assert not worker.others_are_gone(RuntimeError("CUDA error: an illegal memory access was encountered"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGSTOP")
def test_a_silent_rank_ends_the_run_after_the_stated_time(tmp_path: Path) -> None:
    """Ten minutes, here six seconds; the stopped rank itself is killed."""
    words = [word.replace("max_steps=2", "max_steps=100000") for word in TINY]
    code = TRAIN.replace("run(", "print(run(").replace("]))", "])))")
    impatient = "from nanolit.jobs import ranks; ranks.WORKER = 'tests.jobs.impatient_worker'\n"
    command = [sys.executable, "-c", impatient + code, *words, f"root={tmp_path}", "cluster.devices=2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics, deadline = tmp_path / "runs/tiny/base/metrics.csv", time.monotonic() + 120
    while (not metrics.exists() or metrics.read_text().count("\n") < 3) and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = [
        child for child in psutil.Process(process.pid).children() if "impatient" in str(child.cmdline())
    ]
    workers[1].suspend()
    begun = time.monotonic()
    output, _ = finish(process, seconds=90)
    assert time.monotonic() - begun < 60
    assert "another rank has died, or was silent for 0.1 minutes" in output
    assert "the same command resumes" in output
    assert "Traceback" not in output
    assert not any(rank.is_running() for rank in workers)


def meet(rank: int, folder: Path, port: int, seeds: list[int], expected: str) -> None:
    """One machine of several: a job and a plan of its own, then rank 0's plan or the error."""
    world = {"RANK": f"{rank}", "WORLD_SIZE": f"{len(seeds)}"}
    os.environ |= world | {"MASTER_ADDR": "localhost", "MASTER_PORT": f"{port}"}
    job = compose([*TINY, f"root={folder}/{rank}", f"micro_batch={2**rank}", f"seed={seeds[rank]}"])
    job["cluster"]["gpu"] = f"cpu {rank}"
    plan = replace(fresh_plan(job, "base"), accumulation=rank)
    (folder / f"{rank}").mkdir()
    join = partial(worker.join_ranks, folder=folder / f"{rank}")
    if expected:
        assert expected in worker.run(job, plan, join=join)["error"]
    else:
        found = join(job, plan)
        assert (found.micro_batch, found.accumulation) == (1, 0)


def test_machines_follow_the_firsts_plan(tmp_path: Path) -> None:
    """With micro_batch=auto the first machine alone knows what it has found; another may have another GPU."""
    run_ranks(meet, tmp_path, free_ports(1), [1, 1], "", world=2)


def test_all_ranks_of_machines_with_different_jobs_say_what_differs(tmp_path: Path) -> None:
    expected = "different jobs: seed is 1 for rank 0 and 2 for rank 3; run the same command"
    run_ranks(meet, tmp_path, free_ports(1), [1, 1, 1, 2], expected, world=4)
