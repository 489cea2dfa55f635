"""A report as a small tree of blocks: each gives itself as Markdown and as HTML."""

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from nanolit.report.tables import MISSING, markdown_table

# Of an absolute path, its folders; one within a word, an address or another path is none
PATH = re.compile(r"(?<![\w./:~-])~?(?:/[^\s/'\",:;()|]+)+")


@dataclass(frozen=True)
class Text:
    """One paragraph, without markup."""

    text: str

    def markdown(self, folder: Path, level: int) -> str:
        return f"{self.text}\n"

    def html(self, level: int) -> str:
        return f"<p>{escape(self.text)}</p>"


@dataclass(frozen=True)
class Code:
    """A command to copy, or text that must stay as it is."""

    text: str

    def markdown(self, folder: Path, level: int) -> str:
        """Return the text in a fence that it cannot leave: what a model writes must not become Markdown."""
        longest = max((len(ticks) for ticks in re.findall(r"`+", self.text)), default=0)
        fence = "`" * max(3, longest + 1)
        return f"{fence}text\n{self.text}\n{fence}\n"

    def html(self, level: int) -> str:
        return f"<pre>{escape(self.text)}</pre>"


@dataclass(frozen=True)
class Facts:
    """A few figures that a reader sees first: (label, value)."""

    pairs: Sequence[tuple[str, str]]

    def markdown(self, folder: Path, level: int) -> str:
        labels, values = zip(*self.pairs, strict=True)
        return markdown_table(labels, [values], num_left=len(labels))

    def html(self, level: int) -> str:
        form = "<div><dt>{}</dt><dd>{}</dd></div>"
        return f'<dl class="facts">{"".join(form.format(*map(escape, pair)) for pair in self.pairs)}</dl>'


@dataclass(frozen=True)
class Table:
    """Cells as text; the first `num_left` columns are flush left. "0.31 ± 0.02" is a value and its error."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_left: int = 1

    def markdown(self, folder: Path, level: int) -> str:
        return markdown_table(self.header, self.rows, num_left=self.num_left)

    def html(self, level: int) -> str:
        header = "".join(f"<th>{escape(cell)}</th>" for cell in self.header)
        rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in self.rows)
        return (
            f'<div class="wide"><table class="left{self.num_left}">\n<thead><tr>{header}</tr></thead>\n'
            f"<tbody>\n{rows}</tbody>\n</table></div>"
        )


def _cell(text: str) -> str:
    """Return a cell with its error bar set small."""
    if text == MISSING:
        return '<td class="none">–</td>'
    value, sign, error = text.partition(" ± ")
    return f"<td>{escape(value)}{f' <small>± {escape(error)}</small>' if sign else ''}</td>"


@dataclass(frozen=True)
class Exchange:
    """Questions, or beginnings of texts, and what the model wrote: (prompt, reply)."""

    turns: Sequence[tuple[str, str]]
    chat: bool  # else the replies continue the prompts

    def markdown(self, folder: Path, level: int) -> str:
        form = "> {}\n{}" if self.chat else "{} …{}"
        return Code("\n\n".join(form.format(*turn) for turn in self.turns)).markdown(folder, level)

    def html(self, level: int) -> str:
        kind, form = "text", "<p>{}<em>{}</em></p>"
        if self.chat:
            kind, form = "chat", '<div><p class="user">{}</p><p class="model">{}</p></div>'
        return f'<div class="{kind}">{"".join(form.format(*map(escape, turn)) for turn in self.turns)}</div>'


@dataclass(frozen=True)
class Picture:
    """A PNG on disk, and the same for dark pages; `says` is its message for who cannot see it."""

    path: Path
    dark: bytes
    says: str


@dataclass(frozen=True)
class Pictures:
    pictures: Sequence[Picture]

    def markdown(self, folder: Path, level: int) -> str:
        """Return links from `folder`, where the text will lie."""
        links = (
            f"![{picture.says}]({picture.path.relative_to(folder).as_posix()})" for picture in self.pictures
        )
        return "\n\n".join(links) + "\n"

    def html(self, level: int) -> str:
        figures = (
            f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{_data(picture.dark)}">'
            f'<img src="{_data(picture.path.read_bytes())}" alt="{escape(picture.says)}"></picture></figure>'
            for picture in self.pictures
        )
        return f'<div class="pictures">{"".join(figures)}</div>'


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


@dataclass(frozen=True)
class Section:
    """A title above blocks; a folded one shows its title until it is opened."""

    title: str
    blocks: "Sequence[Block]"
    folded: bool = False

    def markdown(self, folder: Path, level: int = 1) -> str:
        inside = "\n".join(block.markdown(folder, level + 1) for block in self.blocks)
        if self.folded:
            return f"<details>\n<summary>{self.title}</summary>\n\n{inside}\n</details>\n"
        return f"{'#' * level} {self.title}\n\n{inside}"

    def html(self, level: int) -> str:
        inside = "\n".join(block.html(level + 1) for block in self.blocks)
        if self.folded:
            return f"<details>\n<summary>{escape(self.title)}</summary>\n{inside}\n</details>"
        return f"<section>\n<h{level}>{escape(self.title)}</h{level}>\n{inside}\n</section>"


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


def portable(text: str, root: Path) -> str:
    """Return the text with paths from `root` on where they lie below it, else with their last part alone.

    A report is made to be shown around: it says nothing of the machine's folders.
    """

    def shorter(match: re.Match[str]) -> str:
        path = Path(match[0])
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else f".../{path.name}"

    return PATH.sub(shorter, text)


# Nothing is loaded and nothing runs, whatever a model wrote
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def to_page(card: Section) -> str:
    """Return a report as one HTML file: pictures inside, no script, nothing fetched from anywhere."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    body = "\n".join(block.html(2) for block in card.blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(card.title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{escape(card.title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )
