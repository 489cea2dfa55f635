"""How a command ends: with its exit code, and without a traceback on Ctrl-C or when nobody reads on."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn


def leave(main: Callable[[], int]) -> NoReturn:
    """Exit with the code of `main`; 130 on Ctrl-C, 1 when what reads our output has gone (`| head`)."""
    try:
        code = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else its last flush fails as well
        code = 1
    sys.exit(code)
