"""SmolTalk (Allal et al. 2025, https://arxiv.org/abs/2502.02737): 460K chats, in its form for small
models."""

from typing import Literal

from nanolit.tasks.rows import Row
from nanolit.tasks.task import Conversation, Task, check_choice, open_rows


class SmolTalk(Task):
    """HuggingFaceTB/smol-smoltalk; a mirror holds it as chat/smoltalk-train and chat/smoltalk-test."""

    skips_malformed = True

    def __init__(
        self, *, split: Literal["train", "test"], source: str, epochs: int = 1, max_rows: int | None = None
    ) -> None:
        check_choice("SmolTalk's split", split, ("train", "test"))
        hub = ("HuggingFaceTB/smol-smoltalk", None, split)
        super().__init__(
            open_rows(source, f"chat/smoltalk-{split}", hub=hub), epochs=epochs, max_rows=max_rows
        )

    def conversation(self, row: Row) -> Conversation:
        return {"messages": row["messages"]}
