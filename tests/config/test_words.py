"""Words that Hydra cannot read are answered with the form that works. Oracle: Hydra's own parser."""

import contextlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

from nanolit import plan, train
from nanolit.config.compose import compose
from nanolit.config.explain import OTHER_NAMES, grammar_error, quoted
from nanolit.config.words import spelled_out


@pytest.fixture(autouse=True)
def full_errors(monkeypatch):
    """Take back what train tells Hydra in the environment."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    monkeypatch.delenv("HYDRA_FULL_ERROR")


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
        (["model=d12,"], "model=d12, ends with a comma; remove it: model=d12"),
    ],
)
def test_a_word_of_another_form_is_answered_with_the_right_one(words: list[str], said: str) -> None:
    assert grammar_error(words) == said


@pytest.mark.parametrize(
    ("words", "ordered"),
    [
        (["a.b=1", "--cfg", "job", "~c"], ["--cfg", "job", "a.b=1", "~c"]),
        (["+a=1", "-cd", "~/x=1", "b=2"], ["-cd", "~/x=1", "+a=1", "b=2"]),
        (["--cfg", "job", "a.b=1", "~c"], None),
        (["experiment=demo", "--info"], None),
        (["model=d4", "--config-dir", "~/c"], None),
    ],
)
def test_flags_may_stand_between_settings(words: list[str], ordered: list[str] | None) -> None:
    """None: they are together as they are, and stay so."""
    assert train.flags_first(words) == (ordered or words)


def test_words_that_hydra_reads_have_no_error() -> None:
    assert grammar_error(["model=d12", "+x=1", "~y", "model=d2,d4", "recipe.groups={a: 1}"]) is None


@pytest.mark.parametrize("command", ["plan", "train"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["foo"], "'foo' is not a setting"),
        (["--model", "d12"], "KEY=VALUE: model=d12"),
        (["model="], "there is no model=; allowed: d2, d4, "),
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
    assert flags == set(train.HYDRA_FLAGS)


@pytest.mark.parametrize(
    ("word", "spelled"),
    [
        ("data=/srv/text", ["data=local", "data.path=/srv/text"]),
        ("data=./text", ["data=local", "data.path=./text"]),
        ("data=~/text", ["data=local", "data.path='~/text'"]),
        ("data=/srv/step=3 (old)/it's", ["data=local", "data.path='/srv/step=3 (old)/it\\'s'"]),
        ("data='/srv/a b'", ["data=local", "data.path='/srv/a b'"]),
        ("data=hf:a/b:c", ["data=local", "data.path=hf:a/b:c"]),
        ("data=[/a,hf:b/c]", ["data=local", "data.path=[/a,hf:b/c]"]),
        ("data=/a,/b c", ["data=local", "data.path=/a,'/b c'"]),
        ("data=tests", ["data=local", "data.path=tests"]),
        ("data=sample", ["data=sample"]),
        ("data=sample,local", ["data=sample,local"]),
        ("data=smaple", ["data=smaple"]),
        ("data=", ["data="]),
        ("mixture=a.jsonl", ["stage.sft.mixture=a.jsonl"]),
        ("root=/home/jürgen/my runs", ["root='/home/jürgen/my runs'"]),
        ("root=the 'runs', new", ["root='the \\'runs\\', new'"]),
        ("root=null", ["root=null"]),
        ("run=größe", ["run='größe'"]),
        ("data.path=/srv", ["data.path=/srv"]),
    ],
)
def test_short_forms_are_spelled_out_so_that_hydra_reads_them(word: str, spelled: list[str]) -> None:
    """Oracle: Hydra's parser gives the path back. `tests` is a folder that is here; `sample` is an option."""
    assert spelled_out([word]) == spelled
    for one in OverridesParser.create().parse_overrides([word for word in spelled if word != "data="]):
        assert one.key_or_group


def test_a_file_of_chats_may_have_any_name(tmp_path: Path) -> None:
    file = tmp_path / "my chats (1), the 'best'.jsonl"
    file.touch()
    (word,) = spelled_out([f"mixture={file}"])
    assert OverridesParser.create().parse_override(word).value() == str(file)


