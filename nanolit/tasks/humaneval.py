"""HumanEval (Chen et al. 2021, https://arxiv.org/abs/2107.03374): Python functions, judged by running
tests."""

import re
from collections.abc import Iterator
from typing import Literal

from nanolit.tasks.rows import Row
from nanolit.tasks.sandbox import is_weak, judge_python, walls
from nanolit.tasks.task import Conversation, Task, exchange, open_rows

# CommonMark's fences: at most three spaces before three or more of ` or ~, then an info string
FENCE = re.compile(r" {0,3}(?P<mark>`{3,}|~{3,})[ \t]*(?P<info>[^\n]*)$")
PYTHON = ("py", "python", "python3")


class HumanEval(Task):
    """164 problems, all for testing. Conversations add `entry_point` and `test`.

    Its sandbox must be more than Python's own hook, unless `sandbox` is weak; rewards take no weak one.
    """

    evaluation_type = "generative"

    def __init__(
        self,
        *,
        source: str,
        sandbox: Literal["strong", "weak"] = "strong",
        epochs: int = 1,
        max_rows: int | None = None,
    ) -> None:
        if sandbox == "strong" and is_weak():
            raise ValueError(
                "HumanEval runs programs written by the model, and the sandbox has only "
                f"{', '.join(walls())} here: use Linux with Landlock or user namespaces, or accept the risk "
                "with sandbox=weak"
            )
        rows = open_rows(source, "eval/humaneval/HumanEval", hub=("openai/openai_humaneval", None, "test"))
        super().__init__(rows, epochs=epochs, max_rows=max_rows)

    @property
    def conditions(self) -> str:
        return f"sandbox: {', '.join(walls())}"

    def check_rewards(self) -> None:
        if is_weak():
            raise ValueError(
                f"HumanEval gives no rewards if the sandbox has only {', '.join(walls())}: training would "
                "find ways around it; use Linux with Landlock or user namespaces, or another stage.rl.task"
            )

    def conversation(self, row: Row) -> Conversation:
        conversation = exchange(row["prompt"], f"{row['prompt']}\n{row['canonical_solution']}")
        return {**conversation, "entry_point": row["entry_point"], "test": row["test"]}

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """Run the completion behind the prompt's imports in the sandbox; tell whether it passes the tests.

        The tests run in another process. They call helpers of the prompt, never the completion's own copies.
        """
        prompt, entry_point = conversation["messages"][0]["content"], conversation["entry_point"]
        program = f"{imports_of(prompt)}\n\n{extract_program(completion)}"
        tests = {"prompt": prompt, "test": conversation["test"]}
        return judge_python(program, entry_point=entry_point, **tests).passed

    def extract(self, completion: str) -> str:
        return extract_program(completion)


def extract_program(completion: str) -> str:
    """Return the first fenced block of Python, else the first block, else the whole text.

    A block ends at a line that is a fence of its own kind alone, or with the text, so that neither a fence in
    an indented docstring nor a reply cut at its limit loses a program. nanochat ends blocks at any line that
    begins with three backticks and knows the tag `python` alone.
    """
    blocks = [(tag, code) for tag, code in _blocks(completion) if code.strip()]
    chosen = [code for tag, code in blocks if tag in PYTHON] or [code for _, code in blocks] or [completion]
    return chosen[0].strip()


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield the tag, in lower case, and the code of every fenced block."""
    opened, lines = None, []
    for line in text.split("\n"):
        line = line.removesuffix("\r")
        fence = FENCE.match(line)
        if opened is None:
            if fence and not (fence["mark"][0] == "`" and "`" in fence["info"]):
                opened, lines = fence, []
        elif fence and not fence["info"].strip() and fence["mark"].startswith(opened["mark"]):
            yield _tag(opened), "\n".join(lines)
            opened = None
        else:
            lines.append(line)
    if opened is not None:
        yield _tag(opened), "\n".join(lines)


def _tag(fence: re.Match[str]) -> str:
    return (fence["info"].lower().split() or [""])[0].strip("{}.")


def imports_of(prompt: str) -> str:
    """Return the import lines with which a prompt opens."""
    lines = []
    for line in map(str.strip, prompt.splitlines()):
        if line.startswith(("import ", "from ")):
            lines.append(line)
        elif line and not line.startswith("#"):
            break
    return "\n".join(lines)
