"""End a command with its exit code, and without a traceback for what the user can fix."""

import atexit
import functools
import os
import sys
from collections.abc import Callable, Sequence

from nanolit.machine.signals import ignore_ctrl_c
from nanolit.machine.terminal import printable


def command(main: Callable[[Sequence[str]], int | None]) -> Callable[..., int]:
    """Make `main(words)` a command: call it with the words typed, or given, and return the exit code.

    Codes: what `main` returns; 2 with `error: …` on stderr for a ValueError or OSError, or its traceback if
    HYDRA_FULL_ERROR is set; 130 for Ctrl-C; 1 when whatever reads our output is gone (`| head`).
    """

    @functools.wraps(main)
    def guarded(words: Sequence[str] | None = None) -> int:
        atexit.register(ignore_ctrl_c)  # once the process ends, another Ctrl-C would only spoil its exit code
        try:
            try:
                return main(sys.argv[1:] if words is None else words) or 0
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit fails too
            return 1
        except (ValueError, OSError) as error:
            if "HYDRA_FULL_ERROR" in os.environ:
                raise
            print(f"error: {printable(str(error))}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return 130

    return guarded
