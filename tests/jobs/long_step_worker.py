"""jobs/worker.py where every step counts as long, and rank 1 alone is asked to stop in its fourth."""

import os
import signal
from typing import Any

from nanolit.callbacks import saving
from nanolit.jobs import worker
from nanolit.phases.core import Phase

saving.LONG_STEP_SECONDS = -1.0
ASKED_IN = 3  # finished steps
loss, asked = Phase.loss, []


def loss_of_rank(self: Phase, *batch: Any) -> Any:
    if (os.environ["RANK"], self.finished_steps, asked) == ("1", ASKED_IN, []) and self.training:
        asked.append(True)
        os.kill(os.getpid(), signal.SIGTERM)
    return loss(self, *batch)


Phase.loss = loss_of_rank

if __name__ == "__main__":
    worker.main()
