"""The command-line reader: words become typed settings, or one line that says what is allowed."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from nanolit.machine.arguments import read, read_some, setting
from nanolit.machine.terminal import train_command


@dataclass(frozen=True)
class Settings:
    source: Path = setting("what to read", value="DIR", positional=True)
    place: str | None = setting("where it goes", None, value="PLACE", positional=True)
    max_tokens: int = setting("longest reply", 256, least=1)
    temperature: float = setting("0: always the most likely token", 0.6, least=0)
    port: int | None = setting("the page's port", None, least=1, most=65535)
    follow: bool = setting("wait for more", False, short="-f")
    prompt: str | None = setting("one message", None, value="TEXT", short="-p")
    stage: Literal["base", "sft"] = setting("which stage", "base")
    secret: tuple[str, ...] = setting("secrets", ())
    peers: tuple[str, ...] = setting("whom to ask", ("a", "b"))
    commit: str = setting("a name", "")


@dataclass(frozen=True)
class Runs:
    runs: tuple[str, ...] = setting("which runs", (), positional=True)


ABOUT = "Read something.\n\n    nanolit read DIR\n"


def parsed(*words: str) -> Settings:
    return read(Settings, words, about=ABOUT)


def test_defaults_hold_where_nothing_is_typed():
    assert parsed("here") == Settings(source=Path("here"))


def test_words_become_the_types_of_the_fields():
    typed = parsed("here", "max_tokens=9", "temperature=1", "port=80", "follow=True", "stage=sft", "there")
    expected = Settings(
        source=Path("here"),
        place="there",
        max_tokens=9,
        temperature=1.0,
        port=80,
        follow=True,
        stage="sft",
    )
    assert typed == expected
    assert type(typed.temperature) is float


@pytest.mark.parametrize(
    "words", [["max_tokens=9"], ["--max-tokens", "9"], ["--max-tokens=9"], ["--max_tokens", "9"]]
)
def test_a_setting_may_be_typed_as_a_flag(words):
    assert parsed("here", *words).max_tokens == 9


def test_a_short_flag_takes_the_next_word_whatever_it_holds():
    assert parsed("here", "-f", "-p", "Hi = there").prompt == "Hi = there"
    assert parsed("-p", "--help", "here").prompt == "--help"
    assert parsed("here", "-f").follow is True


def test_a_path_with_an_equals_sign_is_a_place():
    assert parsed("./runs/lr=3").source == Path("./runs/lr=3")


def test_a_home_folder_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert parsed("~/texts").source == Path("/home/ada/texts")


def test_a_positional_list_takes_every_bare_word():
    assert read(Runs, ["a", "b,c", "runs=d"], about=None).runs == ("a", "b", "c", "d")


def test_a_list_is_split_at_commas_and_collected():
    assert parsed("here", "secret=a, b", "--secret", "c", "--secret", "a").secret == ("a", "b", "c")


def test_only_a_setting_whose_default_is_empty_may_be_empty():
    assert parsed("here", "commit=").commit == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "source is missing; give DIR: what to read"),
        (["here", "temprature=1"], "unknown setting 'temprature=1'; did you mean temperature=…?"),
        (["here", "--max-tokns", "3"], "unknown setting '--max-tokns'; did you mean max_tokens=…?"),
        (["here", "there", "zzz"], "unknown setting 'zzz'; allowed: source=…, place=…"),
        (["here", "max_tokens=many"], "max_tokens=many must be a whole number, 1 or more"),
        (["here", "max_tokens=0"], "max_tokens=0 must be a whole number, 1 or more"),
        (["here", "max_tokens=1.5"], "max_tokens=1.5 must be a whole number"),
        (["here", "temperature=nan"], "temperature=nan must be a number, 0 or more"),
        (["here", "temperature=inf"], "temperature=inf must be a number, 0 or more"),
        (["here", f"max_tokens={'9' * 400}"], "must be a whole number, 1 or more"),
        (["here", "temperature=-1"], "temperature=-1 must be a number, 0 or more"),
        (["here", "port=99999"], "port=99999 must be a whole number from 1 to 65535"),
        (["here", "follow=yes"], "follow=yes must be true or false"),
        (["here", "stage=bse"], "stage=bse must be one of base, sft"),
        (["here", "prompt="], "prompt= is empty; write prompt=VALUE or leave it out"),
        (["here", "-p"], "-p needs a value: -p TEXT"),
        (["here", "port=1", "port=2"], "port= is given twice ('1' and '2')"),
        (["here", "max_tokens=__import__('os')"], "must be a whole number"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_remedy(words, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parsed(*words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@dataclass(frozen=True)
class Own:
    commit: str = setting("a name", "")
    steps: int = setting("how many", 3, least=1)


def test_other_words_are_left_for_hydra_and_the_last_value_counts():
    words = ["model=d12", "steps=4", "+data.x=[1, 2]", "~logger", "steps=5"]
    assert read_some(Own, words, about=ABOUT) == (Own(steps=5), ["model=d12", "+data.x=[1, 2]", "~logger"])


def test_help_has_a_line_for_every_setting(capsys):
    with pytest.raises(SystemExit) as exit:
        parsed("--help")
    assert exit.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Read something."
    assert "  DIR             what to read (required)" in lines
    assert "  max_tokens=N    longest reply (default: 256)" in lines
    assert "  follow=true     -f: wait for more" in lines
    assert "  stage=base|sft  which stage (default: base)" in lines
    assert "  peers=PEERS     whom to ask (default: a,b)" in lines


def test_a_printed_command_gives_the_same_words_when_it_is_pasted():
    """Of `cases/04`; oracle: the shell, then Hydra's parser."""
    words = ["phase=base", "data.path='/my runs/a=b'", "root='$HOME/x'", 'recipe.groups={a: "1"}', "run=it's"]
    pasted = subprocess.run(
        ["sh", "-c", train_command(words).replace("python -m nanolit.train", "printf '%s\\n'")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert pasted.stdout.splitlines() == words
    assert OverridesParser.create().parse_override(words[1]).value() == "/my runs/a=b"
