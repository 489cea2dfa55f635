"""Find and check everything that a job's stages begin from, before the first of them begins.

Earlier stages and their weights, tasks, the settings of an interrupted run: hours of base must not end with a
file that is not there.
"""

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from nanolit.config.build import build
from nanolit.config.names import decisive_settings, difference
from nanolit.config.schema import Job, Target
from nanolit.config.stored import read_job
from nanolit.machine.locks import open_lock
from nanolit.machine.paths import Json, expanded, read_json, run_folder, stage_folder
from nanolit.machine.system import launched_rank, under_torchrun
from nanolit.machine.terminal import train_command
from nanolit.planning.costs import num_ranks
from nanolit.planning.plans import FinetunePlan, Plan, Plans, RLPlan, TokenizerPlan, TrainingPlan, stored_plan
from nanolit.report.folders import read_result
from nanolit.tasks.rows import FileRows
from nanolit.tasks.task import Task, check_names
from nanolit.tokenizer.conversation import check_conversation


def check_root(job: Job) -> None:
    """ValueError unless the run's folder can be made and written."""
    folder = run_folder(job["root"], job["run"])
    try:
        open_lock(folder / ".lock").close()
    except OSError as error:
        raise ValueError(unwritable(error, job["root"])) from error


def unwritable(error: OSError, root: str) -> str:
    reason = f"{error.strerror}: {error.filename}"
    return f"root={root} cannot be written ({reason}); give another root=… or set NANOLIT_HOME"


def check_stages(job: Job, plans: Plans) -> None:
    """ValueError for what makes a stage impossible, before any of them begins; may fetch rows of tasks."""
    check_settings(job, plans)
    check_sources(job, plans)


def check_settings(job: Job, plans: Plans) -> None:
    """ValueError for a job that does not fit its ranks, its run or the stage it begins from."""
    if under_torchrun() and (world := int(os.environ["WORLD_SIZE"])) != (ranks := num_ranks(job)):
        raise ValueError(
            f"torchrun started {world} ranks, but the job is for {ranks}; give cluster.devices={world}"
        )
    if job["phase"] == "identity" and not job["start_from"]:
        raise ValueError("phase=identity trains an existing model; give start_from=RUN")
    for plan in plans.values():
        if stage_folder(job["root"], job["run"], plan.stage).exists():
            check_own_folders(job, plan.stage)
    training = [plan for plan in plans.values() if not isinstance(plan, TokenizerPlan)]
    for plan in training:
        path = stage_folder(job["root"], job["run"], plan.stage) / "job.yaml"
        if path.exists():
            check_unchanged(job, plan, path)
    if training and (job["start_from"] or stages_before(job, training[0].stage)):
        check_origin(job, training[0])


def check_origin(job: Job, plan: TrainingPlan) -> None:
    """ValueError unless what the stage begins from is there, and is a model of the stage's sizes."""
    check_previous(job, plan.stage)
    if begins := origin(job, plan.stage):
        sizes = {key: value for key, value in plan.gpt.items() if key != "vocab_size"}  # its tokenizer's
        check_same_model(sizes, read_json(begins.release / "gpt.json"), begins)


def check_own_folders(job: Job, stage: str) -> None:
    """ValueError if a link would have the stage write and remove elsewhere, in another run, say."""
    folder = stage_folder(job["root"], job["run"], stage)
    for path in (folder, *sorted(folder.glob("*"))):
        if path.is_symlink() and path.is_dir() and not finished(job["root"], job["run"], stage):
            raise ValueError(
                f"{path} is a link to {os.readlink(path)}, where the run would write and remove files; "
                "replace the link with a copy of that folder (for another disk give root=…)"
            )


