"""The sandbox: honest programs run, hostile ones neither finish nor touch anything outside."""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanolit.tasks import sandbox
from nanolit.tasks.sandbox import run_python

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")


def test_a_program_that_runs_to_its_end_is_finished() -> None:
    outcome = run_python("import math, collections, typing, re, hashlib\nprint(math.gcd(12, 18))")
    assert (outcome.finished, outcome.output, outcome.timed_out) == (True, "6\n", False)


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "import os; os._exit(0)",
        "assert 1 == 2",
        "def broken(:",
        "import os, signal; os.abort()",
        "def deeper(): return deeper()\ndeeper()",
        "int(input())",
    ],
)
def test_a_program_that_stops_early_is_not_finished(program: str) -> None:
    assert not run_python(program).finished


def test_a_program_without_end_is_killed_in_time() -> None:
    start = time.monotonic()
    outcome = run_python(
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass", timeout_seconds=1
    )
    assert outcome.timed_out
    assert not outcome.finished
    assert time.monotonic() - start < 10


def test_memory_is_bounded() -> None:
    outcome = run_python("x = bytearray(1 << 30)", memory_bytes=128 << 20)
    assert not outcome.finished
    assert "MemoryError" in outcome.output


def test_output_is_bounded() -> None:
    outcome = run_python("while True: print('x' * 1000)", output_bytes=10_000)
    assert not outcome.finished
    assert not outcome.timed_out
    assert len(outcome.output) <= 10_000


def test_a_program_that_prints_more_than_is_kept_is_finished() -> None:
    outcome = run_python("print('x' * 100_000)\nprint('end')", output_bytes=10_000)
    assert (outcome.finished, outcome.output) == (True, "x" * 10_000)


