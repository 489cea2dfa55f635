"""The sandbox's process: give up rights, then become a fresh interpreter that runs the program.

Run by path, standard library only; sandbox.py writes the job to its standard input. The hook sees what Python
reports: alone it stops neither a built-in module that its loader makes anew, readline's history file, nor
named semaphores.
Landlock: https://docs.kernel.org/userspace-api/landlock.html (numbers of the system calls hold on all
machines).
"""

import contextlib
import ctypes
import glob
import os
import sys

EXECUTE, READ_FILE, READ_DIR = 1 << 0, 1 << 2, 1 << 3
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
NO_NEW_PRIVILEGES = 38

# The program's first interpreter. Everything that the hook needs is bound before the program runs, it calls
# no name that the program could rebind, and it ends the process instead of raising: nothing to catch, no
# traceback.
RUNNER = """
import _signal, json, os, posix, resource, sys

def refuse(exit, write, name):
    def call(*_, **__):
        write(1, b"sandbox: denied " + name.encode())
        exit(86)
    return call

def guard(exit, write, writing, denied, hidden):
    def hook(event, arguments):
        if (
            event.startswith(denied)
            or (event == "open" and arguments[2] & writing)
            or (event == "import" and arguments[0].rpartition(".")[2] in hidden)
        ):
            write(1, b"sandbox: denied " + event.encode())
            exit(86)
    return hook

job = json.loads(sys.stdin.buffer.read())
memory, cpu = job["memory"], int(job["timeout"]) + 1
limits = [("CPU", cpu), ("FSIZE", job["output"]), ("NPROC", 0), ("NOFILE", 32), ("CORE", 0), ("AS", memory)]
for name, limit in limits:
    if name != "AS" or sys.platform == "linux":  # macOS refuses a limit of the address space
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (limit, limit))
program = compile(job["program"], "program", "exec")
proof = job["proof"].encode()
del job, memory, cpu, limits, name, limit
for module in (os, posix, _signal):
    for name in {"mkfifo", "mknod", "pidfd_send_signal"} & set(vars(module)):  # nothing reports these
        setattr(module, name, refuse(os._exit, os.write, name))
sys.addaudithook(guard(
    os._exit, os.write, os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND,
    (
        "socket.", "ctypes.", "subprocess.", "shutil.", "pty.", "fcntl.", "mmap.", "winreg.", "code.__new__",
        "os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.startfile", "os.kill",
        "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.utime",
        "os.chmod", "os.chown", "os.chflags", "os.lockf", "os.setxattr", "os.removexattr", "os.putenv",
        "signal.pthread_kill", "resource.",
        "cpython.PyInterpreterState_New",  # another interpreter has no hook
    ),
    (
        "_ctypes", "ctypes", "_posixsubprocess", "_testcapi", "_testinternalcapi",
        "_xxsubinterpreters", "_interpreters", "_tkinter",  # Tcl starts programs
        "_sqlite3", "_ssl", "_dbm", "_gdbm", "_posixshmem",  # they write files that the hook doesn't see
    ),
))
exec(program, {"__name__": "__main__"})
sys.stdout.flush()
os.write(1, proof)
os._exit(0)
"""


class Ruleset(ctypes.Structure):
    """The rights that need a rule from now on: files, network, and signals and sockets to outside."""

    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class PathBeneath(ctypes.Structure):
    """A rule: these rights below this path."""

    _pack_ = 1
    _fields_ = [("rights", ctypes.c_uint64), ("file", ctypes.c_int32)]


def restrict_files() -> bool:
    """Give up, for good, all of the file system but reading Python's own files. False without Landlock."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    version = call(CREATE_RULESET, None, ctypes.c_size_t(0), 1) if sys.platform == "linux" else -1
    if version < 1:
        return False
    bits = 13 + (version >= 2) + (version >= 3) + (version >= 5)
    ruleset = Ruleset(files=(1 << bits) - 1, network=3, scoped=3)
    size = 8 if version < 4 else 16 if version < 6 else 24
    handle = call(CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(size), 0)
    if handle < 0:
        return False
    python = os.path.realpath(sys.executable)
    for folder in {sys.prefix, sys.base_prefix, "/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64"}:
        _allow(call, handle, folder, READ_FILE | READ_DIR)
    for program in [python, *glob.glob("/lib*/ld-*.so*"), *glob.glob("/usr/lib*/ld-*.so*")]:
        _allow(call, handle, program, READ_FILE | EXECUTE)
    for file in ["/etc/ld.so.cache", "/dev/urandom"]:
        _allow(call, handle, file, READ_FILE)
    ctypes.CDLL(None).prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    return call(RESTRICT_SELF, handle, 0) == 0


def _allow(call: "ctypes._NamedFuncPointer", ruleset: int, path: str, rights: int) -> None:
    with contextlib.suppress(OSError):  # a folder that this system doesn't have
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
        call(ADD_RULE, ruleset, 1, ctypes.byref(PathBeneath(rights, file)), 0)
        os.close(file)


if __name__ == "__main__":
    restrict_files()
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", RUNNER])