@pytest.mark.parametrize("path", VALUES)
def test_any_path_of_data_reaches_the_job_as_it_was_typed(path: str) -> None:
    words = spelled_out([f"data=/srv/{path}"] if "," not in path else [f"data='/srv/{path}'"])
    assert OverridesParser.create().parse_override(words[1]).value() == f"/srv/{path}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--hlep"], "there is no --hlep here; did you mean --help\\?"),
        (["--depth=12"], "there is no --depth here; settings are written KEY=VALUE: model.depth=12"),
        (["--device-batch-size", "8"], "settings are written KEY=VALUE: micro_batch=8"),
        (["--experiment", "demo"], "settings are written KEY=VALUE: experiment=demo"),
        (["experiment", "demo"], "'experiment' is not a setting: .*, did you mean experiment=demo?"),
        (["demo"], "did you mean experiment=demo?"),
        (["dmeo"], "did you mean experiment=demo?"),
        (["/path/to/txt"], "'/path/to/txt' is not a setting: .*, did you mean data=/path/to/txt?"),
        (
            ["data=/path/to/txt", "dry_run=true"],
            "data.path=/path/to/txt does not exist; give a file or a folder",
        ),
        (["data=absent.txt"], "data.path=absent.txt does not exist; give a file or a folder"),
        (
            ["data=smple"],
            "there is no data=smple; did you mean sample? allowed: .*, a path, or hf:OWNER/NAME",
        ),
        (["mixture=absent.jsonl"], "stage.sft.mixture=absent.jsonl: there is no such file"),
        (["phase=base", "model=[1,2]"], r"model=\[1,2\]: model is chosen by name: d2, d4, "),
        (["phase=base", "model=4"], "model=4: model is chosen by name: d2, d4, "),
        (["phase=base", "model=4,d2"], "model=4,d2: model is chosen by name: d2, d4, "),
        (
            ["-experiment", "demo"],
            "there is no -experiment here; settings are written KEY=VALUE: experiment=demo",
        ),
        (["–experiment=demo"], "a typographic dash or quotes; write experiment=demo"),
        (["experiment=demo", "seed=“1”"], "a typographic dash or quotes; write seed=1"),
        (["lr=0.1"], "there is no key lr; it is called stage.base.lr_scale here"),
        (["model.n_layer=4"], "there is no key model.n_layer; it is called model.depth here"),
        (["EXPERIMENT=demo"], "there is no key EXPERIMENT; did you mean experiment?"),
        (["mixtur=a.jsonl"], "there is no key mixtur; did you mean mixture? allowed: .*, mixture, "),
        (["recipe.matrix_lr=0.1"], "no key recipe.matrix_lr; it is called recipe.groups.matrix.lr here"),
        (["model=d10"], "there is no model=d10; write model.depth=10; allowed: d2, d4, d6, d8, d12"),
        (["mixture=tests"], "stage.sft.mixture=tests is a folder; give one of its files"),
        (["--cfg"], "--cfg must be followed by job, hydra or all"),
        (["data=sample", "recipe.groups.matrix.lr=nan"], "groups.matrix.lr is nan; it must be a finite"),
        (["data=sample", "max_cost=nan"], "max_cost is nan; it must be a finite number"),
        (["data=sample", "model=d2", "recipe.groups.matrix.lr=-1"], "groups.matrix.lr=-1 is out of range"),
        (["data=sample", "phase=speedrun", "stage.sft.lr_scale=-1"], "stage.sft.lr_scale=-1 is out of range"),
        (["data=sample", "recipe.vocab_size=0"], "recipe.vocab_size is 0; it must be 1 or more"),
        (
            ["data=sample", "phase=tokenizer", "stage.tokenizer.max_chars=-1"],
            "max_chars is -1; it must be 1 or more",
        ),
        (["data=sample", "target_ratio=1e300"], r"target_ratio=1e\+300 is .* steps; give a lower one"),
        (["data=sample", "seed=range(1,1)"], "the sweep has no values"),
        (["-m", "experiment=dmeo"], "did you mean demo?"),
        (["mixture=absent"], "there is no stage.sft.mixture=absent; allowed: .*, a file of chats"),
    ],
)
def test_what_people_type_first_is_answered_with_the_right_command(
    words, said, capsys, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr(sys, "argv", ["nanolit train", *words])
    monkeypatch.setenv("NANOLIT_HOME", str(tmp_path))
    assert train.main(words) == 2
    printed = capsys.readouterr()
    assert re.search(said.replace("?", r"\?"), printed.err)
    assert (printed.err.count("\n"), printed.out) == (1, "")


def test_every_name_that_is_suggested_is_a_key() -> None:
    texts = {"run": "x", "root": "x", "recipe.gpt.window_pattern": "L", "model.heads": "8"}
    assert compose([f"{name}={texts.get(name, '512')}" for name in set(OTHER_NAMES.values()) - {"data"}])


@pytest.mark.parametrize("command", [train.main, plan.main])
def test_help_is_a_word_too(command, capsys) -> None:
    with contextlib.suppress(SystemExit):
        assert command(["help"]) == 0
    assert "model" in capsys.readouterr().out
