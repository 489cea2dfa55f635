"""Lines for a person: plain text in a pipe, bold where a terminal shows it, never what steers a terminal."""

import os
import shlex
import sys
import unicodedata
from collections.abc import Sequence


def printable(text: str) -> str:
    """Return `text` with control characters, newline and tab excepted, as pictures of themselves.

    Some move the cursor, rename the window or type for the user: ␛ says that one was there.
    """
    return "".join(map(picture, text))


def picture(character: str) -> str:
    """Return what stands for a character in a terminal: itself, unless it steers or cannot be encoded."""
    category = unicodedata.category(character)
    if character in "\n\t" or category not in ("Cc", "Cs"):
        return character
    if category == "Cs":
        return "\ufffd"  # half a surrogate pair
    return chr(0x2400 + ord(character)) if ord(character) < 0x20 else "␡"


def at_terminal() -> bool:
    """Return True if stdout is a terminal that can move its cursor."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def bold(text: str) -> str:
    """Return the text, bold at a terminal unless NO_COLOR is set (https://no-color.org)."""
    return f"\033[1m{text}\033[0m" if at_terminal() and not os.environ.get("NO_COLOR") else text


def say(text: str) -> None:
    """Print a line at once; a progress bar stays below it."""
    print(text, flush=True)


def one_line(error: Exception) -> str:
    """Return an error's whole message in one line."""
    return " ".join(str(error).split())


def duration(seconds: float) -> str:
    """Return '1:15' for 75 seconds, '1:01:40' for 3700."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def train_command(words: Sequence[str]) -> str:
    """Return the command that trains with these words, quoted for the shell."""
    return shlex.join(["python", "-m", "nanolit.train", *words])
