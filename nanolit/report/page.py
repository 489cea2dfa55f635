"""The tree of a report as one HTML file: pictures inside, no script, nothing fetched from anywhere."""

import base64
from html import escape
from pathlib import Path

from nanolit.report.sections import Block, Code, Exchange, Facts, Pictures, Section, Table, Text
from nanolit.report.tables import MISSING

# Nothing is loaded and nothing runs, whatever a model wrote
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def to_page(card: Section) -> str:
    """Return the whole page of a report."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    body = "\n".join(_html(block, level=2) for block in card.blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(card.title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{escape(card.title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _html(block: Block, *, level: int) -> str:
    if isinstance(block, Section):
        inside = "\n".join(_html(part, level=level + 1) for part in block.blocks)
        if block.folded:
            return f"<details>\n<summary>{escape(block.title)}</summary>\n{inside}\n</details>"
        return f"<section>\n<h{level}>{escape(block.title)}</h{level}>\n{inside}\n</section>"
    if isinstance(block, Text):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, Code):
        return f"<pre>{escape(block.text)}</pre>"
    if isinstance(block, Facts):
        pairs = "".join(
            f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in block.pairs
        )
        return f'<dl class="facts">{pairs}</dl>'
    if isinstance(block, Table):
        return _table(block)
    return _exchange(block) if isinstance(block, Exchange) else _pictures(block)


def _table(table: Table) -> str:
    header = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in table.rows)
    return (
        f'<div class="wide"><table class="left{table.num_left}">\n<thead><tr>{header}</tr></thead>\n'
        f"<tbody>\n{rows}</tbody>\n</table></div>"
    )


def _cell(text: str) -> str:
    """Return a cell with its error bar set small."""
    if text == MISSING:
        return '<td class="none">–</td>'
    value, sign, error = text.partition(" ± ")
    return f"<td>{escape(value)}{f' <small>± {escape(error)}</small>' if sign else ''}</td>"


def _exchange(exchange: Exchange) -> str:
    if not exchange.chat:
        turns = (f"<p>{escape(prompt)}<em>{escape(reply)}</em></p>" for prompt, reply in exchange.turns)
        return f'<div class="text">{"".join(turns)}</div>'
    turns = (
        f'<div><p class="user">{escape(prompt)}</p><p class="model">{escape(reply)}</p></div>'
        for prompt, reply in exchange.turns
    )
    return f'<div class="chat">{"".join(turns)}</div>'


def _pictures(block: Pictures) -> str:
    figures = (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{_data(picture.dark)}">'
        f'<img src="{_data(picture.path.read_bytes())}" alt="{escape(picture.says)}"></picture></figure>'
        for picture in block.pictures
    )
    return f'<div class="pictures">{"".join(figures)}</div>'


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
