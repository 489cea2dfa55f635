"""Replies that are judged while the engine writes the next ones: a GPU never waits for a sandbox."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from nanolit.inference.engine import Engine
from nanolit.inference.request import Completion, Request
from nanolit.tasks.task import Conversation, Task

STEPS = 16  # of the engine between two looks at what has ended: each looks at hundreds of replies


@dataclass(frozen=True)
class Judged:
    """The replies to a problem, and which of them are right."""

    replies: list[str]
    rights: list[bool]


def judge_beside(
    engine: Engine, task: Task, problems: Sequence[Conversation], requests: Sequence[Request], pool: Executor
) -> Callable[[], list[Judged]]:
    """Write every reply and begin to judge each when it ends; what is returned waits for the verdicts."""
    replies: dict[int, list[str]] = {}
    verdicts: dict[int, list[Future[bool]]] = {}
    for place, completions in as_they_end(engine, requests):
        replies[place] = [engine.tokenizer.decode(completion.body_ids) for completion in completions]
        verdicts[place] = [pool.submit(task.evaluate, problems[place], reply) for reply in replies[place]]

    def wait() -> list[Judged]:
        places = range(len(problems))
        return [Judged(replies[place], [right.result() for right in verdicts[place]]) for place in places]

    return wait


def as_they_end(engine: Engine, requests: Sequence[Request]) -> Iterator[tuple[int, list[Completion]]]:
    """Yield the place and the completions of each request once it has ended; the engine works in between."""
    handles = {}
    try:
        for place, request in enumerate(requests):
            handles[place] = engine.submit(request)
        while handles:
            for _ in range(STEPS):
                engine.step()
            for place in [place for place, handle in handles.items() if handle.done]:
                yield place, handles.pop(place).completions
    finally:
        for handle in handles.values():
            engine.cancel(handle)
