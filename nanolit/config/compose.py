"""Compose a job from what was typed: Hydra composes, rules fill in what follows, build.py checks it.

Every error that a person can cause here is one ValueError of one line.
"""

import functools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf
from typing_extensions import TypedDict

from nanolit.config.build import build, check_mapping, check_targets
from nanolit.config.explain import USER_ERRORS, explain, no_such_stage, refuse_stages
from nanolit.config.names import flatten, releases_before, run_name, trial_name
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
from nanolit.config.stored import read_job
from nanolit.config.words import as_typed, compose_config, options
from nanolit.machine.paths import CONF, expanded, home, read_json, read_yaml
from nanolit.machine.system import gpu_names

OmegaConf.register_new_resolver("nanolit.home", lambda root: str(home(root)), replace=True)
OmegaConf.register_new_resolver(
    "nanolit.or", lambda wish, else_: else_ if wish is None else wish, replace=True
)
CHATS = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|parquet)(\.gz|\.zst)?$", re.IGNORECASE)
CONVERSATIONS = "nanolit.tasks.jsonl.ConversationFile"
IDENTITY = "nanolit.tasks.identity.Identity"
HUMANEVAL = "nanolit.tasks.humaneval.HumanEval"
# In little text a vocabulary of 32,768 would see few examples of each token, and the model would be mostly
# embeddings. The bundled sample's 4.3 MB would get 4,096; untuned.
BYTES_PER_TOKEN = 1024
SMALLEST = 512


def refuse_environment(name: str, *_default: object) -> str:
    """ValueError: the value would be written to job.yaml, W&B and Modal, and it may be a secret."""
    raise ValueError(
        f"${{oc.env:{name}}} is not read: its value would be stored with the run; write the value itself, or "
        f'on the command line "${name}"'
    )


OmegaConf.register_new_resolver("oc.env", refuse_environment, replace=True)


def compose(overrides: Sequence[str]) -> Job:
    """Return the checked job of the words `["phase=base", "model=d4"]`; ValueError says what is wrong."""
    try:
        overrides = as_typed(overrides)
        config = compose_config(overrides)
        choices = filled(config, overrides)
        check_mapping({**choices, "run": choices["run"] or ""}, Choices, path="")
        check_targets(choices)
        refuse_endless(choices)
        if choices["fast_dev_run"] and choices["run"]:
            choices["run"] = trial_name(choices["run"])
        continue_model(choices)
        fit_vocabulary(choices)
        job = without_shorthands(choices)
        if not job["run"]:
            words = [
                f"recipe={config.hydra.runtime.choices['recipe']}",
                f"model.depth={job['model']['depth']}",
            ]
            is_identity = job["phase"] == "identity"
            words.append("phase=identity" if is_identity else f"seed={job['seed']}")
            kept = ("hydra.searchpath=", "identity=") if is_identity else ("hydra.searchpath=",)
            words += [word for word in overrides if word.lstrip("+").startswith(kept)]
            job["run"] = run_name(job, plain_job(*words))
        check_name(job["run"])
        if job["fast_dev_run"]:
            job["run"] = trial_name(job["run"])
        return job
    except USER_ERRORS as error:
        raise ValueError(explain(error, overrides)) from error


