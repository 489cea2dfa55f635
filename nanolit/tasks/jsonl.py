"""Conversations from any JSON-lines file: {"messages": [{"role", "content"}, …]} or that list alone, a line
each."""

from pathlib import Path
from typing import Any

from nanolit.tasks.rows import FileRows, find_file
from nanolit.tasks.task import Conversation, Task


class ConversationFile(Task):
    """The conversations of `path` (.jsonl, .jsonl.zst, .jsonl.gz), relative to the folder that `source`
    names."""

    def __init__(self, *, path: str, source: str = ".", epochs: int = 1, max_rows: int | None = None) -> None:
        file = find_file(source, str(Path(path).expanduser()))
        rows = FileRows([file])
        _check_ids(rows)
        super().__init__(rows, epochs=epochs, max_rows=max_rows)
        self.file = file

    @property
    def name(self) -> str:
        return self.file.name.split(".jsonl")[0]

    def conversation(self, row: dict[str, Any]) -> Conversation:
        return {"messages": row["messages"]}


def _check_ids(rows: FileRows) -> None:
    """A repeated id means that a file was concatenated twice: its rows would count double."""
    seen: dict[Any, int] = {}
    for index, row in enumerate(rows.rows):
        if (key := row.get("id")) is None:
            continue
        if str(key) in seen:
            first = rows.place(seen[str(key)])
            raise ValueError(f"{rows.place(index)}: the id {key!r} is that of {first}; remove one of them")
        seen[str(key)] = index
