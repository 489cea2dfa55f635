"""Texts of a report without the folders of the machine: a report is made to be shown around."""

import re
from pathlib import Path

# Of an absolute path, its folders; one within a word, an address or another path is none
PATH = re.compile(r"(?<![\w./:~-])~?(?:/[^\s/'\",:;()|]+)+")


def portable(text: str, root: Path) -> str:
    """Return the text with paths from `root` on where they lie below it, else with their last part alone."""

    def shorter(match: re.Match[str]) -> str:
        path = Path(match[0])
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else f".../{path.name}"

    return PATH.sub(shorter, text)
