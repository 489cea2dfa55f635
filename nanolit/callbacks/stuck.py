"""The end of a rank that waits in vain for another one."""

import os
import signal
import socket
import sys
import threading
from datetime import timedelta

from nanolit.machine.device import rank

# After which a rank gives up on one that says nothing: gloo and NCCL would wait for half an hour
SILENCE = timedelta(minutes=10)
SECONDS = 20  # jobs/processes.py kills after 25, torchrun and clouds after 30


class EndIfStuck:
    """From SIGTERM on, a rank has `SECONDS` to end its step; then its process ends, without a checkpoint.

    The other ranks get it when one has died, and what they compute together then never returns. In a
    thread that waits there no handler of Python's runs; the interpreter's wake-up descriptor tells another
    thread. Make it in the main thread.
    """

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="stuck", daemon=True).start()

    def step_ended(self) -> None:
        """All ranks ended the step and know that they shall stop."""
        self._ended.set()

    def close(self) -> None:
        signal.set_wakeup_fd(self._before)
        self._ended.set()
        self._writer.close()

    def _watch(self) -> None:
        with self._reader:
            while number := self._reader.recv(1):
                if number[0] == signal.SIGTERM and not self._ended.wait(SECONDS):
                    print(
                        f"rank {rank()} was told to stop, and the step of all ranks did not end in {SECONDS} "
                        "seconds: another rank must be gone; the run goes on from its last checkpoint",
                        file=sys.stderr,
                        flush=True,
                    )
                    os._exit(1)