def filled(config: DictConfig, overrides: Sequence[str]) -> Choices:
    """Return Hydra's composition as a plain dict, after every rule and before the check."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    try:
        job = cast(Choices, OmegaConf.to_container(own, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        raise ValueError(f"{error.full_key} has no default; give {error.full_key}=…") from error
    job["overrides"] = [word for word in overrides if not re.match(r"[+~]*hydra[./]", word)]
    require_groups(job)  # from here on rules fill in what follows, in this order
    if job.get("data") is None:  # the recipe's corpus
        path = CONF / "data" / f"{job['recipe']['corpus']}.yaml"
        job["data"] = cast(Target, OmegaConf.to_container(OmegaConf.load(path)))
    fill_stages(job)
    drop_stages_of_other_recipes(job)
    fill_mixtures(job)
    fill_chat_tasks(job)
    fill_place(job)
    return job


def without_shorthands(choices: Choices) -> Job:
    """Return the job alone: by now its stages hold what the shorthands say."""
    return cast(Job, {key: value for key, value in choices.items() if key not in SHORTHANDS})


@functools.cache
def plain_job(*overrides: str) -> Job:
    """Return the job of this recipe, depth and seed and no other choice: what a plain run name means."""
    return without_shorthands(filled(compose_config(overrides), overrides))


def refuse_endless(choices: Choices) -> None:
    """ValueError for a number that is NaN or infinite: it passes every limit, and NaN never equals itself."""
    for key, value in flatten(choices).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{key} is {number}; it must be a finite number")


def check_name(run: str) -> None:
    """ValueError unless the run's name can be a folder's name, part of RUN/stage."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", run):
        raise ValueError(
            f"run is {run!r}; it may only have letters, digits, - and _: try "
            f"{re.sub('[^A-Za-z0-9_-]+', '-', run)!r}"
        )


def require_groups(job: Choices) -> None:
    """ValueError where a group was set to a value, `model: d4` in an experiment, instead of being chosen."""
    for group in ("model", "recipe", "cluster", "stage"):
        if not isinstance(job.get(group), dict):
            raise ValueError(
                f"{group} is {job.get(group)!r}; choose one by name: {group}=…, or `override /{group}: …`"
            )


def fill_stages(job: Choices) -> None:
    """Read `stages=null` as those of the phase; ValueError unless the recipe has them, in its order."""
    has = job["recipe"]["stages"]
    stages = job.get("stages")
    if stages is None and job.get("phase") == "speedrun":
        stages = [stage for stage in has if stage != "rl" or job["rl"]]
    elif stages is None and job.get("phase") == "identity":
        stages = [stage for stage in has if stage in ("mid", "sft")]
    ordered: list[StageName] = [stage for stage in has if isinstance(stages, list) and stage in stages]
    if not ordered or stages != ordered:
        refuse_stages(job, stages, ordered)
    job["stages"] = ordered


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
            names = {"key": f"stage.{stage}.mixture", "mirror": recipe["mirror"]}
            is_chats = CHATS.search(wish := str(wish))
            mixture = mixture_of_chats(wish, **names) if is_chats else named("mixture", wish, **names)
            introduces = job["identity"] or job["phase"] == "identity"
            stages[stage]["mixture"] = introduce(mixture, job) if introduces else mixture


def named(folder: str, name: str, *, key: str, mirror: str) -> Any:
    """Return the content of conf/<folder>/<name>.yaml or of a user's file, its mirror filled in."""
    path = CONF / folder / f"{name}.yaml"
    if not path.is_file():
        path = own_file(folder, name, key=key)
        read_yaml(path, remedy="fix it")  # OmegaConf would unfold its aliases, however many
    content = OmegaConf.load(path)
    if isinstance(content, DictConfig) and content.get("mirror") is None:
        content.mirror = mirror
    found = OmegaConf.to_container(content, resolve=True)
    if not isinstance(found, dict):
        raise ValueError(f"{path} is a list; it must be a mapping, like those in conf/{folder}")
    return found


def own_file(folder: str, name: str, *, key: str) -> Path:
    """Return the path of a user's YAML file; ValueError where there is none."""
    path = expanded(name)
    if folder == "mixture" and path.is_dir():
        raise ValueError(
            f"{key}={name} is a folder; give one of its files, or a YAML file that lists them (docs/data.md)"
        )
    if not re.search(r"\.ya?ml$", name):
        chats = "a file of chats (jsonl, json, csv, parquet), or " if folder == "mixture" else ""
        raise ValueError(
            f"there is no {key}={name}; allowed: {', '.join(options(folder))}, {chats}a YAML file"
        )
    if not path.is_file():
        raise ValueError(f"{key}={name}: there is no such file; check the path")
    return path


