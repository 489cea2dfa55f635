"""Numbers and tables for people: Markdown that reads well in a terminal too."""

import math
from collections.abc import Sequence

MISSING = "-"
WIDEST = 56  # characters of a column


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, num_left: int = 1, widest: int | None = WIDEST
) -> str:
    """Align a Markdown table; the first `num_left` columns are flush left, the others flush right.

    Columns are padded to `widest` characters at most: a longer cell sticks out alone (None: none does).
    """
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    longest = [max(3, *(len(row[column]) for row in cells)) for column in range(len(header))]
    widths = [min(length, widest or length) for length in longest]
    lines = []
    for row in cells:
        padded = [
            cell.ljust(width) if column < num_left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("| " + " | ".join(padded) + " |")
    rules = [
        "-" * width if column < num_left else "-" * (width - 1) + ":" for column, width in enumerate(widths)
    ]
    lines.insert(1, "| " + " | ".join(rules) + " |")
    return "\n".join(lines) + "\n"


def readable(value: object) -> str:
    """Any value of a plan or result as a short text: 1234567 → '1,234,567', 3.9e19 → '3.900e+19'."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return _readable_number(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_bracketed(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        shown = ", ".join(readable(item) for item in value[:8])
        return f"{shown}, … ({len(value)} in total)" if len(value) > 8 else shown
    return str(value)


def _bracketed(value: object) -> str:
    return f"({readable(value)})" if isinstance(value, list | tuple) else readable(value)


def _readable_number(value: float) -> str:
    size = abs(value)
    if size >= 1e12:
        return f"{value:.3e}"
    if isinstance(value, int) or size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def score(value: float | None) -> str:
    """Return a metric with four decimals, '-' for None."""
    return MISSING if value is None else f"{value:.4f}"


def age(seconds: float) -> str:
    """Return a span of time in one unit: 45 → '45 s', 7200 → '2 h'."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
