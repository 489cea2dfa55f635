"""Who the model is: synthetic conversations in which it introduces itself."""

from nanolit.tasks.jsonl import ConversationFile


class Identity(ConversationFile):
    """`path`: the conversations that `python -m nanolit.identity` wrote; null takes the sample's."""

    remedy = "have it written: python -m nanolit.identity name=NAME model=MODEL"

    def __init__(self, *, path: str | None = None, epochs: int = 1, max_rows: int | None = None) -> None:
        source = "sample" if path is None else "."
        super().__init__(path=path or "chat/identity", source=source, epochs=epochs, max_rows=max_rows)
