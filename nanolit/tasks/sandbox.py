"""Runs Python that a model wrote, and says whether it ran to its end.

Layers, outermost first: own namespaces where the system lends them (no network, no view of other processes,
all descendants die together), Linux's Landlock (reads the standard library, writes nothing, starts nothing),
resource limits, an empty environment and an empty working folder, a fresh interpreter without site-packages,
and an audit hook that ends it at the first attempt to write, connect, or start a process (confine.py).
Where the first two are missing (macOS, some containers) the hook is the only layer against a hostile program,
and confine.py says what it doesn't see.
No layer stands between the program and the tests that run inside it: code that sets out to deceive its own
tests can; exiting early, printing or raising can't.
"""

import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CONFINE = Path(__file__).with_name("confine.py")
PRINTED_BYTES = 16 << 20  # what a program may print: at the limit print raises, so that a right one fails
UNSHARE = (
    "unshare",
    "--user",
    "--map-current-user",
    "--net",
    "--pid",
    "--ipc",
    "--uts",
    "--fork",
    "--kill-child",
)


@dataclass(frozen=True)
class Outcome:
    """`finished`: the program ran to its end. `output`: what it printed, errors included, cut at the
    bound."""

    finished: bool
    output: str
    timed_out: bool = False


def run_python(
    program: str, *, timeout_seconds: float = 5.0, memory_bytes: int = 256 << 20, output_bytes: int = 64 << 10
) -> Outcome:
    """Run `program` inside the layers; `output_bytes` are kept of what it prints.

    The limits of time and memory are nanochat's, for HumanEval; costs about 0.1 s.
    """
    proof = secrets.token_hex(16).encode()
    job = {"program": program, "proof": proof.decode(), "timeout": timeout_seconds}
    job |= {"memory": memory_bytes, "output": PRINTED_BYTES}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [*_namespaces(), sys.executable, "-I", "-S", str(CONFINE)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={"PATH": os.defpath, "LANG": "C.UTF-8"},
            start_new_session=True,
        )
        timed_out = False
        try:
            process.communicate(json.dumps(job).encode(), timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            _end(process)
        num_printed = max(0, output.seek(0, os.SEEK_END) - len(proof))
        output.seek(num_printed)
        proven = output.read() == proof
        output.seek(0)
        printed = output.read(min(output_bytes, num_printed) if proven else output_bytes)
    finished = proven and process.returncode == 0 and not timed_out
    return Outcome(finished, printed.decode(errors="replace"), timed_out)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process, its session, and (through the pid namespace) whatever left that session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


@functools.cache
def _namespaces() -> Sequence[str]:
    """Return the command that gives a process its own namespaces; [] where the system doesn't allow it."""
    if shutil.which("unshare") is None:
        return ()
    trial = subprocess.run([*UNSHARE, "true"], capture_output=True, timeout=10, check=False)
    return UNSHARE if trial.returncode == 0 else ()
