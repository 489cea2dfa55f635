"""Run a benchmark: `python -m benchmarks train model=d12`; each name is a module in this folder."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from nanolit.machine.arguments import choose, listing
from nanolit.machine.exit import command

LAUNCHERS = Path(__file__).resolve().parents[1] / "launch"
if (LAUNCHERS / "hydra_plugins").is_dir() and str(LAUNCHERS) not in sys.path:
    sys.path.append(str(LAUNCHERS))  # a checkout that is not installed; Hydra looks for plugins when imported

BENCHMARKS = (
    *("train", "inference", "kernels", "serving", "core"),
    *("profile", "parity", "determinism", "learning", "tokenizer", "loader"),
)


@command
def main(words: Sequence[str]) -> int:
    """Run the benchmark that is named first."""
    if not words or words[0] in ("-h", "--help"):
        print("usage: python -m benchmarks NAME …   (NAME --help for details)\n")
        print(listing({name: Path(__file__).with_name(f"{name}.py") for name in BENCHMARKS}))
        return 0
    name = choose(words[0], BENCHMARKS, kind="benchmark")
    return importlib.import_module(f"benchmarks.{name}").main(words[1:])


if __name__ == "__main__":
    sys.exit(main())
