"""MMLU (Hendrycks et al. 2020, https://arxiv.org/abs/2009.03300): questions in 57 subjects, four choices."""

from typing import Literal

from nanolit.tasks.rows import FileRows, Row, Rows, folder_of
from nanolit.tasks.task import Conversation, MultipleChoice, check_choice, choice_conversation, open_rows

LETTERS = ("A", "B", "C", "D")
FILES = {"dev": "dev", "validation": "val", "test": "test"}


class MMLU(MultipleChoice):
    """Conversations add `subject`. To learn from: split auxiliary_train (other exams, 100K on the hub)."""

    def __init__(
        self,
        *,
        split: Literal["auxiliary_train", "dev", "validation", "test"],
        source: str,
        epochs: int = 1,
        max_rows: int | None = None,
    ) -> None:
        check_choice("MMLU's split", split, ("auxiliary_train", *FILES))
        if split == "auxiliary_train":
            rows = _auxiliary(source)
        else:
            rows = open_rows(source, f"eval/mmlu/{FILES[split]}", hub=("cais/mmlu", "all", split))
        super().__init__(rows, epochs=epochs, max_rows=max_rows)

    def conversation(self, row: Row) -> Conversation:
        row = row.get("train", row)  # the hub's auxiliary_train has its columns one level down
        conversation = choice_conversation(
            row["question"], choices=row["choices"], letters=LETTERS, answer=LETTERS[row["answer"]]
        )
        return {**conversation, "subject": row["subject"]}


def _auxiliary(source: str) -> Rows:
    """Open the split auxiliary_train, which a mirror may hold in several files."""
    if source == "hub":
        return open_rows(source, "", hub=("cais/mmlu", "auxiliary_train", "train"))
    folder = folder_of(source) / "eval" / "mmlu"
    if files := sorted(folder.glob("auxiliary_train*.jsonl*")):
        return FileRows(files)
    raise ValueError(
        f"{folder}/auxiliary_train*.jsonl*: no such file; put the rows of cais/mmlu auxiliary_train there, "
        "or choose another source"
    )
