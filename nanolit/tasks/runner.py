"""The sandbox's interpreter, confined by confine.py: it runs a program and answers calls, or judges answers.

The judge and the program are two processes; between them go calls and values as JSON, so nothing that the
program does to its own interpreter reaches the tests. Standard library only: this file runs as text.
The audit hook sees what Python reports. Everything that it needs is bound before the program runs, it calls
no name that the program could rebind, and it ends the process instead of raising: nothing to catch, no
traceback. Alone it stops neither readline's history file nor named semaphores, and hides no file.
"""

# ruff: noqa: F401 - what programs often import is loaded here, from bytecode, which they may not load
import _imp
import _signal  # pyright: ignore[reportMissingImports]
import bisect
import builtins
import collections
import copy
import datetime
import functools
import heapq
import itertools
import json
import math
import os
import posix
import random
import re
import resource
import string
import sys
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
DENIED = (
    *("socket.", "ctypes.", "subprocess.", "shutil.", "pty.", "fcntl.", "mmap.", "winreg.", "resource."),
    *("os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.startfile", "os.kill"),
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.utime"),
    *("os.chmod", "os.chown", "os.chflags", "os.lockf", "os.setxattr", "os.removexattr", "os.putenv"),
    "signal.pthread_kill",
    *("code.__new__", "marshal.load"),  # bytecode that no compiler made reads the interpreter's memory
    *("gc.get", "sys._current"),  # they find the hook itself
    "cpython.PyInterpreterState_New",  # another interpreter has no hook
)
HIDDEN = (
    *("_ctypes", "ctypes", "_posixsubprocess", "_testcapi", "_testinternalcapi"),
    *("_xxsubinterpreters", "_interpreters", "_tkinter"),  # Tcl starts programs
    *("_sqlite3", "_ssl", "_dbm", "_gdbm", "_posixshmem"),  # they write files that the hook doesn't see
)
UNREPORTED = {  # functions that no event tells of; modules made anew would bring back what is taken away
    _imp: ("create_builtin", "get_frozen_object"),
    **dict.fromkeys((os, posix, _signal), ("mkfifo", "mknod", "pidfd_send_signal")),
}


def encode(value: Any) -> Any:
    """Return a plain value as what JSON can hold, with its type; TypeError for any other value."""
    if isinstance(value, int) and value.bit_length() > 10_000:  # Python refuses so long a decimal
        return {"int": hex(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [encode(part) for part in value]
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [encode(part) for part in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(part)] for key, part in value.items()]}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if hasattr(value, "__next__"):
        return {"iter": [encode(part) for part in value]}
    raise TypeError(f"{type(value).__name__} is not a plain value")


def decode(coded: object) -> Any:
    """Return the value that `encode` was given, of builtin types alone."""
    if isinstance(coded, list):
        return [decode(part) for part in coded]
    if not isinstance(coded, dict):
        return coded
    ((kind, content),) = coded.items()
    if kind == "int":
        return int(content, 16)
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "complex":
        return complex(*content)
    makers = {"tuple": tuple, "set": set, "frozenset": frozenset, "dict": dict, "iter": iter}
    return makers[kind](decode(content))


def limit(memory, seconds, printed):
    """Set the limits of this process for good."""
    cpu = int(seconds) + 1
    limits = {"CPU": cpu, "FSIZE": printed, "NPROC": 0, "NOFILE": 32, "CORE": 0, "AS": memory}
    for name, value in limits.items():
        if name != "AS" or sys.platform == "linux":  # macOS refuses a limit of the address space
            resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))


def guard():
    """Set the audit hook, and take away what it can't see."""
    for name in {*sys.builtin_module_names, *getattr(_imp, "_frozen_module_names", list)()} - {*HIDDEN}:
        if not name.startswith("__") and "." not in name:
            __import__(name)
    setattr(sys.implementation, "cache_tag", None)  # noqa: B010 - from here on modules are compiled from their source

    def refuse(exit, write, name, code=86):
        def call(*_, **__):
            write(1, b"sandbox: denied " + name.encode())
            exit(code)

        return call

    def watch(exit, write, writing, denied, hidden, code=86):
        def hook(event, arguments):
            if (
                event.startswith(denied)
                or (event == "open" and arguments[2] & writing)
                or (event == "import" and arguments[0].rpartition(".")[2] in hidden)
            ):
                write(1, b"sandbox: denied " + event.encode())
                exit(code)

        return hook

    for module, functions in UNREPORTED.items():
        for name in {*functions} & {*vars(module)}:
            setattr(module, name, refuse(os._exit, os.write, name))
    sys.addaudithook(watch(os._exit, os.write, WRITING, DENIED, HIDDEN))


def answer_calls(job, requests, answers):
    """Run the program, then answer calls of its function until no more come."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(job["program"], "program", "exec"), space)
    function = space[job["entry_point"]]
    sys.stdout.flush()
    print("ready", file=answers, flush=True)
    for line in requests:
        arguments, keywords = decode(json.loads(line))
        try:
            answer = {"value": encode(function(*arguments, **keywords))}
        except Exception as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        sys.stdout.flush()
        print(json.dumps(answer), file=answers, flush=True)


def judge(job, requests, answers):
    """Run the tests, which call the program's function in the other process; leave with the code `passed`."""

    def candidate(*arguments, **keywords):
        print(json.dumps(encode([arguments, keywords])), file=requests, flush=True)
        answer = json.loads(answers.readline() or '{"error": "RuntimeError", "message": "it has ended"}')
        if "error" in answer:
            kind: Any = getattr(builtins, answer["error"], None)
            known = isinstance(kind, type) and issubclass(kind, Exception)
            raise (kind if known else RuntimeError)(answer["message"])
        return decode(answer["value"])

    space: dict[str, Any] = {"__name__": "__main__"}
    if answers.readline() != "ready\n":
        sys.exit("the program ended before its function was called")
    exec(compile(job["prompt"], "prompt", "exec"), space)
    space[job["entry_point"]] = candidate  # some tests call it by its name
    exec(compile(job["test"], "test", "exec"), space)
    space["check"](candidate)
    sys.stdout.flush()
    os._exit(job["passed"])


if __name__ == "__main__":
    job = json.loads(sys.stdin.read())
    requests, answers = (os.fdopen(file, mode) for file, mode in job["pipes"])
    limit(job["memory"], job["timeout"], job["printed"])
    guard()
    (answer_calls if "program" in job else judge)(job, requests, answers)
