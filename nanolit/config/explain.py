"""One line for every error of composition: what was got, and the nearest that is allowed; and --help."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import NoReturn

import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nanolit.config.build import unknown_key
from nanolit.config.schema import Choices, StageName
from nanolit.config.words import OTHER_NAMES, compose_config, grammar_error, groups, options
from nanolit.machine.paths import CONF

USER_ERRORS = (ValueError, OSError, HydraException, OmegaConfBaseException, yaml.YAMLError)
USER_ERRORS += (RecursionError,)  # of values in values in values


def explain(error: BaseException, overrides: Sequence[str]) -> str:
    """Return the line that says what is wrong with the overrides, and what to write."""
    text = str(error)
    if isinstance(error, RecursionError):
        return (
            "a value is nested hundreds of levels deep, and no setting is: check the words, and their files"
        )
    if isinstance(error, HydraException) and (wrong := grammar_error(overrides)):
        return wrong
    if match := re.search(r"Could not override '([^']+)'", text):
        return unknown_override(match[1], text, overrides)
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{match[1]} is a sweep, which nanolit.train runs; here give one value"
    if match := re.search(r"Error merging override (.*)", text):
        text = f"{match[1]} does not fit: {error.__cause__}"
    if match := re.search(r"Could not find '([\w/-]+)/([^/']*)'", text):
        return unknown_option(match[1], match[2], re.findall(r"^\t(\S+)$", text, re.MULTILINE))
    return " ".join(
        line.strip() for line in text.splitlines() if not re.match(r"\s*(full_key|object_type)", line)
    )


def unknown_override(key: str, text: str, overrides: Sequence[str]) -> str:
    """For a key that the configuration doesn't have; siblings are looked up in the job without it."""
    key = key.split("@")[0].lstrip("/")
    place = match[1] + ": " if (match := re.search(r"In '([^']+)'", text)) else ""
    if name := OTHER_NAMES.get(key.removeprefix("model.")):
        return f"{place}there is no key {key}; it is {name} here"
    if "." not in key:
        known = {*groups(), *Choices.__annotations__} - {"overrides"}
        return place + unknown_key(key, known)
    parent = key.rpartition(".")[0]
    try:
        rest = [word for word in overrides if word.lstrip("+~").split("=")[0] != key]
        node = OmegaConf.select(compose_config(rest), parent)
    except USER_ERRORS:
        node = None
    if isinstance(node, DictConfig):
        return place + unknown_key(key, map(str, node))
    if parent in groups():
        return f"{key} needs a choice of {parent} first; {parent}=… is one of {', '.join(options(parent))}"
    return unknown_override(parent, text, rest) if "." in parent else f"{place}there is no key {key}"


def unknown_option(group: str, option: str, known: Iterable[str]) -> str:
    """For `model=d7`: the nearest option, and all of them."""
    if group.startswith("hydra/launcher") and "submitit" in option:
        return (
            "cluster=slurm_8xgpu needs hydra-submitit-launcher; install it with: pip install 'nanolit[slurm]'"
        )
    known = list(known) or options(group)
    near = difflib.get_close_matches(option, known, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    other = {"model": " (model.depth=N takes any depth)", "data": ", a path, or hf:OWNER/NAME"}.get(group, "")
    return f"there is no {group}={option}; {meant}allowed: {', '.join(known)}{other}"


def refuse_stages(job: Choices, stages: object, ordered: list[StageName]) -> NoReturn:
    """ValueError for stages that are no list, that the recipe lacks, or in another order than its own."""
    if not stages or not isinstance(stages, list):
        example = f"[{stages or 'base'}]"
        raise ValueError(f"stages is {stages!r}; choose a phase, or give a list: stages={example}")
    for stage in stages:
        if stage not in job["recipe"]["stages"]:
            raise ValueError(no_such_stage(job, stage))
    raise ValueError(
        f"stages={stages} run in the recipe's order, once each; give stages={ordered}".replace("'", "")
    )


def no_such_stage(job: Choices, stage: str) -> str:
    recipe = job["recipe"]
    return f"recipe={recipe['name']} has no stage {stage}; its stages: {', '.join(recipe['stages'])}"


def help_text() -> str:
    """Return the text of --help, from conf/hydra/help. Hydra's own way to it takes two seconds."""
    template = OmegaConf.load(CONF / "hydra" / "help" / "nanolit.yaml").template
    choices = "\n".join(f"  {group}: {', '.join(options(group))}" for group in groups())
    return template.replace("$APP_CONFIG_GROUPS", choices)
