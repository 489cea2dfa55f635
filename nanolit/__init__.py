"""NanoLit: train a small ChatGPT end to end; `nanolit.load(path_or_run).chat(text)` uses one."""

from __future__ import annotations

import os
import shlex
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from nanolit.language_model import LanguageModel


def _check_python() -> None:
    """End `python -m nanolit.NAME` in a line where this Python is too old or lacks what NanoLit needs."""
    missing = [name for name in ("torch", "lightning", "hydra", "tiktoken", "psutil") if not find_spec(name)]
    if sys.version_info >= (3, 11) and not missing:
        return
    activate = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), ".venv/bin/activate")
    remedy = f"source {shlex.quote(activate)}" if os.path.exists(activate) else "make setup"
    lacks = "is older than 3.11" if sys.version_info < (3, 11) else f"has no {missing[0]}"
    print(f"error: {sys.executable} {lacks}; run `{remedy}`, then the same command", file=sys.stderr)
    sys.exit(2)


if sys.argv[:1] == ["-m"]:  # as long as Python looks for the module to run
    _check_python()

# Telemetry that libraries send by default; they read these variables when they are imported. Set one yourself
# to allow it.
TELEMETRY = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "WANDB_ERROR_REPORTING": "false",
}
for _name, _off in TELEMETRY.items():
    os.environ.setdefault(_name, _off)


# Set before torch is imported, because its OpenMP reads it then. By default a thread that waits spins for
# milliseconds at every parallel loop, while the thread it waits for has no core: on a busy laptop the demo
# ran at a fifth of its speed. Short spinning keeps 45% of it beside two busy programs, and all of it alone,
# where threads that sleep at once lose a sixth (LOG.md, 2026-11-30).
OPENMP_WAITS = {"GOMP_SPINCOUNT": "1500", "KMP_BLOCKTIME": "0"}  # GNU's counts turns, LLVM's milliseconds
if not {"OMP_WAIT_POLICY", *OPENMP_WAITS} & os.environ.keys():  # never over what the user set
    os.environ.update(OPENMP_WAITS)


def load(
    run_or_release: str | Path,
    root: str | Path | None = None,
    device: str | torch.device | None = None,
    *,
    stage: str | None = None,
) -> LanguageModel:
    """Load a trained model that can talk: `.chat(messages)`, `.generate(text)`, `.model`, `.tokenizer`.

    Takes a release folder, or a run's name below `root` (`d12-modern-s1`, its last stage, or with `stage`
    another, which `d12-modern-s1/base` is short for). `root` defaults to NANOLIT_HOME or ./runs, `device` to
    the best one there is.
    """
    from nanolit.language_model import load_language_model

    return load_language_model(run_or_release, stage=stage, root=root, device=device)
