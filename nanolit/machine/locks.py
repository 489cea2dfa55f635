"""Locks of files, which keep the processes of a machine or a shared file system out of each other's way."""

import errno
import functools
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import psutil

try:
    import fcntl
except ImportError:  # Windows has no flock: nothing is held there
    fcntl = None


@contextmanager
def held(path: Path, *, busy: str = "", wait: bool = False) -> Iterator[list[int]]:
    """Hold the lock of a file; yield its descriptor, for children to inherit; ValueError if it is taken."""
    with open_lock(path) as file:
        try:
            if fcntl is None:
                raise OSError(errno.ENOLCK, "no flock on this system")
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            file.seek(0)
            raise ValueError(f"{busy} by {holder(file.read())}") from error
        except OSError as error:  # a file system without locks, as network mounts may be
            warn_unlocked(str(path.parent), error.strerror)
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield [file.fileno()]


def open_lock(path: Path) -> TextIO:
    """Open a lock's file, made where it is missing; ValueError where something else has its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Opening a pipe would wait for whoever reads it; a link may lead to a file of ours, and a lock is emptied
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ValueError(f"{path} must be a file, since it is a lock; delete it")
    return path.open("a+")


def holder(content: str) -> str:
    """Say who holds a lock by what stands in its file, and what to do."""
    pid, _, host = content.strip().partition(" on ")
    here = host == socket.gethostname()
    if here and pid.isdecimal() and not psutil.pid_exists(int(pid)):
        return f"ranks of process {pid}, which has ended; they end within half a minute: then try again"
    elsewhere = f" on {host}" if host and not here else ""
    return f"process {pid or 'another'}{elsewhere}; wait for it, stop it, or use another name"


@functools.cache
def warn_unlocked(folder: str, reason: str) -> None:
    """Warn once for each folder."""
    warnings.warn(
        f"{folder} cannot be locked ({reason}): nothing stops a second process; start one at a time",
        stacklevel=4,
    )


def is_held(path: Path) -> bool:
    """Tell whether another process holds the lock of this file now; False where there are no locks."""
    try:
        if fcntl is None or not path.is_file():
            return False
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # a file system without locks, or a file that may not be read
    return False
