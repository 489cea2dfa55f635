"""Rows that are computed, not read: a row is a function of its number alone."""

from collections.abc import Callable

from nanolit.tasks.rows import Row


class GeneratedRows:
    """`size` rows, made by `make(number)`; `label` names them in complaints."""

    def __init__(self, size: int, make: Callable[[int], Row], *, label: str) -> None:
        if size < 1:
            raise ValueError(f"size is {size}; allowed: 1 and up")
        self.size = size
        self.make = make
        self.label = label

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int, /) -> Row:
        return self.make(index)

    def place(self, index: int) -> str:
        return f"{self.label} row {index}"
