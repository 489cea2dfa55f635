"""Train all stages of a job, or of several in a sweep: the only command that Hydra runs.

When you type `python -m nanolit.train phase=base model=d12`, conf/config.yaml sets hydra.mode=MULTIRUN: Hydra
hands the words to the launcher that conf/cluster/NAME.yaml chooses (launch/hydra_plugins/) and never calls
`train` itself. The local launcher composes the jobs, jobs/sweep.py checks and plans them, and jobs/execute.py
runs their stages.
"""

import os
import re
import sys
from collections.abc import Sequence
from itertools import pairwise

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from omegaconf import DictConfig

from nanolit.config.compose import compose
from nanolit.config.explain import USER_ERRORS, explain, help_text, malformed
from nanolit.config.words import as_typed
from nanolit.jobs.inputs import unwritable
from nanolit.jobs.sweep import JobFailed, run_jobs
from nanolit.machine.exit import INTERRUPTED, command
from nanolit.machine.paths import CONF, home
from nanolit.machine.terminal import printable

HYDRA_FLAGS = (
    *("-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "--resolve", "-p", "--package"),
    *("-r", "--run", "-m", "--multirun", "-sc", "--shell-completion", "-i", "--info"),
    *("-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir", "--experimental-rerun"),
)
FLAGS_WITH_VALUES = ("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name")
FLAGS_WITH_VALUES += ("-cd", "--config-dir", "--experimental-rerun")


def train(_config: DictConfig) -> float | None:
    """Run one job that Hydra runs itself, with hydra.mode=RUN or under submitit; return its bits per byte."""
    return run_jobs([compose(list(HydraConfig.get().overrides.task))])[0]


def refuse_unknown_flags(arguments: Sequence[str]) -> None:
    """ValueError for `--model d12` or `-model d12`: argparse's page does not say what to write."""
    for index, word in enumerate(arguments):
        flag = word.partition("=")[0]
        if word in ("--cfg", "-c") and arguments[index + 1 : index + 2] not in (["job"], ["hydra"], ["all"]):
            raise ValueError(f"{word} must be followed by job, hydra or all; {word} job prints every setting")
        if flag.startswith("-") and flag not in HYDRA_FLAGS:
            raise ValueError(malformed(word, "".join(arguments[index + 1 : index + 2])))


def flags_first(arguments: Sequence[str]) -> list[str]:
    """Return the words with the settings last if flags stand between them: argparse wants them together."""
    is_setting = [
        before not in FLAGS_WITH_VALUES and bool(re.match(r"[+~]*[\w./@]+=|~", word))
        for before, word in pairwise(["", *arguments])
    ]
    if sum(a and not b for a, b in pairwise([*is_setting, False])) < 2:  # they are together already
        return list(arguments)
    flags = [word for word, moves in zip(arguments, is_setting, strict=True) if not moves]
    return [*flags, *(word for word, moves in zip(arguments, is_setting, strict=True) if moves)]


def refuse_sweep_of_cfg(arguments: list[str]) -> None:
    """`--cfg` shows one job; Hydra's own advice on this (`--multirun`) ends in a traceback."""
    overrides = [word for word in arguments if "=" in word and not word.startswith("-")]
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.is_sweep_override():
            raise ValueError(
                f"--cfg shows one job, but {override.input_line} is a sweep of several; give one value"
            )


@command
def main(arguments: Sequence[str]) -> int:
    """Exit code 0: all is done; 2: the input was refused; 1: a job failed; 130: it was interrupted."""
    full_error = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, and we say it in one line
    try:
        if {"--help", "-h"} & set(arguments) or list(arguments) == ["help"]:
            print(help_text())
            return 0
        refuse_unknown_flags(arguments)
        if {"--cfg", "-c"} & set(arguments):
            refuse_sweep_of_cfg(list(arguments))
        sys.argv[1:] = as_typed(flags_first(arguments))  # which Hydra reads
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(train)()
    except BrokenPipeError:  # of `--cfg job | head`
        raise
    except (*USER_ERRORS, RuntimeError) as error:
        line = message(error, arguments)
        if full_error or not line:
            raise
        code = error.code if isinstance(error, JobFailed) else 2
        said = "" if code == INTERRUPTED else "error: "
        print(f"{said}{printable(' '.join(line.split()))}", file=sys.stderr)
        return code
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        return INTERRUPTED
    return 0


def message(error: BaseException, arguments: Sequence[str]) -> str:
    """Return the line for an error; "" for a fault of ours, which keeps its traceback."""
    overrides = [word for word in arguments if "=" in word and not word.startswith("-")]
    if isinstance(error, JobFailed):
        return str(error)
    if isinstance(error, RuntimeError) and not isinstance(error, RecursionError):
        login = "cluster=slurm_8xgpu submits with sbatch, which is not installed here; run it on a login node"
        return login if "srun" in str(error) else ""
    if isinstance(error, OSError) and error.filename:
        roots = [word.partition("=")[2] for word in overrides if word.startswith("root=")]
        return unwritable(error, str(home(roots[-1] if roots else None)))
    if isinstance(error, OverrideParseException):  # the word may have no "=", and the next belong to it
        words = list(arguments)
        overrides = words[words.index(error.override) :] if error.override in words else [error.override]
    return explain(error, overrides)


if __name__ == "__main__":
    sys.exit(main())
