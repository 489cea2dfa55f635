"""Compose a job from what was typed: Hydra composes, rules fill in what follows, config/check.py checks it.

Every error that a person can cause here is one ValueError of one line.
"""

import difflib
import functools
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nanolit.config.check import check_job, unknown_key
from nanolit.config.names import run_name, trial_name
from nanolit.config.schema import (
    SHORTHANDS,
    ChatTasks,
    Choices,
    Job,
    Mixture,
    Node,
    StageName,
    Stages,
    Target,
)
from nanolit.config.search_path import check_search_path, refuse_environment
from nanolit.config.vocabulary import fit_vocabulary
from nanolit.config.words import grammar_error, spelled_out
from nanolit.machine.paths import PACKAGE, conf_folder, home, read_yaml
from nanolit.machine.system import gpu_names

OmegaConf.register_new_resolver("nanolit.home", lambda root: str(home(root)), replace=True)
OmegaConf.register_new_resolver(
    "nanolit.or", lambda wish, else_: else_ if wish is None else wish, replace=True
)
CHATS = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|parquet)(\.gz|\.zst)?$", re.IGNORECASE)
CONVERSATIONS = "nanolit.tasks.jsonl.ConversationFile"
IDENTITY = "nanolit.tasks.identity.Identity"
HUMANEVAL = "nanolit.tasks.humaneval.HumanEval"
LAUNCHERS = PACKAGE.parent / "launch"
if (LAUNCHERS / "hydra_plugins").is_dir() and str(LAUNCHERS) not in sys.path:
    sys.path.append(str(LAUNCHERS))  # a bare checkout; Hydra looks for plugins when it composes
OmegaConf.register_new_resolver("oc.env", refuse_environment, replace=True)
USER_ERRORS = (ValueError, OSError, HydraException, OmegaConfBaseException, yaml.YAMLError)


def compose(overrides: Sequence[str]) -> Job:
    """The checked job of one command line, `["phase=base", "model=d4"]`; ValueError says what is wrong."""
    try:
        check_search_path(overrides)
        overrides = spelled_out(overrides, options("data"))
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
    folder = str(conf_folder())
    with nullcontext() if running else initialize_config_dir(folder, job_name="nanolit", version_base="1.3"):
        return hydra_compose("config", list(overrides), return_hydra_config=True)


def filled(config: DictConfig, overrides: Sequence[str]) -> Choices:
    """Return Hydra's composition as a plain dict, after every rule and before the check."""
    job = plain_dict(config)
    job["overrides"] = [word for word in overrides if not re.match(r"[+~]*hydra[./]", word)]
    for rule in RULES:
        rule(job)
    return job


