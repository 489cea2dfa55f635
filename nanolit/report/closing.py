"""The last lines of a run: a short conversation, the scores, where the pictures are, how to talk to it."""

import os
from pathlib import Path

from nanolit.machine.terminal import bold, printable
from nanolit.report.card import chat_command, final_table, talk
from nanolit.report.folders import open_run
from nanolit.report.sections import Exchange

SHOWN_CHARACTERS = 800  # of a reply


def closing(root: Path, run: str, report: Path) -> str:
    """Return the closing lines of a finished run, whose report is at `report`."""
    stages = {picture.parent for picture in report.parent.glob("*/*.png")}
    pictures = f"{shown(report.parent)}/{'*' if len(stages) > 1 else next(iter(stages), Path()).name}/*.png"
    talks = any(report.parent.glob("*/release"))
    places = [
        ("report", f"{shown(report.with_suffix('.html'))} (for a browser), {report.name}"),
        *([("pictures", pictures)] if stages else []),
        *([("chat", f"{chat_command(root, run)} (web=true serves a page)")] if talks else []),
    ]
    lines = "\n".join(f"{bold(f'{name:<12}')}{text}" for name, text in places)
    return "\n".join(filter(None, (conversation(root, run), final_table(root, run), lines)))


def conversation(root: Path, run: str) -> str:
    """Return what the last stage answered when it was asked, "" where none has; a base continues texts."""
    for block in talk(open_run(root, run)):
        if isinstance(block, Exchange):
            asked, wrote = ("you", run) if block.chat else ("prompt", "continuation")
            width = max(len(asked), len(wrote)) + 2
            lines = []
            for prompt, reply in block.turns:
                words = printable(" ".join(reply.split()))
                cut = words if len(words) <= SHOWN_CHARACTERS else f"{words[:SHOWN_CHARACTERS]} …"
                lines += [f"{bold(f'{asked:<{width}}')}{prompt}", f"{bold(f'{wrote:<{width}}')}{cut}"]
            return "\n".join([*lines, ""])
    return ""


def shown(path: Path) -> str:
    """Return the path as it is shortest to type from here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
