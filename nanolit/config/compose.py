"""Compose a job from what was typed: Hydra composes, rules fill in what follows, config/check.py checks it.

Every error that a person can cause here is one ValueError of one line.
"""

import difflib
import functools
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import cast

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nanolit.config.check import check_job, unknown_key
from nanolit.config.names import run_name, trial_name
from nanolit.config.rules import RULES, fit_vocabulary
from nanolit.config.schema import SHORTHANDS, Choices, Job
from nanolit.config.words import OTHER_NAMES, as_typed, grammar_error, groups, options
from nanolit.machine.paths import CONF, PACKAGE, home

OmegaConf.register_new_resolver("nanolit.home", lambda root: str(home(root)), replace=True)
OmegaConf.register_new_resolver(
    "nanolit.or", lambda wish, else_: else_ if wish is None else wish, replace=True
)
LAUNCHERS = PACKAGE.parent / "launch"
if (LAUNCHERS / "hydra_plugins").is_dir() and str(LAUNCHERS) not in sys.path:
    sys.path.append(str(LAUNCHERS))  # a bare checkout; Hydra looks for plugins when it composes
USER_ERRORS = (ValueError, OSError, HydraException, OmegaConfBaseException, yaml.YAMLError)
USER_ERRORS += (RecursionError,)  # of values in values in values


def refuse_environment(name: str, *_default: object) -> str:
    """A resolved value is written into job.yaml, and from there to W&B and Modal: no place for a secret."""
    raise ValueError(
        f"${{oc.env:{name}}} is not read: its value would be stored with the run; write the value itself, or "
        f'on the command line "${name}"'
    )


OmegaConf.register_new_resolver("oc.env", refuse_environment, replace=True)


def compose(overrides: Sequence[str]) -> Job:
    """The checked job of one command line, `["phase=base", "model=d4"]`; ValueError says what is wrong."""
    try:
        overrides = as_typed(overrides)
        config = compose_config(overrides)
        choices = filled(config, overrides)
        check_job({**choices, "run": choices["run"] or ""})
        fit_vocabulary(choices)
        job = without_shorthands(choices)
        if not job["run"]:
            recipe = config.hydra.runtime.choices["recipe"]
            search = tuple(word for word in overrides if word.lstrip("+").startswith("hydra.searchpath="))
            plain = plain_job(recipe, job["model"]["depth"], job["seed"], search)
            job["run"] = run_name(job, plain)
        check_name(job["run"])
        if job["fast_dev_run"]:
            job["run"] = trial_name(job["run"])
        return job
    except USER_ERRORS as error:
        raise ValueError(explain(error, overrides)) from error


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Hydra's composition, with its own node; inside a running Hydra application, with its search path."""
    running = GlobalHydra().is_initialized()
    folder = str(CONF)
    with nullcontext() if running else initialize_config_dir(folder, job_name="nanolit", version_base="1.3"):
        return hydra_compose("config", list(overrides), return_hydra_config=True)


def filled(config: DictConfig, overrides: Sequence[str]) -> Choices:
    """Return Hydra's composition as a plain dict, after every rule and before the check."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    try:
        job = cast(Choices, OmegaConf.to_container(own, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        raise ValueError(f"{error.full_key} has no default; give {error.full_key}=…") from error
    job["overrides"] = [word for word in overrides if not re.match(r"[+~]*hydra[./]", word)]
    for rule in RULES:
        rule(job)
    return job


def without_shorthands(choices: Choices) -> Job:
    """Return the job alone: by now its stages hold what the shorthands say."""
    return cast(Job, {key: value for key, value in choices.items() if key not in SHORTHANDS})


@functools.cache
def plain_job(recipe: str, depth: int, seed: int, search: tuple[str, ...]) -> Job:
    """The job of this recipe, depth and seed and no other choice: what a plain run name means."""
    overrides = [f"recipe={recipe}", f"model.depth={depth}", f"seed={seed}", *search]
    return without_shorthands(filled(compose_config(overrides), overrides))


def check_name(run: str) -> None:
    """ValueError unless the run's name can be a folder's name, part of RUN/stage."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", run):
        raise ValueError(
            f"run is {run!r}; it has letters, digits, - and _: try {re.sub('[^A-Za-z0-9_-]+', '-', run)!r}"
        )


def explain(error: BaseException, overrides: Sequence[str]) -> str:
    """One line for an error of composition: what was got, the nearest that is allowed."""
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


def help_text() -> str:
    """Return the text of --help, from conf/hydra/help. Hydra's own way to it takes two seconds."""
    template = OmegaConf.load(CONF / "hydra" / "help" / "nanolit.yaml").template
    choices = "\n".join(f"  {group}: {', '.join(options(group))}" for group in groups())
    return template.replace("$APP_CONFIG_GROUPS", choices)
