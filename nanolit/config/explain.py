"""One line for each wrong word and error of composition: what was got, the nearest allowed; and --help."""

import difflib
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import NoReturn

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nanolit.config.build import unknown_key
from nanolit.config.schema import Choices, StageName
from nanolit.config.words import compose_config, groups, hydra_quoted, in_order, options, paths_of
from nanolit.machine.paths import CONF

# What other programs call a setting; nanochat's flags first.
OTHER_NAMES = {
    "depth": "model.depth",
    "device_batch_size": "micro_batch",
    "total_batch_size": "total_batch",
    "num_iterations": "max_steps",
    "target_param_data_ratio": "target_ratio",
    "max_seq_len": "model.context",
    "sequence_length": "model.context",
    "window_pattern": "recipe.gpt.window_pattern",
    "matrix_lr": "recipe.groups.matrix.lr",
    "embedding_lr": "recipe.groups.embedding.lr",
    "unembedding_lr": "recipe.groups.unembedding.lr",
    "weight_decay": "recipe.groups.matrix.weight_decay",
    "vocab_size": "recipe.vocab_size",
    "dataset": "data",
    "data_path": "data",
    "batch_size": "total_batch",
    "steps": "max_steps",
    "max_iters": "max_steps",
    "lr": "stage.base.lr_scale",
    "learning_rate": "stage.base.lr_scale",
    "layers": "model.depth",
    "n_layer": "model.depth",
    "n_embd": "model.width",
    "hidden_size": "model.width",
    "n_head": "model.heads",
    "block_size": "model.context",
    "context": "model.context",
    "gpus": "cluster.devices",
    "devices": "cluster.devices",
    "name": "run",
    "output_dir": "root",
    "out_dir": "root",
}
TYPESET = r"[\u2013\u2014\u2018\u2019\u201c\u201d]"  # dashes and quotes of text programs
FLAGS = ("--help", "--cfg", "--json")
USER_ERRORS = (ValueError, OSError, HydraException, OmegaConfBaseException, yaml.YAMLError)
USER_ERRORS += (RecursionError,)  # of values in values in values


def explain(error: BaseException, overrides: Sequence[str]) -> str:
    """Return the line that says what is wrong with the overrides, and what to write."""
    text = str(error)
    if isinstance(error, RecursionError):
        return (
            "a value is nested hundreds of levels deep, which no setting is: check the words and their files"
        )
    if isinstance(error, HydraException) and (wrong := grammar_error(overrides)):
        return wrong
    if match := re.search(r"Could not override '([^']+)'", text):
        return unknown_override(match[1], text, overrides)
    if match := re.search(r"Ambiguous value for argument '([^']+)'|parameters '([^=]+)=.*--multirun", text):
        return f"{match[1] or match[2]} is a sweep, which only nanolit.train runs; give one value here"
    if match := re.search(r"Error merging override (.*)", text):
        text = f"{match[1]} does not fit: {error.__cause__}"
    if match := re.search(r"Could not find '([\w/-]+)/([^/']*)'", text):
        return unknown_option(match[1], match[2], re.findall(r"^\t(\S+)$", text, re.MULTILINE))
    return " ".join(
        line.strip() for line in text.splitlines() if not re.match(r"\s*(full_key|object_type)", line)
    )


def grammar_error(words: Sequence[str]) -> str | None:
    """Return what is wrong with the first word that Hydra cannot read; None if it reads them all."""
    parser = OverridesParser.create()
    for index, word in enumerate(words):
        try:
            parser.parse_override(word)
        except HydraException:
            following = words[index + 1] if index + 1 < len(words) else ""
            return malformed(word, following)
    return None


