"""A report as a small tree of sections, and the tree as Markdown; page.py makes a web page of it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nanolit.report.tables import markdown_table


@dataclass(frozen=True)
class Text:
    """One paragraph, without markup."""

    text: str


@dataclass(frozen=True)
class Code:
    """A command to copy, or text that must stay as it is."""

    text: str


@dataclass(frozen=True)
class Facts:
    """A few figures that a reader sees first: (label, value)."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Cells as text; the first `num_left` columns are flush left. "0.31 ± 0.02" is a value and its error."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_left: int = 1


@dataclass(frozen=True)
class Exchange:
    """What was asked, or begun, and what the model wrote: (prompt, reply)."""

    turns: Sequence[tuple[str, str]]
    chat: bool  # else the replies continue the prompts


@dataclass(frozen=True)
class Picture:
    """A PNG on disk, and the same for dark pages; `says` is its message for who cannot see it."""

    path: Path
    dark: bytes
    says: str


@dataclass(frozen=True)
class Pictures:
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Section:
    """A title above blocks; a folded one shows its title until it is opened."""

    title: str
    blocks: "Sequence[Block]"
    folded: bool = False


Block = Text | Code | Facts | Table | Exchange | Pictures | Section


def reworded(block: Block, change: Callable[[str], str]) -> Block:
    """Return the block with every paragraph and cell changed; what was written by a model stays."""
    if isinstance(block, Section):
        return replace(block, blocks=[reworded(part, change) for part in block.blocks])
    if isinstance(block, Text):
        return Text(change(block.text))
    if isinstance(block, Table):
        return replace(block, rows=[[change(cell) for cell in row] for row in block.rows])
    return block


def to_markdown(block: Block, *, folder: Path, level: int = 1) -> str:
    """Return a block as Markdown; pictures are linked from `folder`, where the text will lie."""
    if isinstance(block, Section):
        inside = "\n".join(to_markdown(part, folder=folder, level=level + 1) for part in block.blocks)
        if block.folded:
            return f"<details>\n<summary>{block.title}</summary>\n\n{inside}\n</details>\n"
        return f"{'#' * level} {block.title}\n\n{inside}"
    if isinstance(block, Text):
        return f"{block.text}\n"
    if isinstance(block, Code):
        return _fenced(block.text)
    if isinstance(block, Facts):
        labels, values = zip(*block.pairs, strict=True)
        return markdown_table(labels, [values], num_left=len(labels))
    if isinstance(block, Table):
        return markdown_table(block.header, block.rows, num_left=block.num_left)
    if isinstance(block, Exchange):
        form = "> {}\n{}" if block.chat else "{} …{}"
        return _fenced("\n\n".join(form.format(*turn) for turn in block.turns))
    links = (
        f"![{picture.says}]({picture.path.relative_to(folder).as_posix()})" for picture in block.pictures
    )
    return "\n\n".join(links) + "\n"


def _fenced(text: str) -> str:
    """Return the text in a fence that it cannot leave: what a model writes must not turn into Markdown."""
    longest = max((len(ticks) for ticks in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}\n"
