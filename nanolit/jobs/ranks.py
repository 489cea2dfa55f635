"""torchrun without its tracebacks: `python -m nanolit.jobs.ranks` takes torchrun's arguments.

What went wrong in a rank, the rank has said; this adds which of them ended first, and how.
"""

import logging
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun


def main() -> int:
    """Exit code 1 when a rank failed, or when all were told to stop."""
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        torchrun()
    except SignalException:
        return 1
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        killed = failure.exitcode < 0
        how = f"was killed by {failure.signal_name()}" if killed else f"ended with code {failure.exitcode}"
        print(f"rank {rank} {how}, the first of them", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
