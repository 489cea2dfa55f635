"""The sandbox: honest programs pass, hostile ones neither pass nor touch anything outside, deceivers fail."""

import gzip
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nanolit.config.compose import compose
from nanolit.tasks import sandbox
from nanolit.tasks.humaneval import HumanEval
from nanolit.tasks.sandbox import Outcome, judge_python

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
SHARED = os.environ.get("NANOLIT_SHARED")
ANSWER = "\ndef answer(): return 42\n"
CHECK = "def check(candidate): assert candidate() == 42"


def run_python(program: str, **limits: Any) -> Outcome:
    """Run a program that does something and then answers rightly."""
    return judge_python(program + ANSWER, entry_point="answer", test=CHECK, **limits)


def test_a_program_that_runs_to_its_end_passes() -> None:
    outcome = run_python("import math, collections, typing, re, hashlib, statistics\nprint(math.gcd(12, 18))")
    assert (outcome.passed, outcome.output, outcome.timed_out) == (True, "6\n", False)


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "import os; os._exit(0)",
        "import os; os._exit(42)",
        "assert 1 == 2",
        "def broken(:",
        "import os, signal; os.abort()",
        "def deeper(): return deeper()\ndeeper()",
        "int(input())",
    ],
)
def test_a_program_that_stops_early_fails(program: str) -> None:
    assert not run_python(program).passed


def test_a_program_without_end_is_killed_in_time() -> None:
    start = time.monotonic()
    outcome = run_python(
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass", timeout_seconds=1
    )
    assert outcome.timed_out
    assert not outcome.passed
    assert time.monotonic() - start < 10


def test_memory_is_bounded() -> None:
    outcome = run_python("x = bytearray(1 << 30)", memory_bytes=128 << 20)
    assert not outcome.passed
    assert "MemoryError" in outcome.output


def test_output_is_bounded() -> None:
    outcome = run_python("while True: print('x' * 1000)", output_bytes=10_000)
    assert not outcome.passed
    assert not outcome.timed_out
    assert len(outcome.output) <= 10_000


def test_a_program_that_prints_more_than_is_kept_passes() -> None:
    outcome = run_python("print('x' * 100_000)\nprint('end')", output_bytes=10_000)
    assert (outcome.passed, outcome.output) == (True, "x" * 10_000), outcome.output[-300:]


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
def test_hostile_programs_neither_pass_nor_touch_anything(attack: str, tmp_path: Path) -> None:
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
        assert not run_python(program, timeout_seconds=5).passed
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
    sandbox.walls()  # kept for the process: tried with the real confinement, whichever test comes first
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
    assert run_python("print(1)").passed
    assert not run_python(f"open({str(tmp_path / 'new')!r}, 'w')").passed
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
        # bytecode that no compiler made, and what leads to modules or hooks of its own
        "import marshal; marshal.loads(marshal.dumps(compile('1', 'x', 'eval')))",
        "import _imp, marshal\n_imp.get_frozen_object('x', marshal.dumps(compile('1', 'x', 'eval')))",
        "from importlib._bootstrap_external import _compile_bytecode as c\n"
        "import marshal; c(marshal.dumps(compile('1', 'x', 'eval')))",
        "f = lambda: 1\nf.__code__ = f.__code__.replace(co_code=b'd\\x7fS\\x00')",
        "import _imp\nfrom importlib.machinery import ModuleSpec\n"
        "_imp.create_builtin(ModuleSpec('posix', None)).mkfifo({path!r})",
        "import gc\n[f for f in gc.get_objects() if getattr(f, '__name__', '') == 'hook']",
        "import sys; sys._current_frames()",
    ],
)
def test_the_innermost_layer_alone_lets_no_module_write_or_call(program: str, tmp_path: Path) -> None:
    """As on macOS."""
    if "pidfd" in program and not hasattr(signal, "pidfd_send_signal"):
        pytest.skip("this system has no such call")
    source = program.format(path=str(tmp_path / "new"))
    done = interpret(source)
    assert done.returncode == 86, done.stderr
    assert "sandbox: denied" in done.stdout
    assert list(tmp_path.iterdir()) == []