def malformed(word: str, following: str) -> str:
    """Return one line: what is wrong with a word that Hydra cannot read, and what to write."""
    if re.match(rf"{TYPESET}|\w+={TYPESET}", word):
        return f"{word} has a typographic dash or quotes; write {re.sub(TYPESET, '', word)}"
    key, equals, value = word.partition("=")
    if word.startswith("-"):
        if near := difflib.get_close_matches(key, FLAGS, n=1, cutoff=0.75):
            return f"there is no {key} here; did you mean {near[0]}?"
        bare = following and not following.startswith("-") and "=" not in following
        name, value = key.lstrip("-").replace("-", "_"), value or (following if bare else "…")
        return (
            f"there is no {key} here; settings are written KEY=VALUE: {OTHER_NAMES.get(name, name)}={value}"
        )
    if not equals:
        return f"{word!r} is not a setting: settings are written KEY=VALUE, {meant(word, following)}"
    if value.endswith(","):
        return f"{word} ends with a comma; remove it: {word.rstrip(',')}"
    unclosed = any(value.count(left) != value.count(right) for left, right in ("[]", "{}", "()"))
    what = (
        "has a bracket that is not closed" if unclosed else "has characters with a special meaning in Hydra"
    )
    return f"{word} {what}; {'close it, or ' * unclosed}quote the value: {quoted(key, value)}"


def meant(word: str, following: str) -> str:
    """Return the setting that a bare word may stand for, as a question."""
    choices = {group: options(group) for group in groups()}
    if word in choices or word in OTHER_NAMES:  # the group and its choice, as two words
        choice = following if following and "=" not in following else (*choices.get(word, ()), "…")[0]
        return f"did you mean {OTHER_NAMES.get(word, word)}={choice}?"
    every = {name: group for group in reversed(choices) for name in choices[group]}
    if word not in every and paths_of(word):
        return f"did you mean data={shlex.quote(word)}?"
    near = [word] if word in every else difflib.get_close_matches(word, every, n=1, cutoff=0.7)
    return f"did you mean {every[near[0]]}={near[0]}?" if near else "as in model=d12"


def quoted(key: str, value: str) -> str:
    """Quote a value for Hydra, and the whole for the shell: "data.path='/srv/step=3'"."""
    word = f"{key}={hydra_quoted(value)}"
    return shlex.quote(word) if set(word) & set('"$`!\\') else f'"{word}"'


def unknown_override(key: str, text: str, overrides: Sequence[str]) -> str:
    """Explain a key that the configuration doesn't have; its siblings are looked up in the job without it."""
    key = key.split("@")[0].lstrip("/")
    place = match[1] + ": " if (match := re.search(r"In '([^']+)'", text)) else ""
    if name := OTHER_NAMES.get(re.sub(r"^(model|recipe)\.", "", key)):
        return f"{place}there is no key {key}; it is called {name} here"
    if "." not in key:
        known = {*groups(), *Choices.__annotations__, "mixture"} - {"overrides"}
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
        return f"{key} needs {parent} to be chosen first; {parent}=… is one of {', '.join(options(parent))}"
    return unknown_override(parent, text, rest) if "." in parent else f"{place}there is no key {key}"


def unknown_option(group: str, option: str, known: Iterable[str]) -> str:
    """Explain `model=d7`: name the nearest option, and list all of them."""
    if group.startswith("hydra/launcher") and "submitit" in option:
        return (
            "cluster=slurm_8xgpu needs hydra-submitit-launcher; install it with: pip install 'nanolit[slurm]'"
        )
    known = in_order(known) or options(group)
    near = difflib.get_close_matches(option, known, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    if group == "model" and re.fullmatch(r"d\d+", option):
        meant = f"write model.depth={option[1:]}; "
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
        f"stages={stages} must be in the recipe's order, once each; give stages={ordered}".replace("'", "")
    )


def no_such_stage(job: Choices, stage: str) -> str:
    recipe = job["recipe"]
    return f"recipe={recipe['name']} has no stage {stage}; its stages: {', '.join(recipe['stages'])}"


def help_text() -> str:
    """Return the text of --help, from conf/hydra/help. Hydra's own way to it takes two seconds."""
    template = OmegaConf.load(CONF / "hydra" / "help" / "nanolit.yaml").template
    choices = "\n".join(f"  {group}: {', '.join(options(group))}" for group in groups())
    return template.replace("$APP_CONFIG_GROUPS", choices)
