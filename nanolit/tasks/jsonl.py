"""Conversations from any file that a person may have: JSON lines or an array, CSV or parquet."""

import hashlib
import json
from itertools import compress
from typing import Literal

from nanolit.machine.paths import expanded
from nanolit.tasks.chat_formats import messages_of
from nanolit.tasks.rows import FileRows, Row, find_file
from nanolit.tasks.task import Conversation, Task, check_choice

HELD_OUT_FRACTION = 0.05


class ConversationFile(Task):
    """The conversations of `path`, relative to the folder that `source` names, in a form of chat_formats.py.

    `part` "held_out" has a twentieth of them, chosen by their hash, and "train" the others. `malformed` rows
    are an error, or skipped with a count; both parts have others then.
    """

    remedy = "put it there"  # when the file is missing

    def __init__(
        self,
        *,
        path: str,
        source: str = ".",
        part: Literal["all", "train", "held_out"] = "all",
        malformed: Literal["error", "skip"] = "error",
        epochs: int = 1,
        max_rows: int | None = None,
    ) -> None:
        check_choice("malformed", malformed, ("error", "skip"))
        check_choice("part", part, ("all", "train", "held_out"))
        file = find_file(source, str(expanded(path)), remedy=self.remedy)
        rows = FileRows([file])
        _check_ids(rows)
        if part != "all":
            useful = [malformed == "error" or _is_well_formed(row) for row in rows.rows]
            _keep_part(rows, useful, held_out=part == "held_out")
        super().__init__(rows, epochs=epochs, max_rows=max_rows)
        self.file = file
        self.skips_malformed = malformed == "skip"

    @property
    def name(self) -> str:
        return self.file.name.split(".")[0]

    def conversation(self, row: Row) -> Conversation:
        return {"messages": messages_of(row)}


def _keep_part(rows: FileRows, useful: list[bool], *, held_out: bool) -> None:
    """Keep one part: equal rows share a side, and both sides have useful rows (of equal ones alone, all)."""
    keys = [_key(row) for row in rows.rows]
    least = max(min(compress(keys, useful), default=b""), int(HELD_OUT_FRACTION * 2**64).to_bytes(8))
    chosen = [index for index, key in enumerate(keys) if (key <= least) == held_out]
    if any(useful[index] for index in chosen):
        rows.keep(chosen)


def _is_well_formed(row: Row) -> bool:
    """Tell whether a row is surely a conversation of texts (check_conversation passes more)."""
    try:
        messages = [message for message in messages_of(row) if message["role"] != "system"]
        turns = [bool(message["content"].strip()) and message["role"] for message in messages]
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
    return len(turns) > 1 and turns == (["user", "assistant"] * len(turns))[: len(turns)]


def _key(row: Row) -> bytes:
    return hashlib.blake2b(json.dumps(row, default=str).encode(), digest_size=8).digest()


def _check_ids(rows: FileRows) -> None:
    """ValueError for a row with an id that is there twice, all fields equal: a file was concatenated twice.

    An id alone may repeat, as a category or the number of a topic does.
    """
    seen: dict[bytes, int] = {}
    for index, row in enumerate(rows.rows):
        if row.get("id") is not None and (first := seen.setdefault(_key(row), index)) != index:
            raise ValueError(
                f"{rows.place(index)}: same id {row['id']!r} and content as {rows.place(first)}; remove one "
                "of them"
            )
