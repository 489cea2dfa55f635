"""Signals that ask this process to end.

SIGHUP, of a terminal that was closed or an ssh connection that was lost, asks for the same as SIGTERM.
"""

import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def ending() -> list[signal.Signals]:
    """Return SIGTERM and SIGHUP, without one that is ignored, as nohup has SIGHUP."""
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [signal.Signals[name] for name in names]
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


def in_main_thread() -> bool:
    """Tell whether handlers can be set here: Python has them in the main thread alone."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put the handlers back at the end, whoever changed them: Lightning's would hold the model."""
    if not in_main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *ending())}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_ctrl_c() -> None:
    """From now on Ctrl-C changes nothing: this process is ending, and more of them would only hurt that."""
    if in_main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def leave_terminal(number: int) -> None:
    """After SIGHUP, print to nowhere: the terminal is gone, and printing to it would be an error."""
    if number == getattr(signal, "SIGHUP", None):
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            if stat.S_ISCHR(os.fstat(stream).st_mode):
                os.dup2(nowhere, stream)
        os.close(nowhere)


class AskedToStop:
    """`asked` is True once a signal asked this process to stop; made in the main thread.

    A second SIGINT is a KeyboardInterrupt, and those that follow are ignored. Whoever makes this puts the
    handlers back (`handlers_kept`).
    """

    def __init__(self, tell: Callable[[], None]) -> None:
        self.asked = False
        self.tell = tell
        if in_main_thread():
            for number in (signal.SIGINT, *ending()):
                signal.signal(number, self._ask)

    def _ask(self, number: int, _frame: object) -> None:
        leave_terminal(number)
        signal.signal(signal.SIGINT, self._interrupt)
        if not self.asked:
            self.asked = True
            self.tell()

    def _interrupt(self, _number: int, _frame: object) -> None:
        ignore_ctrl_c()
        raise KeyboardInterrupt
