"""The sandbox's process: give up rights, then become a fresh interpreter that runs runner.py.

Run by path, standard library only. `confine.py WALL …` refuses to continue unless these walls stand;
without arguments it prints the walls that this system has.
Landlock: https://docs.kernel.org/userspace-api/landlock.html, seccomp:
https://docs.kernel.org/userspace-api/seccomp_filter.html. libseccomp and its bindings are not used: small
containers lack the library, and one short list needs no compiler of filters.
"""

import contextlib
import ctypes
import errno
import glob
import os
import platform
import struct
import sys

EXECUTE, READ_FILE, READ_DIR = 1 << 0, 1 << 2, 1 << 3
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on all machines
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# What an interpreter calls that computes, reads its own library and prints. Everything else is refused:
# starting processes and threads, sockets, signals, changing files, and whatever future kernels bring.
# Columns: x86-64, arm64 (linux/arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h)
CALLS = """
read 0 63, write 1 64, close 3 57, stat 4 -, fstat 5 80, lstat 6 -, lseek 8 62, mmap 9 222, mprotect 10 226,
munmap 11 215, brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, pread64 17 67,
readv 19 65, writev 20 66, access 21 -, sched_yield 24 124, mremap 25 216, madvise 28 233, nanosleep 35 101,
getpid 39 172, execve 59 221, exit 60 93, uname 63 160, fcntl 72 25, getcwd 79 17, readlink 89 -,
gettimeofday 96 169, getrlimit 97 163, getrusage 98 165, sysinfo 99 179, times 100 153, getuid 102 174,
getgid 104 176, geteuid 107 175, getegid 108 177, getppid 110 173, sigaltstack 131 132, arch_prctl 158 -,
gettid 186 178, time 201 -, futex 202 98, sched_getaffinity 204 123, getdents64 217 61,
set_tid_address 218 96, restart_syscall 219 128, clock_gettime 228 113, clock_getres 229 114,
clock_nanosleep 230 115, exit_group 231 94, newfstatat 262 79, readlinkat 267 78, faccessat 269 48,
set_robust_list 273 99, getrandom 318 278, statx 332 291, rseq 334 293, faccessat2 439 439
"""
MACHINES = {  # the column, the audit architecture, openat, prlimit64
    "x86_64": (1, 0xC000003E, 257, 302),
    "aarch64": (2, 0xC00000B7, 56, 261),
}


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


def restrict_calls() -> bool:
    """Give up, for good, all system calls but CALLS. False where the kernel or the machine is another."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        return False
    program = seccomp_filter(platform.machine())
    size = len(program) // 8

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    return prctl(SET_SECCOMP, FILTER, ctypes.byref(Program(size, program)), 0, 0) == 0


def seccomp_filter(machine: str) -> bytes:
    """Return the filter in the kernel's classic BPF: (operation, skip if true, skip if false, operand)."""
    column, architecture, openat, prlimit = MACHINES[machine]
    load, equal, has_bits, give = 0x20, 0x15, 0x45, 0x06
    number, arch, arguments = 0, 4, 16  # offsets in struct seccomp_data; an argument takes 8 bytes
    allow, kill, refuse = 0x7FFF0000, 0x80000000, 0x00050000
    code = [(load, 0, 0, arch), (equal, 1, 0, architecture), (give, 0, 0, kill), (load, 0, 0, number)]
    code += [(equal, 0, 4, openat), (load, 0, 0, arguments + 2 * 8), (has_bits, 0, 1, WRITING)]
    code += [(give, 0, 0, refuse | errno.EACCES), (give, 0, 0, allow)]
    code += [(equal, 0, 4, prlimit), (load, 0, 0, arguments), (equal, 1, 0, 0)]  # our own limits only
    code += [(give, 0, 0, refuse | errno.EPERM), (give, 0, 0, allow)]
    for call in CALLS.replace("\n", " ").split(","):
        if (value := call.split()[column]) != "-":
            code += [(equal, 0, 1, int(value)), (give, 0, 0, allow)]
    code += [(give, 0, 0, refuse | errno.ENOSYS)]  # libraries have another way for calls that are not there
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


if __name__ == "__main__":
    with open(os.path.join(os.path.dirname(__file__), "runner.py"), encoding="utf-8") as source:
        runner = source.read()
    standing = {"Landlock": restrict_files(), "seccomp": restrict_calls()}
    if not sys.argv[1:]:
        print(" ".join(name for name, stands in standing.items() if stands))
    elif all(standing.get(name, True) for name in sys.argv[1:]):
        quiet = ("-W", "ignore::DeprecationWarning")  # of built-in modules that the runner loads
        os.execv(sys.executable, [sys.executable, "-I", "-S", *quiet, "-c", runner])
    else:
        sys.exit("sandbox: a layer that this system supports could not be set up")
