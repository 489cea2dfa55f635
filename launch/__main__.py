"""Look after what runs on Modal: see, follow, stop and fetch runs, send data, check the account."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import modal

from launch import commands
from launch.submit import explain
from nanolit.machine.exit import leave
from nanolit.machine.paths import home

COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int], str]] = {
    "status": (commands.status, "every submitted run, or the stages of one"),
    "logs": (commands.logs, "the last lines that a run has printed; -f: all, until it ends"),
    "attach": (commands.attach, "wait for a run, with its logs, to its result"),
    "stop": (commands.stop, "end a run: it writes a checkpoint, and the same command goes on from it later"),
    "fetch": (commands.fetch, "bring a run's artefacts here (without --checkpoints: not those)"),
    "put": (commands.put, "send a file or a folder to the volume"),
    "cost": (commands.cost, "how long a run's calls have taken, and about what that costs"),
    "doctor": (commands.doctor, "check the token, the volume and the secrets; --gpu T4 tries a GPU (cents)"),
}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m launch", description=__doc__)
    below = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, text) in COMMANDS.items():
        one = below.add_parser(name, help=text, description=text)
        one.add_argument("--root", help="where submissions are (default: NANOLIT_HOME, else ./runs)")
        if name in ("put", "doctor"):
            one.add_argument("--volume", default="nanolit", help="a volume of Modal's (default: nanolit)")
            one.add_argument("--environment", help="an environment of Modal's")
        if name == "put":
            one.add_argument("path", type=Path)
            one.add_argument("place", nargs="?", help="where on the volume (default: uploads/NAME)")
        elif name == "doctor":
            one.add_argument("--secret", action="append", default=[], help="a secret that has to be there")
            one.add_argument("--gpu", help="run a function on it, such as T4 or H100!:8")
        else:
            one.add_argument("run", nargs="?" if name == "status" else None, help="a run's name")
        if name == "logs":
            one.add_argument("-f", "--follow", action="store_true")
        if name == "fetch":
            one.add_argument("--checkpoints", action="store_true", help="the checkpoints too")
    return parser


def main(words: list[str] | None = None) -> int:
    """0, 1 for a run that ended badly, 2 with one line for input that was refused, 130 for Ctrl-C."""
    arguments = parser().parse_args(words)
    arguments.root = home(arguments.root)
    try:
        return COMMANDS[arguments.command][0](arguments)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except modal.exception.Error as error:
        print(explain(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    leave(main)
