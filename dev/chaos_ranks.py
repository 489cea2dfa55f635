"""Two ranks of the tiny run as real processes, one of which is killed; for chaos.py."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from dev.chaos_child import LIMIT_SECONDS, End

RANK_WORDS = ("phase=base", "cluster.devices=2", "stage.base.max_steps=300", "stage.base.save_every=10")
GONE_SECONDS = 30  # within which nothing of a run that lost its parent may run on


def strike(
    words: Sequence[str], root: Path, *, log: Path, victim: str | None, after: float
) -> tuple[End, int]:
    """Run the command, and kill a rank or the parent `after` seconds of training; None: let it end.

    Return how it ended, and how many of its processes run on.
    """
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "nanolit.train", *words, f"root={root}"],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
        )
    parent, family = psutil.Process(process.pid), []
    if victim:
        until = time.monotonic() + LIMIT_SECONDS
        while process.poll() is None and "  step " not in log.read_text() and time.monotonic() < until:
            time.sleep(0.2)
        time.sleep(after)
        if process.poll() is None:
            family = parent.children(recursive=True)
            ranks = [child for child in family if "nanolit.jobs.worker" in " ".join(child.cmdline())]
            (parent if victim == "parent" else ranks[-1]).kill()
    try:
        code = process.wait(LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        family = parent.children(recursive=True)
        process.kill()
        code = None
    _, left = psutil.wait_procs(family, timeout=GONE_SECONDS)
    for child in left:
        child.kill()
    return End(code, log.read_text(errors="replace")), len(left)
