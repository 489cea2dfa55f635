"""`python -m nanolit.doctor`. Oracles: folders, a server and a driver that the tests put there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanolit import doctor
from tests.data.hub import Hub, serving


def states(text: str) -> dict[str, str]:
    """State by name, of the lines that are no remedy."""
    lines = [line.split() for line in text.splitlines() if "→" not in line]
    return {words[1]: words[0] for words in lines}


def test_one_screen_tells_what_is_there_without_importing_torch(tmp_path: Path) -> None:
    program = "import sys; from nanolit.doctor import main; code = main(sys.argv[1:])\n"
    program += "assert not {'torch', 'gradio', 'modal', 'datasets', 'wandb'} & {*sys.modules}; sys.exit(code)"
    environment = {"PATH": "/usr/bin:/bin", "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment |= {"WANDB_API_KEY": "x", "MODAL_TOKEN_ID": "x"}
    done = subprocess.run(
        [sys.executable, "-c", program, f"root={tmp_path}/runs"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    if "torch 2" in done.stdout and "×" in done.stdout:
        pytest.skip("this machine has an NVIDIA GPU, which torch is asked about")
    assert done.returncode == 0, done.stderr
    found = states(done.stdout)
    assert list(found) == ["Python", "Rust", "disk", "locks", "sandbox", "W&B", "Modal", "GPU", "network"]
    assert (found["W&B"], found["Modal"], found["network"]) == ("ok", "ok", "-")
    assert len(done.stdout.splitlines()) <= 24
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="nobody may write below /proc")
def test_a_folder_that_cannot_be_written_is_broken(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert doctor.main(["root=/proc/runs"]) == 1
    out = capsys.readouterr().out
    assert states(out)["disk"] == "BROKEN"
    assert "NANOLIT_HOME" in out


def test_a_gpu_that_torch_cannot_use_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho Tesla K80\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert doctor.main([f"root={tmp_path}"]) == 1
    out = capsys.readouterr().out
    assert states(out)["GPU"] == "BROKEN"
    assert "1 × Tesla K80" in out


def test_a_hub_that_answers_is_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that is not there is an answer."""
    with serving(Hub("someone/texts", {})) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert doctor.check_hub().state == "ok"


def test_missing_walls_and_locks_have_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanolit.tasks.sandbox.walls", lambda: ("limits", "hook"))
    monkeypatch.setattr(doctor, "fcntl", None)
    assert "sandbox=weak" in doctor.check_sandbox().remedy
    _, locks = doctor.check_folder(tmp_path)
    assert (locks.state, "root=FOLDER" in locks.remedy) == ("-", True)