def check_unchanged(job: Job, plan: Plan, path: Path) -> None:
    """ValueError with the difference, when the stage's job.yaml has other settings that decide its result."""
    stage = plan.stage
    changes = difference(decisive_settings(read_job(path), stage), decisive_settings(job, stage))
    if changes:
        parts = (part for key, (old, new) in changes.items() for part in leaves(key, old, new))
        listed = ", ".join(f"{key} was {old!r}, now {new!r}" for key, old, new in parts)
        raise ValueError(
            f"run {job['run']} was started with other settings: {listed}; give those again, or another "
            f"run=NAME{instead(job, stage)}"
        )
    stored = path.with_name("plan.json")
    if stage == "base" and stored.exists() and not finished(job["root"], job["run"], stage):
        before, now = stored_plan(stored).get("tokenizer"), plan.tokenizer
        if before != now:  # with equal settings: the text is another
            raise ValueError(
                f"run {job['run']} was started with other text in data.path: its tokenizer is {before}, this "
                f"text's is {now}; restore that text, or give another run=NAME"
            )


def leaves(key: str, old: object, new: object) -> Iterator[tuple[str, object, object]]:
    """Yield what differs inside two lists or mappings of one shape, with its key; else the two themselves."""
    pairs: Iterable[tuple[object, tuple[object, object]]]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
    elif isinstance(old, Mapping) and isinstance(new, Mapping) and old.keys() == new.keys():
        pairs = ((name, (old[name], new[name])) for name in old)
    else:
        pairs = ()
        if old != new:
            yield key, old, new
    for name, (before, now) in pairs:
        yield from leaves(f"{key}.{name}", before, now)


def instead(job: Job, stage: str) -> str:
    """Say how to train a finished stage longer and how to begin a run anew: nothing is overwritten."""
    run, folder = job["run"], stage_folder(job["root"], job["run"], stage)
    longer = (
        f"; to train it longer, run={run}-2 start_from={run}/{stage}"
        if finished(job["root"], run, stage)
        else ""
    )
    return f"{longer}; to start over, delete {shlex.quote(str(folder))}"


def check_previous(job: Job, stage: str) -> None:
    """ValueError with the command that makes it, when the model that the stage begins from is missing."""
    before = stages_before(job, stage)
    if not before or job["start_from"] or finished(job["root"], job["run"], before[-1]):
        return
    previous = next(earlier for earlier in before if not finished(job["root"], job["run"], earlier))
    others = [word for word in job["overrides"] if not word.startswith(("phase=", "stages=", "start_from="))]
    done = runs_with(job["root"], before[-1:])
    finished_ones = f"start from another run, start_from={' or '.join(done[-3:])}, or " if done else ""
    raise ValueError(
        f"{stage} needs the finished {previous} of run {job['run']} in {job['root']}; {finished_ones}"
        f"train it with: {train_command([f'phase={previous}', *others])}"
    )


def stages_before(job: Job, stage: str) -> list[str]:
    """Return the recipe's stages before this one that end in a model."""
    stages: list[str] = list(job["recipe"]["stages"])
    return [other for other in stages[: stages.index(stage)] if other != "tokenizer"]


def finished(root: str, run: str, stage: str) -> Json | None:
    """Return the stored result of a stage that is done, else None."""
    path = stage_folder(root, run, stage) / "result.json"
    result = read_result(path) if path.exists() else {}
    return result if result.get("status") == "done" else None


def runs_with(root: str, stages: Iterable[str]) -> list[str]:
    """Return the runs that have finished one of the stages, as far as their results can be read."""
    found = set()
    for folder in (folder for stage in stages for folder in Path(root, "runs").glob(f"*/{stage}")):
        with suppress(ValueError):
            found |= {folder.parent.name} if finished(root, folder.parent.name, folder.name) else set()
    return sorted(found)


@dataclass(frozen=True)
class Origin:
    """A finished stage (`checkpoints` beside its `release`), or a release alone."""

    name: str  # RUN/stage, or the folder of a release
    release: Path
    checkpoints: Path | None


def origin(job: Job, stage: str) -> Origin | None:
    """Return the source of the stage's weights, None if they are drawn anew; ValueError if it is missing."""
    before = stages_before(job, stage)
    first = next(other for other in job["stages"] if other != "tokenizer")
    if job["start_from"] and stage == first:
        return named_origin(job, stage, before or [stage])
    if not before:
        return None
    return of_stage(job["root"], job["run"], before[-1])


