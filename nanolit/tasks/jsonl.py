"""Conversations from any JSON-lines file: {"messages": [{"role", "content"}, …]} or that list alone, a line
each."""

from pathlib import Path
from typing import Literal

from nanolit.tasks.rows import FileRows, Row, find_file
from nanolit.tasks.task import Conversation, Task, check_choice


class ConversationFile(Task):
    """The conversations of `path` (.jsonl, .jsonl.zst, .jsonl.gz), relative to the folder that `source`
    names. `malformed` rows are an error, or skipped with a count."""

    remedy = "put it there"  # when the file is missing

    def __init__(
        self,
        *,
        path: str,
        source: str = ".",
        malformed: Literal["error", "skip"] = "error",
        epochs: int = 1,
        max_rows: int | None = None,
    ) -> None:
        check_choice("malformed", malformed, ("error", "skip"))
        file = find_file(source, str(Path(path).expanduser()), remedy=self.remedy)
        rows = FileRows([file])
        _check_ids(rows)
        super().__init__(rows, epochs=epochs, max_rows=max_rows)
        self.file = file
        self.skips_malformed = malformed == "skip"

    @property
    def name(self) -> str:
        return self.file.name.split(".jsonl")[0]

    def conversation(self, row: Row) -> Conversation:
        return {"messages": row["messages"]}


def _check_ids(rows: FileRows) -> None:
    """ValueError for a repeated id with the same messages: a file was concatenated twice."""
    seen: dict[str, int] = {}
    for index, row in enumerate(rows.rows):
        if row.get("id") is None:
            continue
        first = seen.setdefault(str(row["id"]), index)
        if first != index and row.get("messages") == rows[first].get("messages"):
            raise ValueError(
                f"{rows.place(index)}: the id {row['id']!r} is that of {rows.place(first)}, and so are the "
                "messages; remove one of them"
            )
