"""Nothing is lost: the short form of dev/chaos.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has imported torch")
def test_kills_a_full_disk_and_damaged_files_lose_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "dev" / "chaos.py"), f"at={tmp_path}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["failed"] == []
    assert sum(report["kills"].values()) >= 4