def mixture_of_chats(name: str, *, key: str, mirror: str) -> Mixture:
    """Return the mixture of a user's file of chats, a part of it held out; ValueError where there is none."""
    path = expanded(name)
    if not path.is_file() and not path.is_absolute():  # which may be another machine's
        raise ValueError(f"{key}={name}: there is no such file; check the path")
    file = {"_target_": CONVERSATIONS, "path": name}
    sources, validation = [{**file, "part": "train"}], [{**file, "part": "held_out"}]
    return {"mirror": mirror, "sources": sources, "validation": validation}


def introduce(mixture: Mixture, job: Choices) -> Mixture:
    """Return the mixture with the conversations of `identity=`, the package's if that is null.

    A mixture without any gets them for two epochs, as in nanochat's finetuning of early 2026.
    """
    sources = mixture.get("sources")
    if not isinstance(sources, list):
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
    name = str(job["chat_tasks"] or recipe["chat_tasks"])
    job["chat_tasks"] = named("chat_evaluation", name, key="chat_tasks", mirror=recipe["mirror"])
    most = job["chat_tasks"].get("max_per_task", 1)
    if not isinstance(most, int) or most < 1:
        raise ValueError(f"max_per_task of chat_tasks={name} is {most}; allowed: 1 and up, or leave it out")
    if job["sandbox"] == "weak":
        allow_weak_sandbox(job["chat_tasks"])


def allow_weak_sandbox(chat_tasks: ChatTasks) -> None:
    """Let programs that a model wrote run where only Python's own hook confines them."""
    for task in chat_tasks["tasks"]:
        if task.get("_target_") == HUMANEVAL:
            task["sandbox"] = "weak"


def fill_place(job: Choices) -> None:
    """Read `root=null` as NANOLIT_HOME, else ./runs; a local cluster has this machine's first NVIDIA GPU."""
    if job["root"] is None or isinstance(job["root"], str):  # else the check says what it must be
        job["root"] = str(home(job["root"]))
    if job["cluster"].get("kind") == "local" and job["cluster"].get("gpu") is None:
        job["cluster"]["gpu"] = next(iter(gpu_names()), "cpu")


def continue_model(job: Choices) -> None:
    """Take the sizes of the model from the run that the job continues, unless some were typed."""
    if any(word.lstrip("+").startswith(("model=", "model.", "experiment=")) for word in job["overrides"]):
        return
    for release in releases_before(job):
        path = release.with_name("job.yaml")
        if release.match("runs/*/*/release") and path.is_file():
            job["model"] = read_job(path)["model"]
            return


def fit_vocabulary(job: Choices) -> None:
    """Take the vocabulary of the model that the job continues, else as much as a small own text can teach.

    A vocabulary that was typed is kept.
    """
    typed = ("recipe.vocab_size=", "stage.tokenizer.vocab_size=", "experiment=")
    if not any(word.lstrip("+").startswith(typed) for word in job["overrides"]):
        known = vocabulary_before(job)
        job["stage"]["tokenizer"]["vocab_size"] = vocabulary_of_text(job) if known is None else known


def vocabulary_of_text(job: Choices) -> int:
    """Return the vocabulary that the job's text can teach, at most the recipe's."""
    vocab_size = job["stage"]["tokenizer"]["vocab_size"]
    try:
        num_bytes = build(job["data"]).text_bytes(enough=vocab_size * BYTES_PER_TOKEN)
    except (ValueError, OSError):  # not here, or faulty: the plan, or what reads it, says so
        return vocab_size
    if num_bytes is None:
        return vocab_size
    return min(vocab_size, 1 << (max(SMALLEST, num_bytes // BYTES_PER_TOKEN).bit_length() - 1))


class Sizes(TypedDict):
    """The part of a release's gpt.json that is read here."""

    vocab_size: int


def vocabulary_before(job: Choices) -> int | None:
    """Return the vocabulary of the model that the job continues; None if it begins anew."""
    for release in [] if "tokenizer" in job["stages"] else releases_before(job)[:1]:
        return read_json(release / "gpt.json", Sizes, remedy="copy or convert it again")["vocab_size"]
    return None