def interpret(program: str) -> "subprocess.CompletedProcess[str]":
    """Run a program in the sandbox's interpreter with no wall but its hook and limits."""
    job = {"program": program, "entry_point": "answer", "pipes": [(0, "r"), (1, "w")]}
    job |= {"timeout": 5, "memory": 1 << 30, "printed": 10_000}
    runner = sandbox.CONFINE.with_name("runner.py").read_text(encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", runner],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
    )


def test_seccomp_alone_forbids_writing_starting_and_connecting(tmp_path: Path) -> None:
    """The third layer alone; the program that it confines is an ordinary interpreter."""
    program = (
        f"import runpy, os, socket, sys, threading\nconfine = runpy.run_path({str(sandbox.CONFINE)!r})\n"
        "if not confine['restrict_calls'](): sys.exit(77)\n"
        "import resource\n"
        f"folder, parent = {str(tmp_path)!r}, os.getppid()\n"
        "for attempt in (lambda: open(folder + '/new', 'w'), lambda: os.mkdir(folder + '/new'), os.fork,\n"
        "                socket.socket, lambda: os.kill(parent, 0), lambda: os.memfd_create('x'),\n"
        "                lambda: resource.prlimit(parent, resource.RLIMIT_CPU, (1, 1)),\n"
        "                lambda: threading.Thread(target=print).start()):\n"
        "    try:\n        attempt()\n    except (OSError, RuntimeError):\n        print('denied')\n"
        "print(open('/proc/self/status').read().count('Seccomp:\\t2'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False
    )
    if done.returncode == 77:
        pytest.skip("this system has no seccomp, or another machine's numbers")
    assert done.stdout.split() == ["denied"] * 8 + ["1"], done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_filter_names_the_same_calls_on_both_machines() -> None:
    """Oracle: struct.unpack; a call that arm64 lacks is one of five that it replaced by others."""
    confine = runpy.run_path(str(sandbox.CONFINE))
    lengths = {machine: len(confine["seccomp_filter"](machine)) // 8 for machine in confine["MACHINES"]}
    assert lengths["x86_64"] - lengths["aarch64"] == 2 * confine["CALLS"].count(" -")


def test_a_wall_that_cannot_be_raised_ends_the_process() -> None:
    """A system without Landlock, as gVisor: here its call is refused by a filter of its own."""
    program = (
        f"import runpy, sys\npath = {str(sandbox.CONFINE)!r}\nrunpy.run_path(path)['restrict_calls']()\n"
        "sys.argv[1:] = ['Landlock']\nrunpy.run_path(path, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    if "seccomp" not in sandbox.walls():
        pytest.skip("this system has no seccomp")
    assert done.returncode == 1
    assert "could not be set up" in done.stderr


DECEIVERS = {
    "the verdict in __main__": (
        "import sys, os\nfor name, value in vars(sys.modules['__main__']).items():\n"
        "    if 'proof' in name or name == 'passed': os.write(1, str(value).encode())\n"
        "sys.modules['__main__'].job['passed'] = 0\ndef answer(): os._exit(42)"
    ),
    "a frame": (
        "import sys\nframe = sys._getframe()\nwhile frame:\n    frame.f_globals['check'] = lambda _: None\n"
        "    frame = frame.f_back\ndef answer(): return 1"
    ),
    "gc": (
        "import gc\nfor thing in gc.get_objects():\n"
        "    if getattr(thing, '__name__', '') == 'check': thing.__code__ = (lambda _: 0).__code__\n"
        "def answer(): return 1"
    ),
    "a thread": (
        "import threading, os, time\ndef write():\n    time.sleep(0.1); os.write(1, b'ready'); os._exit(42)\n"
        "threading.Thread(target=write).start()\ndef answer(): return 1"
    ),
    "a trace that skips lines": (
        "import sys\ndef trace(frame, event, _):\n    if event == 'line': frame.f_lineno += 1\n"
        "    return trace\nsys.settrace(trace)\ndef answer(): return 1"
    ),
    "__eq__ that is always true": (
        "class Yes:\n    def __eq__(self, other): return True\ndef answer(): return Yes()"
    ),
    "a subclass of int": (
        "class Yes(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
        "def answer(): return Yes(1)"
    ),
    "an exit with the code of passing": "def answer(): raise SystemExit(42)",
    "replies of its own": (
        "import os\nfor file in range(3, 9):\n    try: os.write(file, b'ready\\n' * 3)\n"
        "    except OSError: pass\ndef answer(): return 1"
    ),
}


@pytest.mark.parametrize("deceiver", DECEIVERS)
def test_programs_that_deceive_a_judge_inside_them_fail(deceiver: str) -> None:
    assert not judge_python(DECEIVERS[deceiver], entry_point="answer", test=CHECK).passed


def test_a_list_is_not_a_tuple() -> None:
    test = "def check(candidate): assert candidate() == (42,)"
    assert judge_python("def answer(): return (42,)", entry_point="answer", test=test).passed
    assert not judge_python("def answer(): return [42]", entry_point="answer", test=test).passed


def test_values_cross_with_their_types() -> None:
    """Oracle: the same values written into the test."""
    values = (
        "[None, True, 1, -(16**5000), -0.0, 'ü\\ud800\\n', b'\\xff', 2j, [1, (2, [3])], {1, 2}, "
        "frozenset('a'), {(1, 2): {'a': []}, 3: ()}]"
    )
    test = (
        f"def check(candidate):\n    sent = {values}\n    got = candidate(sent, again=sent)\n"
        "    assert got == (sent, sent) and [*map(type, got[0])] == [*map(type, sent)]\n"
        "    assert str(got[0][4]) == '-0.0'\n"
        "    assert tuple(candidate(iter([1, 2]))[0]) == (1, 2)\n"
        "    try:\n        candidate()\n    except TypeError as error:\n"
        "        assert 'missing' in str(error)\n    else:\n        raise AssertionError\n"
    )
    program = "def answer(value, again=None): return value, again"
    outcome = judge_python(program, entry_point="answer", test=test)
    assert outcome.passed, outcome.output


def test_with_the_hook_alone_humaneval_refuses_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert HumanEval(source="sample").conditions.startswith("sandbox: ")
    monkeypatch.setattr("nanolit.tasks.sandbox.walls", lambda: ("limits", "hook"))
    with pytest.raises(ValueError, match="sandbox=weak"):
        HumanEval(source="sample")
    weak = HumanEval(source="sample", sandbox="weak")
    with pytest.raises(ValueError, match="no rewards"):
        weak.check_rewards()


@pytest.mark.skipif(SHARED is None, reason="needs HumanEval's 164 problems")
@pytest.mark.slow
def test_the_164_canonical_solutions_pass_and_none_does_without_its_body() -> None:
    with gzip.open(f"{SHARED}/data/eval/humaneval/HumanEval.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    right = [row | {"program": row["prompt"] + row["canonical_solution"]} for row in rows]
    wrong = [row | {"program": row["prompt"] + "    return 'no'\n"} for row in rows]

    def passes(row: dict[str, str]) -> bool:
        about = {key: row[key] for key in ("entry_point", "test", "prompt")}
        return judge_python(row["program"], timeout_seconds=30, **about).passed

    with ThreadPoolExecutor(2) as pool:
        assert [
            row["task_id"] for row, passed in zip(right, pool.map(passes, right), strict=True) if not passed
        ] == []
        assert [
            row["task_id"] for row, passed in zip(wrong, pool.map(passes, wrong), strict=True) if passed
        ] == []


def test_sandbox_weak_reaches_humaneval_and_does_not_name_another_run() -> None:
    strong, weak = compose(["phase=sft"]), compose(["phase=sft", "sandbox=weak"])
    (task,) = [task for task in weak["chat_tasks"]["tasks"] if task["_target_"].endswith("HumanEval")]
    assert task["sandbox"] == "weak"
    assert weak["run"] == strong["run"]
    assert not any("sandbox" in task for task in strong["chat_tasks"]["tasks"])
