"""Small things of numbers and lists that several packages need."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def chunked(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items, the last of fewer."""  # itertools.batched, from Python 3.12 on
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def listed(items: Sequence[object], *, most: int = 3) -> str:
    """Join the first few: 'a, b, c, …'."""
    return ", ".join([*map(str, items[:most]), *(["…"] if len(items) > most else [])])
