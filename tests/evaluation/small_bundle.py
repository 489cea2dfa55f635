"""A bundle of CORE's shape with a dozen made-up items a task: every task can be asked, none of it is CORE."""

import json
from pathlib import Path

from nanolit.tasks.bundle import LABELS

ITEMS = 12  # more than the ten that are shown before each


def item(kind: str, number: int) -> dict[str, object]:
    if kind == "multiple_choice":
        return {"query": f"{number}+1 is", "choices": ["old", f"{number + 1}"], "gold": number % 2}
    if kind == "schema":
        return {
            "context_options": [f"{number} sea", f"{number} stone"],
            "continuation": "was",
            "gold": number % 2,
        }
    return {"context": f"the {number} sea", "continuation": "and the"}


def write_bundle(folder: Path) -> Path:
    """Write every file that CORE reads; two tasks share one."""
    for label in LABELS:
        path = folder / "eval_data" / f"{label.file}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(item(label.kind, n)) + "\n" for n in range(ITEMS)))
    return folder
