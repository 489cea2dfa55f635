"""Synthetic conversations in which the model introduces itself."""

from nanolit.tasks.jsonl import ConversationFile


class Identity(ConversationFile):
    """`path`: the conversations that `python -m nanolit.identity` wrote; null takes those of `source`."""

    remedy = "generate it with: python -m nanolit.identity name=NAME model=MODEL"

    def __init__(
        self, *, path: str | None = None, source: str = "sample", epochs: int = 1, max_rows: int | None = None
    ) -> None:
        where = ("chat/identity", source) if path is None else (path, ".")
        super().__init__(path=where[0], source=where[1], epochs=epochs, max_rows=max_rows)