HOSTILE = {
    "write": "open({target!r}, 'w').write('x')",
    "low-level write": "import os; os.write(os.open({target!r}, os.O_CREAT | os.O_WRONLY), b'x')",
    "delete": "import os; os.remove({victim!r})",
    "rename": "import os; os.rename({victim!r}, {target!r})",
    "new folder": "import os; os.mkdir({target!r})",
    "truncate": "import os; os.truncate({victim!r}, 0)",
    "permissions": "import os; os.chmod({victim!r}, 0)",
    "remove a tree": "import shutil; shutil.rmtree({folder!r})",
    "shell": "import os; os.system('touch {target}')",
    "subprocess": "import subprocess; subprocess.run(['touch', {target!r}])",
    "fork": "import os\nif os.fork() == 0: open({target!r}, 'w')",
    "fork and leave the session": "import os\nos.fork() or (os.setsid(), open({target!r}, 'w'))",
    "exec": "import os; os.execv('/bin/touch', ['touch', {target!r}])",
    "spawn": "import os; os.posix_spawn('/bin/touch', ['touch', {target!r}], {{}})",
    "fork_exec without subprocess": "import _posixsubprocess",
    "ctypes": "import ctypes; ctypes.CDLL(None).system(b'touch {target}')",
    "restored functions": "import importlib, os; importlib.reload(os); os.system('touch {target}')",
    "the hook's frame": (
        "import os, sys\nframe = sys._getframe()\n"
        "while frame:\n    frame.f_globals.update(os=None, guard=None, sys=sys)\n    frame = frame.f_back\n"
        "open({target!r}, 'w')"
    ),
    "swallowing the refusal": "try:\n    open({target!r}, 'w')\nexcept BaseException:\n    pass",
    "connect": "import socket; socket.create_connection(('127.0.0.1', {port}), timeout=1).send(b'x')",
    "kill the parent": "import os; os.kill({pid}, 9)",
    "raise the limits": "import resource; resource.setrlimit(resource.RLIMIT_NPROC, (99, 99))",
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_hostile_programs_neither_finish_nor_touch_anything(attack: str, tmp_path: Path) -> None:
    victim, target = tmp_path / "victim", tmp_path / "target"
    victim.write_text("precious")
    victim.chmod(0o644)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        program = HOSTILE[attack].format(
            victim=str(victim),
            target=str(target),
            folder=str(tmp_path),
            port=server.getsockname()[1],
            pid=os.getpid(),
        )
        assert not run_python(program, timeout_seconds=5).finished
        with pytest.raises(TimeoutError):
            server.accept()
    assert victim.read_text() == "precious"
    assert victim.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [victim]


def test_the_program_sees_neither_our_environment_nor_our_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    assert "hunter2" not in run_python("import os; print(dict(os.environ))").output
    assert "ModuleNotFoundError" in run_python("import numpy").output


def test_a_child_that_left_the_session_dies_with_its_namespace(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The outermost layer alone: a confinement that lets the program fork can't be outlived."""
    if not sandbox._namespaces():
        pytest.skip("this system lends no namespaces")
    beacon = tmp_path / "beacon"
    loose = tmp_path / "loose.py"
    loose.write_text(
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n"
        f"    while True:\n        open({str(beacon)!r}, 'a').write('x')\n        time.sleep(0.02)\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(sandbox, "CONFINE", loose)
    assert run_python("", timeout_seconds=1).timed_out
    size = beacon.stat().st_size
    time.sleep(0.3)
    assert beacon.stat().st_size == size > 0


def test_landlock_alone_forbids_reading_writing_and_starting(tmp_path: Path) -> None:
    """The second layer alone, without the audit hook."""
    secret = tmp_path / "secret"
    secret.write_text("x")
    program = (
        f"import runpy, os, sys\nconfine = runpy.run_path({str(sandbox.CONFINE)!r})\n"
        "if not confine['restrict_files'](): sys.exit(77)\n"
        f"for attempt in (lambda: open({str(secret)!r}), lambda: open({str(tmp_path / 'new')!r}, 'w'),\n"
        f"                lambda: os.remove({str(secret)!r}), lambda: os.execv('/bin/sh', ['sh'])):\n"
        "    try:\n        attempt()\n    except PermissionError:\n        print('denied')\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False
    )
    if done.returncode == 77:
        pytest.skip("this system has no Landlock")
    assert done.stdout.split() == ["denied"] * 4, done.stderr
    assert secret.exists()


def test_without_namespaces_the_other_layers_still_hold(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sandbox, "_namespaces", lambda: ())
    assert run_python("print(1)").finished
    assert not run_python(f"open({str(tmp_path / 'new')!r}, 'w')").finished
    assert run_python("while True: pass", timeout_seconds=1).timed_out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "program",
    [
        "import sqlite3; sqlite3.connect({path!r})",
        "import ssl; ssl.SSLContext(2).keylog_filename = {path!r}",
        "from importlib.machinery import ExtensionFileLoader as L, EXTENSION_SUFFIXES as S\n"
        "import importlib.util as u\n"
        "u.module_from_spec(u.spec_from_loader('x._ctypes', L('x._ctypes', '/x')))",
        "import _xxsubinterpreters as s; s.run_string(s.create(), '''open({path!r}, 'w')''')",
        "import _tkinter; _tkinter.create().eval('exec touch {path}')",
        "import os; os.mkfifo({path!r})",
        "from posix import mknod; mknod({path!r})",
        "import os, signal; signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0)",
    ],
)
def test_the_innermost_layer_alone_lets_no_module_write_or_call(program: str, tmp_path: Path) -> None:
    """As on macOS."""
    if "pidfd" in program and not hasattr(signal, "pidfd_send_signal"):
        pytest.skip("this system has no such call")
    job = {"program": program.format(path=str(tmp_path / "new")), "proof": "whole", "timeout": 5}
    runner = runpy.run_path(str(sandbox.CONFINE))["RUNNER"]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", runner],
        input=json.dumps({**job, "memory": 1 << 30, "output": 10_000}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 86
    assert "sandbox: denied" in done.stdout
    assert list(tmp_path.iterdir()) == []
