"""Small things of numbers and lists that several packages need."""

from collections.abc import Sequence


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def listed(items: Sequence[object], *, most: int = 3) -> str:
    """Join the first few: 'a, b, c, …'."""
    return ", ".join([*map(str, items[:most]), *(["…"] if len(items) > most else [])])
