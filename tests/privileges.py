"""Run code for which file permissions count, also where the tests run as root."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dev.damages import drop_privileges


def without_privileges(work: Callable[[], Any]) -> Any:
    """Return what `work` returns, or raise what it raises, in a thread that is held to permissions.

    Linux has capabilities for each thread; another user than root has none to drop.
    """
    with ThreadPoolExecutor(1, initializer=drop_privileges) as thread:
        return thread.submit(work).result()
