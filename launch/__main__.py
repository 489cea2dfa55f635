"""Manage runs on Modal: list, follow, stop and download runs, upload data, check the account."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import modal

from launch import commands, drill
from launch.submit import explain
from nanolit.machine.arguments import choose, read
from nanolit.machine.exit import command

COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "status": (commands.OneOrAllRuns, commands.status),
    "logs": (commands.Logs, commands.logs),
    "attach": (commands.OneRun, commands.attach),
    "stop": (commands.RunOrChat, commands.stop),
    "fetch": (commands.Fetch, commands.fetch),
    "put": (commands.Put, commands.put),
    "cost": (commands.RunOrChat, commands.cost),
    "open": (commands.RunOrChat, commands.open_page),
    "drill": (drill.Drill, drill.drill),
    "doctor": (commands.Doctor, commands.doctor),
}


@command
def main(words: Sequence[str]) -> int:
    """Run the command that is named first; the exit code is 1 for a run that ended badly."""
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: python -m launch COMMAND …   (COMMAND --help for details)\n\n{__doc__}\n")
        for name, (_, run) in COMMANDS.items():
            print(f"  {name:<8}{(run.__doc__ or '').partition(chr(10))[0]}")
        return 0
    settings, run = COMMANDS[choose(words[0], COMMANDS, kind="command")]
    try:
        return run(read(settings, words[1:], about=run.__doc__))
    except modal.exception.Error as error:
        raise ValueError(explain(error)) from error


if __name__ == "__main__":
    sys.exit(main())
