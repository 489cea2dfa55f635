"""The end of a process: signals that ask for it, and a command's exit code in place of a traceback.

SIGHUP, of a terminal that was closed or an ssh connection that was lost, asks for the same as SIGTERM, and so
does SIGUSR1, which SLURM sends before a job's time is over (`sbatch --signal=USR1@90`).
"""

import atexit
import functools
import io
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from nanolit.machine.terminal import one_line

INTERRUPTED = 130  # the exit code after Ctrl-C, as a shell has it
GRACE_SECONDS = 25  # what a rank gets to write its checkpoint; Modal and SLURM kill after about 30
GRACE = "NANOLIT_GRACE_SECONDS"  # set by jobs/processes.py where whoever stops us waits longer
NO_MEMORY = ("allocate memory", "out of memory", "start new thread", "failed to map segment")
MORE_MEMORY = (
    "out of memory; close other programs, raise the limit (ulimit -v), or choose a smaller model or batch"
)


def command(main: Callable[[Sequence[str]], int | None]) -> Callable[..., int]:
    """Make `main(words)` a command: call it with the words typed, or given, and return the exit code.

    Codes: what `main` returns; 2 with `error: …` on stderr for a ValueError, an OSError or too little memory,
    or the traceback if HYDRA_FULL_ERROR is set; 130 for Ctrl-C; 1 when whatever reads our output is gone.
    """

    @functools.wraps(main)
    def guarded(words: Sequence[str] | None = None) -> int:
        open_streams()
        try:
            try:
                return main(sys.argv[1:] if words is None else words) or 0
            finally:
                # Once the process ends, another Ctrl-C would only spoil its exit code. Registered last, it is
                # called first: before torch tidies up
                atexit.register(ignore_ctrl_c)
                sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit fails too
            return 1
        except (ValueError, OSError, MemoryError, RuntimeError, ImportError) as error:
            little = lacks_memory(error)
            is_ours = isinstance(error, RuntimeError | ImportError) and not little
            if "HYDRA_FULL_ERROR" in os.environ or is_ours:
                raise
            print(f"error: {MORE_MEMORY if little else one_line(error)}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return INTERRUPTED

    return guarded


def open_streams() -> None:
    """Let streams that the shell closed (`>&-`) lead nowhere, and stdout escape what its encoding lacks.

    Python has None in place of a closed stream; an error in printing would end a run.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the lowest descriptor that is free is the one that was closed
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for the rest of the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does


def lacks_memory(error: BaseException) -> bool:
    """Tell whether memory was too little; Python, torch, threads and libraries have no class in common."""
    told = isinstance(error, RuntimeError | ImportError) and any(sign in str(error) for sign in NO_MEMORY)
    return told or isinstance(error, MemoryError)


def ending() -> list[signal.Signals]:
    """Return SIGTERM, SIGHUP and SIGUSR1, without one that is ignored (nohup) or that a C library handles."""
    names = [name for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
    numbers = [signal.Signals[name] for name in names]
    return [number for number in numbers if signal.getsignal(number) not in (signal.SIG_IGN, None)]


def grace() -> float:
    """Return the seconds that this process has from a request to stop to its end."""
    return float(os.environ.get(GRACE, GRACE_SECONDS))


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


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Turn these signals into a KeyboardInterrupt, so that they reach the same clean-up as Ctrl-C."""

    def interrupt(number: int, _frame: object) -> None:
        leave_terminal(number)
        raise KeyboardInterrupt

    with handlers_kept():
        if in_main_thread():
            for number in ending():
                signal.signal(number, interrupt)
        yield


def ignore_ctrl_c() -> None:
    """Ignore Ctrl-C from now on: this process is ending, and another one would only disturb that."""
    if in_main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def leave_terminal(number: int) -> None:
    """Print to nowhere after SIGHUP: the terminal is gone, and printing to it would be an error."""
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
