"""What a job's stages learn from and are asked, built once before the first stage begins."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from nanolit.config.build import build
from nanolit.config.schema import Job, Target
from nanolit.planning.derivation import TokenizerPlan
from nanolit.planning.plans import Plans
from nanolit.tasks.rows import FileRows
from nanolit.tasks.task import Task
from nanolit.tokenizer.conversation import check_conversation


def check_sources(job: Job, plans: Plans) -> None:
    """ValueError for the first source of a later stage that is missing, can't be read, or is malformed.

    Else hours of base would end with a file that is not there. Files named by their path come first; what
    comes from the hub is fetched here.
    """
    checked: list[Target] = []
    for node in sorted(nodes(job, plans), key=lambda one: one.get("path") is None):
        if node not in checked:
            checked.append(node)
            check_rows(build(node))


def check_rows(task: Task) -> None:
    """ValueError names the file and line of a malformed conversation; rows of the hub stay unread."""
    if isinstance(task.rows, FileRows) and not task.skips_malformed:
        for index in range(len(task)):
            check_conversation(task[index], place=task.place(index))


def nodes(job: Job, plans: Plans) -> Iterator[Target]:
    """Yield the targets of all tasks that the stages learn from, are validated on, and are asked."""
    training = [plan for plan in plans.values() if not isinstance(plan, TokenizerPlan)]
    for plan in training:
        yield from plan.tasks(job)
    if any(plan.chats for plan in training):
        yield from job["chat_tasks"]["tasks"]


@contextmanager
def hub_forbidden(offline: bool) -> Iterator[None]:
    """While `offline`, Hugging Face's libraries answer from their cache, here and in child processes."""
    before = os.environ.get("HF_HUB_OFFLINE")
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # they read it when they are imported, which is later
    try:
        yield
    finally:
        if offline and before is None:
            del os.environ["HF_HUB_OFFLINE"]
        elif offline and before is not None:
            os.environ["HF_HUB_OFFLINE"] = before
