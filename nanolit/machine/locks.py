"""Locks of files, which keep the processes of a machine or a shared file system out of each other's way."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no flock: nothing is held there
    fcntl = None


@contextmanager
def held(path: Path, *, busy: str = "", wait: bool = False) -> Iterator[list[int]]:
    """Hold the lock of a file; yield its descriptor, for children to inherit; ValueError if it is taken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                file.seek(0)
                holder = file.read().strip() or "another"
                raise ValueError(
                    f"{busy} by process {holder}; wait for it, stop it, or give another run=NAME"
                ) from error
            except OSError:
                pass  # a file system without locks, as network mounts may be
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield [file.fileno()]


def is_held(path: Path) -> bool:
    """Tell whether another process holds the lock of this file now; False where there are no locks."""
    if fcntl is None or not path.exists():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            pass  # a file system without locks
    return False
