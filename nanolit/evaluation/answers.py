"""A model's answers to a task's items, as lines for a person. Without torch."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from nanolit.evaluation.scores import Item, item_files, read_items
from nanolit.machine.arguments import choose
from nanolit.machine.terminal import printable


def tell_answers(folder: Path, task: str, *, wrong: bool) -> Iterator[str]:
    """Yield the answers to a task whose items are in `folder`; with `wrong`, those that are wrong."""
    files = item_files(folder)
    if not files:
        raise ValueError(f"{folder} has no answers yet; evaluate the model first, without show=")
    named = {name.lower(): name for name in files}
    path = files[choose(named.get(task.lower(), task), files, kind="evaluated task")]
    _, items = read_items(path)
    if not items:
        raise ValueError(f"{path} has no answers yet: the evaluation was interrupted; start it again")
    for item in items:
        if not (wrong and item["right"]):
            yield f"{'right' if item['right'] else 'wrong'}  item {item['index']}"
            yield from of_core(item) if isinstance(item.get("question"), dict) else of_chat(item)
    yield f"{sum(item['right'] for item in items):,} of {len(items):,} right"


def of_chat(item: Item) -> Iterator[str]:
    """Yield the question, each reply with what was read from it, and what was expected."""
    yield readable(str(item.get("question", "")))
    for reply, extracted in zip_longest(item.get("replies", []), item.get("extracted", []), fillvalue=""):
        yield readable(reply)
        if extracted not in (None, reply):
            yield f"  → {readable(str(extracted)).lstrip()}"
    if "expected" in item:
        yield f"  expected: {readable(str(item['expected'])).lstrip()}"
    if isinstance(losses := item.get("losses"), dict):
        told = (f"{letter} {loss:.4f}" for letter, loss in losses.items() if loss is not None)
        yield f"  losses: {', '.join(told)}"


def of_core(item: Item) -> Iterator[str]:
    """Yield the question, and each option with its mean loss: the least is what the model chose."""
    question, losses = item["question"], item.get("losses")
    losses = losses if isinstance(losses, list) else []
    options = question.get("choices") or question.get("context_options")
    if isinstance(options, list):
        yield readable(str(question.get("query", question.get("continuation", ""))))
        yield from of_options(options, losses, question.get("gold"))
    else:
        yield readable(str(question.get("context", "")))
        loss = f" (mean loss {losses[0]:.4f})" if losses and losses[0] is not None else ""
        yield f"  expected: {readable(str(question.get('continuation', ''))).lstrip()}{loss}"


def of_options(options: Sequence[str], losses: Sequence[float | None], gold: object) -> Iterator[str]:
    known = [loss for loss in losses if loss is not None]
    for place, (option, loss) in enumerate(zip_longest(options, losses[: len(options)])):
        marks = ["chosen"] * (bool(known) and loss == min(known)) + ["expected"] * (place == gold)
        number = " " * 7 if loss is None else f"{loss:7.4f}"
        mark = f"  ← {', '.join(marks)}" if marks else ""
        yield f"  {number}  {readable(str(option)).lstrip()}{mark}"


def readable(text: str) -> str:
    """Indent a text; control characters, which a terminal would obey, are written out."""
    return "  " + printable(text).replace("\n", "\n  ")
