"""Words that Hydra cannot read are answered with the form that works. Oracle: Hydra's own parser."""

import shlex
import subprocess
import sys

import pytest
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

from nanolit import train
from nanolit.config.words import grammar_error, quoted

VALUES = [
    "/srv/epoch=999-step=87999",
    "it's",
    "a(b)",
    "Größe #1 & [x",
    "a,b",
    '"both\'s"',
    "back\\slash",
    "$HOME!",
]


@pytest.mark.parametrize("value", VALUES)
def test_the_quoted_form_survives_the_shell_and_hydra(value: str) -> None:
    (word,) = shlex.split(quoted("data.path", value))
    assert OverridesParser.create().parse_override(word).value() == value


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["foo"], "'foo' is not a setting: settings are written KEY=VALUE, as in model=d12"),
        (["d12"], "'d12' is not a setting: settings are written KEY=VALUE, did you mean model=d12?"),
        (["--model", "d12"], "there is no --model here; settings are written KEY=VALUE: model=d12"),
        (["--model=d12"], "there is no --model here; settings are written KEY=VALUE: model=d12"),
        (["model=d12,"], "model=d12, ends with a comma; leave it out: model=d12"),
    ],
)
def test_a_word_of_another_form_is_answered_with_the_right_one(words: list[str], said: str) -> None:
    assert grammar_error(words, {"model": ["d2", "d12"]}) == said


def test_words_that_hydra_reads_have_no_error() -> None:
    assert grammar_error(["model=d12", "+x=1", "~y", "model=d2,d4", "recipe.groups={a: 1}"], {}) is None


@pytest.mark.parametrize("command", ["plan", "train"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["foo"], "'foo' is not a setting"),
        (["--model", "d12"], "KEY=VALUE: model=d12"),
        (["model="], "there is no model=; allowed: d12, "),
        (["data=local", "data.path=/srv/step=3"], "\"data.path='/srv/step=3'\""),
    ],
)
def test_plan_and_train_say_it_in_one_line(command: str, words: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"nanolit.{command}", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert (done.stderr.count("\n"), done.stdout) == (1, "")


def test_the_flags_that_train_leaves_to_hydra_are_hydras() -> None:
    flags = {flag for action in get_args_parser()._actions for flag in action.option_strings}
    assert {flag for flag in flags if flag.startswith("--")} == set(train.HYDRA_FLAGS)
