"""HumanEval (Chen et al. 2021, https://arxiv.org/abs/2107.03374): Python functions, judged by running
tests."""

import re

from nanolit.tasks.rows import Row
from nanolit.tasks.sandbox import run_python
from nanolit.tasks.task import Conversation, Task, exchange, open_rows

FENCE = re.compile(r"```(?:python)?\s*\n(.*?)```", re.DOTALL)


class HumanEval(Task):
    """164 problems, all for testing. Conversations add `entry_point` and `test`."""

    evaluation_type = "generative"

    def __init__(self, *, source: str, epochs: int = 1, max_rows: int | None = None) -> None:
        rows = open_rows(source, "eval/humaneval/HumanEval", hub=("openai/openai_humaneval", None, "test"))
        super().__init__(rows, epochs=epochs, max_rows=max_rows)

    def conversation(self, row: Row) -> Conversation:
        conversation = exchange(row["prompt"], f"{row['prompt']}\n{row['canonical_solution']}")
        return {**conversation, "entry_point": row["entry_point"], "test": row["test"]}

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """Run the completion behind the prompt's imports in the sandbox; tell whether it passes the tests."""
        imports = imports_of(conversation["messages"][0]["content"])
        check = f"check({conversation['entry_point']})"
        program = "\n\n".join([imports, extract_program(completion), conversation["test"], check])
        return run_python(program).finished


def extract_program(completion: str) -> str:
    """Return the first fenced code block, or the whole text when there is none."""
    match = FENCE.search(completion)
    return (match.group(1) if match else completion).strip()


def imports_of(prompt: str) -> str:
    """Return the import lines with which a prompt opens."""
    lines = []
    for line in map(str.strip, prompt.splitlines()):
        if line.startswith(("import ", "from ")):
            lines.append(line)
        elif line and not line.startswith("#"):
            break
    return "\n".join(lines)