def named_origin(job: Job, stage: str, allowed: list[str]) -> Origin:
    """`start_from`: RUN (its last finished stage of `allowed`), RUN/stage, or the folder of a release."""
    wish = str(job["start_from"])
    if (expanded(wish) / "gpt.json").is_file():
        return Origin(wish, expanded(wish), None)
    run, _, name = wish.partition("/")
    done = [earlier for earlier in allowed if finished(job["root"], run, earlier)]
    if name and finished(job["root"], run, name):
        return of_stage(job["root"], run, name)
    if name or not done:
        runs = runs_with(job["root"], allowed)
        wanted = " or ".join([name] if name else allowed)
        raise ValueError(
            f"start_from={wish}: {stage} can start from a finished {wanted}, but {job['root']} has none of "
            f"that name; runs that have one: {', '.join(runs) or 'none'}"
        )
    return of_stage(job["root"], run, done[-1])


def of_stage(root: str, run: str, stage: str) -> Origin:
    folder = stage_folder(root, run, stage)
    return Origin(f"{run}/{stage}", folder / "release", folder / "checkpoints")


def check_same_model(gpt: Mapping[str, object], has: Mapping[str, object], begins: Origin) -> None:
    """ValueError with the difference, when the job asks for another model than the one it begins from."""
    differences = [
        f"{key} is {has[key]}, but the job has {value}"
        for key, value in gpt.items()
        if has.get(key, value) != value
    ]
    if differences:
        words = made_with(begins) or f"model.depth={has['depth']} …"
        raise ValueError(
            f"{begins.name} is a different model: {', '.join(differences)}; give the choices it was trained "
            f"with: {words}"
        )


def made_with(begins: Origin) -> str:
    """Return the words that chose the model of a run; "" where they aren't known, or none were typed."""
    path = begins.release.with_name("job.yaml")
    words = read_job(path)["overrides"] if begins.checkpoints and path.exists() else []
    chosen = [word for word in words if re.match(r"(experiment|model|recipe)[.=]", word)]
    named = ["run=NAME"] if any(word.startswith("experiment=") for word in chosen) else []  # its run is taken
    return shlex.join([*chosen, *named])


def check_sources(job: Job, plans: Plans) -> None:
    """ValueError for the first source of a later stage that is missing, can't be read, or is malformed.

    Otherwise hours of base might end with a missing file. Files named by their path are checked first; data
    from the hub is fetched here.
    """
    if launched_rank() or all(finished(job["root"], job["run"], stage) for stage in job["stages"]):
        return
    checked: list[Target] = []
    asked, names = job["chat_tasks"]["tasks"], list[str]()
    for node in sorted(nodes(job, plans), key=lambda target: target.get("path") is None):
        if node not in checked:
            checked.append(node)
            try:
                check_rows(task := build(node))
            except ValueError as error:
                if node not in asked:
                    raise
                raise ValueError(f"{error}; or skip the chat tasks: chat_tasks=none") from error
            names += asked.count(node) * [task.name]
    check_names(names)
    for plan in plans.values():
        if isinstance(plan, RLPlan):
            build(plan.task).check_rewards()


def check_rows(task: Task) -> None:
    """ValueError names the file and line of a malformed conversation; rows of the hub stay unread."""
    if isinstance(task.rows, FileRows) and not task.skips_malformed:
        for index in range(len(task)):
            check_conversation(task[index], place=task.place(index))


def nodes(job: Job, plans: Plans) -> Iterator[Target]:
    """Yield the targets of all tasks that the stages learn from, are validated on, and are asked."""
    learned = [plan for plan in plans.values() if isinstance(plan, FinetunePlan | RLPlan)]
    for plan in learned:
        yield from plan.tasks(job)
    if learned:
        yield from job["chat_tasks"]["tasks"]


@contextmanager
def hub_forbidden() -> Iterator[None]:
    """Let Hugging Face's libraries answer from their cache alone, here and in child processes."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"  # they read it when they are imported, which is later
    try:
        yield
    finally:
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before
