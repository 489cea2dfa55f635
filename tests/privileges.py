"""Run code for which file permissions count, also where the tests run as root."""

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any

VERSION_3 = 0x20080522
OVERRIDE_AND_SEARCH = 0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


def without_privileges(work: Callable[[], Any]) -> Any:
    """Return what `work` returns, or raise what it raises, in a thread that is held to permissions.

    Linux has capabilities for each thread; another user than root has none to drop.
    """
    result: list[Any] = []

    def run() -> None:
        try:
            if os.geteuid() == 0:
                drop()
            result.append((work(), None))
        except Exception as error:
            result.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    value, error = result[0]
    if error:
        raise error
    return value


def drop() -> None:
    libc = ctypes.CDLL(None)
    header, data = (ctypes.c_uint32 * 2)(VERSION_3, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    data[0] &= ~OVERRIDE_AND_SEARCH
    assert libc.capset(header, data) == 0
