"""Write checkpoints by steps, by time, at the end, and when a signal asks the run to stop."""

import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch

from nanolit.callbacks import checkpoint
from nanolit.callbacks.progress import Clock
from nanolit.machine.device import rank, world_size
from nanolit.machine.exit import AskedToStop, grace, ignore_ctrl_c, in_main_thread
from nanolit.machine.paths import Json
from nanolit.machine.terminal import say
from nanolit.phases.core import Phase, StoppedInStep

LONG_STEP_SECONDS = 5.0  # above which a stop is looked for between micro-batches, at a millisecond each
# After which a rank gives up on one that says nothing: gloo and NCCL would wait for half an hour
SILENCE = timedelta(minutes=10)
GRACE_SECONDS = grace() - 5  # to end the step: jobs/processes.py kills after 25, torchrun and clouds after 30


@dataclass(eq=False)
class Checkpoints(L.Callback):
    """Save every `save_every` steps and `save_seconds`, at the end, and when asked to stop.

    SIGINT, SIGTERM, SIGHUP and SIGUSR1 only raise a flag. All ranks agree on it after each step over a CPU
    group, so that they save and stop at the same step, whichever of them got the signal; a second SIGINT
    stops at once.

    Where a step is long, as the first one may be, they agree between its micro-batches too: a machine that is
    taken away leaves some 25 seconds, and a d26's step takes 224 s on an A10G. The step is begun again after
    the resume.
    """

    folder: Path
    _: KW_ONLY
    save_every: int
    save_seconds: float | None = None
    keep: int
    clock: Clock
    progress: Callable[[], Json]
    on_divergence: str

    def __post_init__(self) -> None:
        self.stop = False  # a signal asked for it, and all ranks know
        self._signals: AskedToStop | None = None
        self._begun = time.monotonic()  # the step
        # The last step was, on the slowest rank; of the first nobody knows. The same on all ranks: either all
        # of them ask within a step or none
        self._long = True
        self._group: Any = None
        self._stuck: EndIfStuck | None = None

    def on_train_start(self, trainer: L.Trainer, phase: Phase) -> None:
        self._saved, self._saved_step = time.monotonic(), phase.finished_steps
        phase.stops_in_step = self._stops_in_step
        if world_size() > 1:
            self._group = torch.distributed.new_group(backend="gloo", timeout=SILENCE)
        self._signals = AskedToStop(self._tell)
        if world_size() > 1 and in_main_thread():
            self._stuck = EndIfStuck()

    def _tell(self) -> None:
        if rank() == 0:
            say("stopping soon; Ctrl-C again stops at once, without a checkpoint")

    def on_train_batch_start(self, trainer: L.Trainer, phase: Phase, *_: object) -> None:
        self._begun = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, phase: Phase, *_: object) -> None:
        step, last = phase.finished_steps, phase.finished_steps == phase.num_steps
        asked = self._signals is not None and self._signals.asked
        is_long = time.monotonic() - self._begun > LONG_STEP_SECONDS
        self.stop, save, self._long = self._agreed(asked, self._due(step), is_long)
        if self.stop and self._stuck:
            self._stuck.step_ended()
        if last or self.stop or save:
            self._save(trainer, phase)
        if self.stop:
            ignore_ctrl_c()  # all is saved, and the run is ending: it would only break the way out
        if self.stop and not last:
            trainer.should_stop = True

    def on_exception(self, trainer: L.Trainer, phase: Phase, exception: BaseException) -> None:
        """Save what the last whole step left, when a long one was given up."""
        if not isinstance(exception, StoppedInStep):
            return
        self.stop = True
        if self._stuck:
            self._stuck.step_ended()
        phase.optimizer.zero_grad(set_to_none=True)
        if phase.finished_steps > self._saved_step:
            self._save(trainer, phase)
        ignore_ctrl_c()

    def _save(self, trainer: L.Trainer, phase: Phase) -> None:
        with self.clock.paused():
            loss = float(trainer.strategy.reduce(phase.step_loss, reduce_op="sum"))
            check_finite(loss, phase.finished_steps, on_divergence=self.on_divergence)
            written = checkpoint.write(self.folder, phase, self.progress())
            if rank() == 0:
                checkpoint.prune(self.folder, newest=written, keep=self.keep)
        self._saved, self._saved_step = time.monotonic(), phase.finished_steps

    def _due(self, step: int) -> bool:
        late = self.save_seconds is not None and time.monotonic() - self._saved > self.save_seconds
        return late or step % self.save_every == 0

    def _stops_in_step(self) -> bool:
        is_late = time.monotonic() - self._begun > LONG_STEP_SECONDS
        return self._long and any(self._agreed(is_late and self._signals is not None and self._signals.asked))

    def _agreed(self, *flags: bool) -> tuple[bool, ...]:
        """Return each flag if it is raised on any rank. Collective."""
        if self._group is None:
            return flags
        raised = torch.tensor(flags, dtype=torch.int32)
        torch.distributed.all_reduce(raised, op=torch.distributed.ReduceOp.MAX, group=self._group)
        return tuple(map(bool, raised))

    def teardown(self, trainer: L.Trainer, phase: Phase, stage: str) -> None:
        if self._stuck:
            self._stuck.close()


def check_finite(loss: float, step: int, *, on_divergence: str) -> None:
    """ValueError when training has diverged and `on_divergence` is "stop"."""
    if math.isfinite(loss) or on_divergence == "continue":
        return
    raise ValueError(
        f"the loss is {loss} at step {step}: training has diverged. Lower the learning rates in "
        "another run (run=NAME stage.base.lr_scale=0.5), or set on_divergence=continue"
    )


class EndIfStuck:
    """From SIGTERM on, a rank has GRACE_SECONDS to end its step; then its process ends, without a checkpoint.

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
        """Call this once all ranks have ended the step and know that they must stop."""
        self._ended.set()

    def close(self) -> None:
        signal.set_wakeup_fd(self._before)
        self._ended.set()
        self._writer.close()

    def _watch(self) -> None:
        with self._reader:
            while number := self._reader.recv(1):
                if number[0] == signal.SIGTERM and not self._ended.wait(GRACE_SECONDS):
                    print(
                        f"rank {rank()} was asked to stop, but the step of all ranks did not end within "
                        f"{GRACE_SECONDS:g} seconds: another rank must have died; the run resumes from its "
                        "last checkpoint",
                        file=sys.stderr,
                        flush=True,
                    )
                    os._exit(1)
