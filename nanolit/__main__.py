"""`nanolit NAME …` is the same as `python -m nanolit.NAME …`; without a name it lists the commands."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from nanolit.machine.arguments import choose, listing
from nanolit.machine.exit import command
from nanolit.machine.system import code_version

ENDING = '\nif __name__ == "__main__":\n'  # of every command's file


def commands() -> dict[str, Path]:
    """Return the file of every command by name: a module here, or the `__main__` of a package here."""
    folder = Path(__file__).parent
    paths = {path.stem: path for path in folder.glob("[a-z]*.py")}  # not this file
    paths |= {path.parent.name: path for path in folder.glob("*/__main__.py")}
    return {name: path for name, path in sorted(paths.items()) if ENDING in path.read_text("utf-8")}


@command
def main(words: Sequence[str]) -> int:
    """Run the command that is named first with the words behind it."""
    name, *rest = words or ["help"]
    if name in ("help", "-h", "--help") and not rest:
        print("usage: nanolit COMMAND …   (nanolit COMMAND --help for details)\n")
        print(listing(commands()))
        return 0
    if name in ("version", "-V", "--version"):
        print(f"nanolit {code_version()}")
        return 0
    if name == "help":
        name, *rest = rest[0], "--help"
    choose(name, [*commands(), "help", "version"], kind="command")
    path = commands()[name]
    sys.argv = [f"nanolit {name}", *rest]  # Hydra reads it
    module = f"nanolit.{name}.__main__" if path.name == "__main__.py" else f"nanolit.{name}"
    return importlib.import_module(module).main()


if __name__ == "__main__":
    sys.exit(main())
