"""Lines for a person: plain text in a pipe, bold where a terminal shows it, never what steers a terminal."""

import errno
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from nanolit.machine.system import launched_rank

MOVE = "something else has this name: move it away"
PERMIT = "make it readable and writable, or use another folder"
BOLD = ("\033[1m", "\033[0m")
# Control characters but tab and newline, and halves of surrogate pairs
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
LONGEST_WORD = 20  # that a stream waits for
REMEDIES = {
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENOTEMPTY), MOVE),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), PERMIT),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, or use another disk"),
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


def printable(text: str) -> str:
    """Return `text` with control characters, newline and tab excepted, as pictures of themselves.

    Some move the cursor, rename the window or type for the user: ␛ says that one was there.
    """
    return STEERING.sub(picture, text)


def picture(match: re.Match[str]) -> str:
    """Return what stands in a terminal for a character that would steer it, or that cannot be encoded."""
    character = match[0]
    if character >= "\ud800":
        return "\ufffd"  # half a surrogate pair
    return chr(0x2400 + ord(character)) if character < " " else "␡"


def at_terminal() -> bool:
    """Return True if stdout is a terminal that can move its cursor."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def bold(text: str) -> str:
    """Return the text, bold at a terminal unless NO_COLOR is set (https://no-color.org)."""
    return f"{BOLD[0]}{text}{BOLD[1]}" if at_terminal() and not os.environ.get("NO_COLOR") else text


def say(text: str) -> None:
    """Print lines at once, broken between words at a terminal; a progress bar stays below them.

    Ranks but the first say nothing. Nothing but `bold` steers the terminal.
    """
    if launched_rank():
        return
    text = "".join(part if part in BOLD else printable(part) for part in re.split(r"(\033\[[01]m)", text))
    print(fitted(text, shutil.get_terminal_size().columns) if at_terminal() else text, flush=True)


def fitted(text: str, width: int) -> str:
    """Break lines longer than `width` between words, and indent what follows as far as their value begins.

    Rows of a table stay whole, and so do lines with a command, which people copy.
    """
    wrapper = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    lines = []
    for line in text.split("\n"):
        plain = re.sub(r"\033\[\d*m", "", line)
        name = re.match(r" *(?:\S+(?: \S+)? {2,})?", plain)
        start = name.end() if name else 0
        if len(plain) <= width or plain.startswith("|") or "python -m" in plain:
            lines.append(line)
            continue
        wrapper.subsequent_indent = " " * (start if plain[:start].strip() else start + 2)
        first, *rest = wrapper.wrap(plain)
        codes = len(line) - len(plain)  # bold names
        lines += [line[: start + codes] + first[start:], *rest]
    return "\n".join(lines)


def one_line(error: BaseException) -> str:
    """Return an error's message on one printable line; one of the system has the file and a remedy."""
    text = printable(" ".join(str(error).split()))
    if isinstance(error, OSError) and error.errno in REMEDIES and text.startswith("[Errno"):
        names = [printable(str(name)) for name in (error.filename2 or error.filename,) if name]
        text = ": ".join([*names, f"{os.strerror(error.errno)}; {REMEDIES[error.errno]}"])
    return re.sub(r"\[Errno -?\d+\] ", "", text)


def unbroken(pieces: Iterable[str], width: int) -> Iterator[str]:
    """Yield text as it comes, with a line break in place of the blank before a word that would not fit.

    A word is held back until it is whole, or too long to wait for.
    """
    column, held = 0, ""
    for character in chain.from_iterable(pieces):
        if held and (character in " \n" or len(held) > LONGEST_WORD):
            yield (fits := _placed(held, width - column))
            column, held = (len(held) - 1 if fits[0] == "\n" else column + len(held)), ""
        if character == "\n":
            yield character
            column = 0
        else:
            held += character
    yield _placed(held, width - column)


def _placed(word: str, room: int) -> str:
    """Return the word, its blank a line break where there is no room for it."""
    return f"\n{word[1:]}" if word[:1] == " " and len(word) > room else word


def duration(seconds: float) -> str:
    """Return '1:15' for 75 seconds, '1:01:40' for 3700."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def train_command(words: Sequence[str]) -> str:
    """Return the command that trains with these words, quoted for the shell."""
    return shlex.join(["python", "-m", "nanolit.train", *words])
