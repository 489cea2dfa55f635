"""A bundle of CORE's shape with a dozen made-up items a task: every task can be asked, none of it is CORE."""

import json
from pathlib import Path

from nanolit.tasks.bundle import LABELS
from tests.jobs.tiny_runs import WORDS

ITEMS = 12  # more than the ten that are shown before each


def item(kind: str, number: int) -> dict[str, object]:
    """Words that a tiny run learns, in pairs of which now the first, now the second is likelier."""
    one, other, last = (WORDS[(number * step + step) % len(WORDS)] for step in (1, 4, 7))
    if kind == "multiple_choice":
        return {"query": f"the {last}", "choices": [one, f"{other} {one}"], "gold": number % 2}
    if kind == "schema":
        return {"context_options": [f"{one} sea", f"{other} a"], "continuation": last, "gold": number % 2}
    return {"context": f"the {one}", "continuation": last}


def write_bundle(folder: Path) -> Path:
    """Write every file that CORE reads; two tasks share one."""
    for label in LABELS:
        path = folder / "eval_data" / f"{label.file}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(item(label.kind, n)) + "\n" for n in range(ITEMS)))
    return folder
