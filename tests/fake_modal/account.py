"""What a test holds of a fake account: commands typed on a laptop, the requests they made, the containers."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from nanolit.jobs.processes import descendants
from tests.processes import finish, wait_until

REPOSITORY = Path(__file__).resolve().parent.parent.parent
TINY = [
    "phase=base",
    "model=d2",
    "data=sample",
    "model.context=64",
    "total_batch=1024",
    "micro_batch=1",
    "stage.base.eval_tokens=512",
    "stage.tokenizer.vocab_size=300",
    "stage.tokenizer.max_chars=100_000",
]


class Account:
    """A laptop (`root`, its artefacts) and a Modal account on loopback, with one volume at `volume`."""

    def __init__(self, folder: Path, *, secrets: dict[str, dict[str, str]]) -> None:
        self.folder, self.state = folder, folder / "state"
        self.seconds = 0.0  # what the reference run took here
        self.root, self.volume = folder / "laptop", folder / "vol"
        self.state.mkdir(parents=True)
        command = [sys.executable, "-m", "tests.fake_modal", str(self.state), json.dumps(secrets)]
        self.server = subprocess.Popen(command, cwd=REPOSITORY, env=self.environment(url=""))
        wait_until(lambda: (self.state / "url").exists(), seconds=30)
        self.url = (self.state / "url").read_text()

    def close(self) -> None:
        self.server.terminate()
        self.server.wait()
        for _, pid, _ in self.containers():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def environment(self, *, url: str | None = None) -> dict[str, str]:
        names = ("PATH", "HOME", "TMPDIR", "PYTHONPATH")
        return {
            **{name: os.environ[name] for name in names if name in os.environ},
            "OMP_NUM_THREADS": "1",
            "MODAL_SERVER_URL": self.url if url is None else url,
            "MODAL_TOKEN_ID": "ak-test",
            "MODAL_TOKEN_SECRET": "as-test",
            "MODAL_CONFIG_PATH": str(self.folder / "no-config"),
            "NANOLIT_HOME": str(self.root),
        }

    def start(
        self,
        module: str,
        *words: str,
        checkout: Path = REPOSITORY,
        python: str | Path = sys.executable,
        **environment: str,
    ) -> subprocess.Popen[str]:
        """A command on the laptop, `python -m module words`."""
        return subprocess.Popen(
            [python, "-m", module, *words],
            cwd=checkout,
            env={**self.environment(), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(
        self,
        module: str,
        *words: str,
        checkout: Path = REPOSITORY,
        python: str | Path = sys.executable,
        **environment: str,
    ) -> tuple[int, str]:
        """A command's exit code and all that it printed."""
        process = self.start(module, *words, checkout=checkout, python=python, **environment)
        output, _ = finish(process, seconds=600)
        return process.returncode, output

    def overrides(self, run: str, *more: str, cluster: str = "modal_h100") -> list[str]:
        """A tiny job's words; its volume is where the fake can mount it."""
        return [*TINY, f"run={run}", f"cluster={cluster}", f"hydra.launcher.root={self.volume}", *more]

    def requests(self, rpc: str) -> list[dict[str, Any]]:
        """The requests of one name so far, oldest first, with the task that made them ("": the laptop)."""
        path = self.state / "rpc.jsonl"
        lines = map(json.loads, path.read_text().splitlines()) if path.exists() else []
        return [{**one["request"], "task": one["task"]} for one in lines if one["rpc"] == rpc]

    def containers(self, function: str = "", *, live: bool = True) -> list[tuple[str, int, str]]:
        """(function, pid, call) of the containers that run now, or of all that ever ran; oldest first."""
        found = []
        for path in sorted(self.state.glob("tasks/*/process.txt")):
            pid, name, call = path.read_text().split()
            if function in ("", name) and not (live and path.with_name("ended.txt").exists()):
                found.append((name, int(pid), call))
        return found

    def calls(self, run: str) -> list[dict[str, Any]]:
        path = self.volume / "runs" / run / "calls.json"
        return json.loads(path.read_text())["calls"] if path.exists() else []

    def curve(self, run: str, *, root: Path | None = None) -> list[tuple[int, str]]:
        """(step, loss as written) of the base stage so far."""
        path = (root or self.volume) / "runs" / run / "base" / "metrics.csv"
        if not path.exists():
            return []
        with path.open() as file:
            return [(int(row["step"]), row["loss"]) for row in csv.DictReader(file) if row["loss"]]

    def wait_for_step(self, run: str, step: int) -> None:
        """Until a run has trained `step` steps."""
        wait_until(lambda: any(one >= step for one, _ in self.curve(run)), seconds=300)

    def container_of(self, run: str, function: str) -> int:
        """The process of the container that runs a run's newest call of a function."""
        calls = [call["call"] for call in self.calls(run) if call["function"] == function]
        submission = json.loads((self.root / "runs" / run / "submission.json").read_text())
        wanted = submission["call"] if function == "orchestrate" else calls[-1]
        return next(pid for _, pid, call in reversed(self.containers()) if call == wanted)

    def rank_of(self, run: str) -> int:
        """The process that trains a run on one device; others, git for one, come and go beside it."""
        for child in descendants(self.container_of(run, "train")):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "nanolit.jobs.execute" in child.cmdline():
                    return child.pid
        raise AssertionError(f"no process of {run} trains")

    def end_container(self, run: str, function: str, number: int) -> None:
        """Send a signal to the container of a run's newest call, and wait for its end."""
        pid = self.container_of(run, function)
        os.kill(pid, number)
        wait_until(lambda: pid not in [one for _, one, _ in self.containers()], seconds=60)
