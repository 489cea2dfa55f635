"""The settings of a run that differ from its recipe's, and the command that made it."""

from collections.abc import Mapping
from typing import cast

from nanolit.config.names import DECISIVE, decisive_settings, difference
from nanolit.config.schema import Job
from nanolit.machine.paths import Json
from nanolit.machine.terminal import train_command
from nanolit.report.folders import Run
from nanolit.report.sections import Block, Code, Section, Table, Text, portable
from nanolit.report.tables import MISSING, readable

MANY = 12  # settings; more are folded
DECISIVE_NODES = ("model", "recipe", "data", "stage")


def chosen_settings(run: Run) -> list[Block]:
    """Return the section of what was chosen; nothing for a run whose job isn't whole."""
    job = run.job
    if not all(job.get(key) for key in (*DECISIVE_NODES, "stages")):
        return []
    try:
        rows = different_rows(job)
    except ValueError:  # a recipe that this version doesn't have
        return []
    words = [word for word in job.get("overrides") or () if not word.startswith("root=")]
    words = [portable(word, run.root) for word in words]
    command = Code(train_command(words))
    name = job["recipe"]["name"]
    if not rows:
        return [Section("Settings", [command, Text(f"All settings are those of recipe={name}.")])]
    table = Table(["Setting", f"recipe={name}", "This run"], rows, num_left=3)
    if len(rows) <= MANY:
        return [Section("Settings that differ from the recipe", [command, table])]
    folded = Section(f"{len(rows)} settings that differ from recipe={name}", [table], folded=True)
    return [Section("Settings", [command, folded])]


def different_rows(job: Json) -> list[list[str]]:
    """Return (setting, the recipe's, the run's) for the run's stages; ValueError for an unknown recipe."""
    from nanolit.config import compose  # imports Hydra

    try:
        words = [f"recipe={job['recipe']['name']}", f"model.depth={job['model']['depth']}"]
        plain = compose.plain_job(*words, f"seed={job['seed']}")
    except compose.USER_ERRORS as error:
        raise ValueError(str(error)) from error
    # A key that a job of an older version lacks is None, as where a run is resumed
    before, now = decisive_settings(plain), decisive_settings(cast(Job, {**dict.fromkeys(DECISIVE), **job}))
    rows = []
    for key in difference(before, now):
        node, stage, *_ = [*key.split("."), ""]
        if node in ("stage", "recipe") and stage not in job["stages"] and stage in plain["stage"]:
            continue
        values = [_shown(key, settings, owner) for settings, owner in ((before, plain), (now, job))]
        if values[0] != values[1]:
            rows.append([key.removesuffix("._target_"), *values])
    return rows


def _shown(key: str, settings: Mapping[str, object], job: Mapping) -> str:
    """Return a setting's value; one that is left to the recipe is the recipe's."""
    value, (node, *places) = settings.get(key), key.split(".")
    if value is None and node == "stage":
        stage, *rest = places
        of_stage = job["recipe"].get(stage) or {}
        value = of_stage.get(rest[0]) if len(rest) == 1 else (of_stage.get(rest[0]) or {}).get(rest[1])
    if value is None:
        return "derived" if key in settings and key != "start_from" else MISSING
    if isinstance(value, list) and all(isinstance(item, dict) and "_target_" in item for item in value):
        return ", ".join(dict.fromkeys(item["_target_"].rpartition(".")[2] for item in value))
    if isinstance(value, Mapping) and "_target_" in value:
        return str(value["_target_"]).rpartition(".")[2]
    return str(value).rpartition(".")[2] if key.endswith("._target_") else readable(value)
