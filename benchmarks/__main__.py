"""Benchmarks: `python -m benchmarks train model=d12`; one module of this folder for each name."""

import importlib
import sys
from pathlib import Path

from nanolit.machine.exit import leave

LAUNCHERS = Path(__file__).resolve().parents[1] / "launch"
if (LAUNCHERS / "hydra_plugins").is_dir() and str(LAUNCHERS) not in sys.path:
    sys.path.append(str(LAUNCHERS))  # a checkout that is not installed; Hydra looks for plugins when imported

BENCHMARKS = ("train", "profile", "parity", "determinism", "tokenizer", "loader")


def main() -> int:
    """Run the benchmark that is named first; 2 for input that was refused."""
    name, *arguments = sys.argv[1:] or [""]
    if {"--help", "-h"} & {name, *arguments}:
        chosen = [name] if name in BENCHMARKS else BENCHMARKS
        for one in chosen:
            module = importlib.import_module(f"benchmarks.{one}")
            own = " ".join(f"{key}={value}" for key, value in module.OWN.items())
            print(str(module.__doc__).replace("see OWN", own))
        return 0
    if name not in BENCHMARKS:
        print(
            f"there is no benchmark {name!r}; give one of {', '.join(BENCHMARKS)}, then key=value settings",
            file=sys.stderr,
        )
        return 2
    try:
        return importlib.import_module(f"benchmarks.{name}").main(arguments)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    leave(main)