def plain_dict(config: DictConfig) -> Choices:
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    try:
        return cast(Choices, OmegaConf.to_container(own, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        raise ValueError(f"{error.full_key} has no default; give {error.full_key}=…") from error


def require_groups(job: Choices) -> None:
    """ValueError where a group was set to a value, `model: d4` in an experiment, instead of being chosen."""
    for group in ("model", "recipe", "cluster", "stage"):
        if not isinstance(job.get(group), dict):
            raise ValueError(
                f"{group} is {job.get(group)!r}; choose one by name: {group}=…, or `override /{group}: …`"
            )


def fill_data(job: Choices) -> None:
    """Read `data=null` as the recipe's corpus."""
    if job.get("data") is None:
        path = conf_folder() / "data" / f"{job['recipe']['corpus']}.yaml"
        job["data"] = cast(Target, OmegaConf.to_container(OmegaConf.load(path)))


def fill_stages(job: Choices) -> None:
    """Read `stages=null` as those of the phase; ValueError unless the recipe has them, in its order."""
    has = job["recipe"]["stages"]
    stages = job.get("stages")
    if stages is None and job.get("phase") == "speedrun":
        stages = [stage for stage in has if stage != "rl" or job["rl"]]
    elif stages is None and job.get("phase") == "identity":
        stages = [stage for stage in has if stage in ("mid", "sft")]
    if not stages or not isinstance(stages, list):
        raise ValueError(f"stages is {stages!r}; choose a phase, or a list like stages=[base]")
    for stage in stages:
        if stage not in has:
            raise ValueError(no_such_stage(job, stage))
    ordered: list[StageName] = [stage for stage in has if stage in stages]
    if stages != ordered:
        raise ValueError(
            f"stages={stages} run in the recipe's order, once each; give stages={ordered}".replace("'", "")
        )
    job["stages"] = ordered


def no_such_stage(job: Choices, stage: str) -> str:
    recipe = job["recipe"]
    return f"recipe={recipe['name']} has no stage {stage}; its stages: {', '.join(recipe['stages'])}"


def drop_stages_of_other_recipes(job: Choices) -> None:
    """Drop the settings of stages that the recipe lacks; ValueError if one of them was typed."""
    others = [stage for stage in job["stage"] if stage not in job["recipe"]["stages"]]
    for word in job["overrides"]:
        if word.lstrip("+").startswith(tuple(f"stage.{stage}." for stage in others)):
            raise ValueError(f"{word}: {no_such_stage(job, word.split('.')[1])}")
    kept = {stage: settings for stage, settings in job["stage"].items() if stage not in others}
    job["stage"] = cast(Stages, kept)


def fill_mixtures(job: Choices) -> None:
    """Replace the name of a mixture, or null for the recipe's, by its content."""
    recipe, stages = cast(Node, job["recipe"]), cast(Node, job["stage"])
    for stage in ("mid", "sft"):
        if isinstance(stages.get(stage), dict) and isinstance(recipe.get(stage), dict):
            wish = stages[stage]["mixture"] or recipe[stage]["mixture"]
            if wish != recipe[stage]["mixture"]:
                recipe[stage]["epoch_tokens"] = None  # that of another mixture
            mixture = named("mixture", wish, key=f"stage.{stage}.mixture", mirror=recipe["mirror"])
            stages[stage]["mixture"] = introduce(mixture, job)


def named(folder: str, name: object, *, key: str, mirror: str) -> Any:
    """The content of conf/<folder>/<name>.yaml or of a user's YAML file, its mirror filled in."""
    path = conf_folder() / folder / f"{name}.yaml"
    is_yaml, is_chats = re.search(r"\.ya?ml$", str(name)), folder == "mixture" and re.search(CHATS, str(name))
    if is_yaml or is_chats:
        path = Path(str(name)).expanduser()
    if not path.is_file() and not (is_chats and path.is_absolute()):  # which may be another machine's
        if is_yaml or is_chats:
            raise ValueError(f"{key}={name}: there is no such file; check the path")
        files = (
            "a file of chats (jsonl, json, csv, parquet), or a YAML file"
            if folder == "mixture"
            else "a YAML file"
        )
        raise ValueError(f"there is no {key}={name}; allowed: {', '.join(options(folder))}, {files}")
    if is_chats:
        parts = [
            {"_target_": CONVERSATIONS, "path": str(name), "part": part} for part in ("train", "held_out")
        ]
        return {"mirror": mirror, "sources": parts[:1], "validation": parts[1:]}
    read_yaml(path, remedy="mend it")  # OmegaConf would unfold its aliases, however many
    content = OmegaConf.load(path)
    if isinstance(content, DictConfig) and content.get("mirror") is None:
        content.mirror = mirror
    found = OmegaConf.to_container(content, resolve=True)
    if not isinstance(found, dict):
        raise ValueError(f"{path} is a list; it must be a mapping, like those of conf/{folder}")
    return found


def introduce(mixture: Mixture, job: Choices) -> Mixture:
    """The mixture with the conversations of `identity=`; phase=identity and a file of one's own add them to a
    mixture without any, twice, as nanochat's finetuning of early 2026 has them."""
    sources = mixture.get("sources")
    if not isinstance(sources, list) or not (job["identity"] or job["phase"] == "identity"):
        return mixture
    own = [source for source in sources if isinstance(source, dict) and source.get("_target_") == IDENTITY]
    if not own:
        own = [{"_target_": IDENTITY, "epochs": 2}]
        sources.append(own[0])
    for source in own:
        if job["identity"]:
            source["path"] = job["identity"]
    return mixture


def fill_chat_tasks(job: Choices) -> None:
    """Replace the name of the chat evaluation, or null for the recipe's, by its content."""
    recipe = job["recipe"]
    name = job["chat_tasks"] or recipe["chat_tasks"]
    job["chat_tasks"] = named("chat_evaluation", name, key="chat_tasks", mirror=recipe["mirror"])
    if job["sandbox"] == "weak":
        allow_weak_sandbox(job["chat_tasks"])


def allow_weak_sandbox(chat_tasks: ChatTasks) -> None:
    """Let programs that a model wrote run where only Python's own hook confines them."""
    for task in chat_tasks["tasks"]:
        if task.get("_target_") == HUMANEVAL:
            task["sandbox"] = "weak"


def fill_root(job: Choices) -> None:
    """Read `root=null` as NANOLIT_HOME, else ./runs."""
    if job["root"] is None or isinstance(job["root"], str):  # else the check says what it must be
        job["root"] = str(home(job["root"]))


def fill_gpu(job: Choices) -> None:
    """Give a local cluster the name of this machine's first NVIDIA GPU, else "cpu"."""
    if job["cluster"].get("kind") == "local" and job["cluster"].get("gpu") is None:
        job["cluster"]["gpu"] = next(iter(gpu_names()), "cpu")


# From Hydra's composition to a job, in this order.
RULES: tuple[Callable[[Choices], None], ...] = (
    require_groups,
    fill_data,
    fill_stages,
    drop_stages_of_other_recipes,
    fill_mixtures,
    fill_chat_tasks,
    fill_root,
    fill_gpu,
)


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
    if isinstance(error, HydraException) and (
        wrong := grammar_error(overrides, {group: options(group) for group in groups()})
    ):
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


def groups() -> list[str]:
    """The groups that a job chooses from: those in the defaults of conf/config.yaml."""
    defaults = OmegaConf.load(conf_folder() / "config.yaml").defaults
    names = [str(key) for entry in defaults if isinstance(entry, DictConfig) for key in entry]
    return [name for name in names if not name.startswith("override")]


def help_text() -> str:
    """Return the text of --help, from conf/hydra/help. Hydra's own way to it takes two seconds."""
    template = OmegaConf.load(conf_folder() / "hydra" / "help" / "nanolit.yaml").template
    choices = "\n".join(f"  {group}: {', '.join(options(group))}" for group in groups())
    return template.replace("$APP_CONFIG_GROUPS", choices)


def options(group: str) -> list[str]:
    """The choices of a group, d2 before d12."""
    names = (path.stem for path in (conf_folder() / group).glob("*.yaml"))
    return sorted(names, key=lambda name: (name.rstrip("0123456789"), len(name), name))
