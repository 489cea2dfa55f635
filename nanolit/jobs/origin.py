"""Where a stage begins: new weights, the stage before it in the same run, or what `start_from` names."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanolit.config.schema import Job
from nanolit.machine.paths import read_json, stage_folder


@dataclass(frozen=True)
class Origin:
    """A finished stage (`checkpoints` beside its `release`), or a release alone."""

    name: str  # RUN/stage, or the folder of a release
    release: Path
    checkpoints: Path | None


def finished(root: str, run: str, stage: str) -> dict[str, Any] | None:
    """The stored result of a stage that is done, else None."""
    path = stage_folder(root, run, stage) / "result.json"
    result = read_json(path) if path.exists() else {}
    return result if result.get("status") == "done" else None


def origin(job: Job, stage: str) -> Origin | None:
    """What the stage's weights come from; None: drawn anew. ValueError says what is missing."""
    models = [one for one in job["recipe"]["stages"] if one != "tokenizer"]
    before = models[: models.index(stage)]
    first = next(one for one in job["stages"] if one != "tokenizer")
    if job["start_from"] and stage == first:
        return named_origin(job, stage, before or [stage])
    if not before:
        return None
    return of_stage(job["root"], job["run"], before[-1])


def named_origin(job: Job, stage: str, allowed: list[str]) -> Origin:
    """`start_from`: RUN (its last finished stage of `allowed`), RUN/stage, or the folder of a release."""
    wish = str(job["start_from"])
    if (Path(wish).expanduser() / "gpt.json").is_file():
        return Origin(wish, Path(wish).expanduser(), None)
    run, _, name = wish.partition("/")
    done = [one for one in allowed if finished(job["root"], run, one)]
    if name and finished(job["root"], run, name):
        return of_stage(job["root"], run, name)
    if name or not done:
        runs = sorted(path.parent.name for path in Path(job["root"], "runs").glob("*/base"))
        wanted = " or ".join([name] if name else allowed)
        raise ValueError(
            f"start_from={wish}: {stage} can begin from a finished {wanted}, and {job['root']} has none of "
            f"that name; runs there: {', '.join(runs) or 'none'}"
        )
    return of_stage(job["root"], run, done[-1])


def of_stage(root: str, run: str, stage: str) -> Origin:
    folder = stage_folder(root, run, stage)
    return Origin(f"{run}/{stage}", folder / "release", folder / "checkpoints")
