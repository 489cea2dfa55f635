"""torchrun without its tracebacks: `python -m nanolit.jobs.ranks` takes torchrun's arguments.

What went wrong in a rank, the rank has said; this adds which of them ended first, and how.
"""

import logging
import signal
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import main as torchrun

from nanolit.jobs.processes import LEFT


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
        print(first_of(error.failures), file=sys.stderr, flush=True)
        return 1
    return 0


def first_of(failures: dict[int, ProcessFailure]) -> str:
    """Which rank began it. torchrun's times are whole seconds, so those that only followed are put last:
    ranks that left because another was gone, and those that torchrun then told to stop."""
    followed = (LEFT, -signal.SIGTERM)
    rank = min(failures, key=lambda rank: (failures[rank].exitcode in followed, failures[rank].timestamp))
    failure = failures[rank]
    killed = failure.exitcode < 0
    how = f"was killed by {failure.signal_name()}" if killed else f"ended with code {failure.exitcode}"
    return f"rank {rank} {how}, the first of them"


if __name__ == "__main__":
    sys.exit(main())
