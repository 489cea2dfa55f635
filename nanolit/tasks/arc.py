"""ARC (Clark et al. 2018, https://arxiv.org/abs/1803.05457): science questions of school exams."""

from typing import Literal

from nanolit.tasks.rows import Row
from nanolit.tasks.task import Conversation, MultipleChoice, check_choice, choice_conversation, open_rows


class ARC(MultipleChoice):
    """`subset` is ARC-Easy or ARC-Challenge (what simple retrieval got wrong)."""

    def __init__(
        self,
        *,
        subset: Literal["ARC-Easy", "ARC-Challenge"],
        split: Literal["train", "validation", "test"],
        source: str,
        epochs: int = 1,
        max_rows: int | None = None,
    ) -> None:
        check_choice("ARC's subset", subset, ("ARC-Easy", "ARC-Challenge"))
        check_choice("ARC's split", split, ("train", "validation", "test"))
        rows = open_rows(source, f"eval/arc/{subset}-{split}", hub=("allenai/ai2_arc", subset, split))
        super().__init__(rows, epochs=epochs, max_rows=max_rows)
        self.subset = subset

    @property
    def name(self) -> str:
        return self.subset

    def conversation(self, row: Row) -> Conversation:
        choices = row["choices"]
        return choice_conversation(
            row["question"], choices=choices["text"], letters=choices["label"], answer=row["answerKey"]
        )
