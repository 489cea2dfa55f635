"""Evaluate a model on lm-eval's tasks.

    nanolit lm_eval run=d12/base tasks=piqa,sciq           datasets come from the hub
    nanolit lm_eval release=FOLDER tasks=mine include=TASKS    your own task files
    nanolit lm_eval run=d12 tasks=gsm8k shots=5 limit=100

Needs lm-eval: pip install 'nanolit[lm-eval]'. For CORE and the chat tasks use `nanolit evaluate`, whose
scores are comparable with published ones. The last line is JSON.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanolit.machine.arguments import Root, choose, read, setting
from nanolit.machine.exit import command


@dataclass(frozen=True, kw_only=True)
class Settings(Root):
    """Settings: which model, and which tasks of lm-eval."""

    run: str | None = setting(
        "a run in the root folder (nanolit runs lists them)", None, value="RUN[/STAGE]", positional=True
    )
    release: Path | None = setting("a release instead of a run", None)
    tasks: tuple[str, ...] = setting("names of tasks, groups or tags", value="NAME,…")
    include: Path | None = setting("a folder of task files instead of lm-eval's own", None)
    shots: int | None = setting("examples shown before each question (default: the task's)", None, least=0)
    limit: int | None = setting("at most N questions per task (default: all)", None, least=1)


@command
def main(words: Sequence[str]) -> None:
    settings = read(Settings, words, about=__doc__)
    if (settings.run is None) == (settings.release is None):
        raise ValueError("which model? give either run=RUN[/STAGE] or release=FOLDER")
    try:
        from lm_eval.evaluator import simple_evaluate  # pyright: ignore[reportMissingImports]
        from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
        from lm_eval.utils import make_table  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("this needs lm-eval; install it: pip install 'nanolit[lm-eval]'") from error
    own = str(settings.include) if settings.include else None
    manager = TaskManager(include_path=own, include_defaults=own is None)
    for name in settings.tasks:
        choose(name, manager.all_tasks, kind="task")
    from nanolit.evaluation.harness import HarnessModel
    from nanolit.inference.engine import Engine
    from nanolit.language_model import load_language_model

    model = load_language_model(
        settings.release or settings.run or "", root=settings.root, device=None, stage=None
    )
    results = simple_evaluate(
        HarnessModel(Engine(model.model, model.tokenizer)),
        tasks=list(settings.tasks),
        num_fewshot=settings.shots,
        limit=settings.limit,
        task_manager=manager,
        log_samples=False,
    )
    print(make_table(results))
    print(json.dumps(results["results"]))


if __name__ == "__main__":
    sys.exit(main())
