"""A rank that waits for one that is gone ends by itself, although its main thread runs no Python."""

import signal
import subprocess
import sys

import pytest

from tests.processes import finish

RANK = """
import hashlib, signal, sys
from nanolit.callbacks import saving
saving.GRACE_SECONDS = 0.5
signal.signal(signal.SIGTERM, lambda *_: None)
watch = saving.EndIfStuck()
if sys.argv[1] == "ends its step":
    watch.step_ended()
print("ready", flush=True)
hashlib.pbkdf2_hmac("sha256", b"in C, like a collective", b"", int(sys.argv[2]))
watch.close()
print("whole", flush=True)
"""


@pytest.mark.parametrize(
    ("what", "rounds", "code", "said"),
    [("is stuck", 100_000_000, 1, "another rank must have died"), ("ends its step", 3_000_000, 0, "whole")],
)
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_a_rank_ends_if_its_step_does_not(what: str, rounds: int, code: int, said: str):
    command = [sys.executable, "-c", RANK, what, str(rounds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        output, _ = finish(process, seconds=120)
    assert process.returncode == code
    assert said in output
