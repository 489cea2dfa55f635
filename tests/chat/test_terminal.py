"""The chat in the terminal, as a person meets it: a process, its input and its output."""

import io
import re
import signal
import sys

import pytest

from nanolit.chat.__main__ import Settings, main, parse
from nanolit.chat.dialogue import Talker
from nanolit.chat.terminal import Terminal
from nanolit.inference.engine import Engine


@pytest.fixture
def terminal(taught_model, byte_tokenizer) -> Terminal:
    talker = Talker(Engine(taught_model, byte_tokenizer))
    return Terminal(talker, temperature=0.0, top_k=None, max_tokens=40, seed=None)


def converse(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
    terminal.converse()


def test_a_conversation_in_a_pipe_ends_with_its_input(start_chat):
    process = start_chat("run=taught/sft", "temperature=0")
    output, errors = process.communicate("Hello\n/clear\nSum?\n", timeout=60)
    assert "Hi! I am tiny 😀." in output
    assert "It is [12*3][= 36]" in output
    assert "taught/sft (context 128 tokens)" in output
    assert (errors, process.returncode) == ("", 0)


def test_ctrl_c_stops_the_reply_and_not_the_chat(start_chat):
    process = start_chat("run=rambling", "max_tokens=16000", "temperature=0")
    process.stdin.write("Once\n")
    process.stdin.flush()
    heard = ""
    while "aaaa" not in heard:
        heard += process.stdout.read(1)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate("/quit\n", timeout=60)
    assert "(stopped)" in output
    assert (heard + output).count("a") < 15_000
    assert (errors, process.returncode) == ("", 0)


def test_a_base_model_says_that_it_continues_text(root, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Once\n"))
    assert main(["run=rambling", "max_tokens=5", "temperature=0", f"root={root}"]) == 0
    output = capsys.readouterr().out
    assert "it continues your text" in output
    assert "> aaaaa\n" in output


def test_the_history_grows_by_what_was_said(terminal, monkeypatch, capsys):
    converse(terminal, monkeypatch, "Hello", "/quit", "Hello")
    assert terminal.turns == [terminal.talker.turn("Hello", "Hi! I am tiny 😀.")]


def test_clear_starts_over(terminal, monkeypatch, capsys):
    converse(terminal, monkeypatch, "Hello", "/clear", "")
    assert terminal.turns == []
    assert "starts over" in capsys.readouterr().out


def test_an_unknown_command_is_explained_and_not_sent(terminal, monkeypatch, capsys):
    converse(terminal, monkeypatch, "/help me")
    assert terminal.turns == []
    assert "(no command /help; /clear starts over, /quit leaves" in capsys.readouterr().out


def test_a_full_context_drops_the_oldest_turn_with_a_note(terminal, monkeypatch, capsys):
    oldest, newer = terminal.talker.turn("one", "x" * 40), terminal.talker.turn("two", "y" * 40)
    terminal.turns = [oldest, newer]
    converse(terminal, monkeypatch, "Hello")
    assert "the oldest 1 turn(s) were dropped" in capsys.readouterr().out
    assert terminal.turns[0] == newer
    assert len(terminal.turns) == 2


def test_too_long_a_message_is_explained_and_the_chat_goes_on(terminal, monkeypatch, capsys):
    converse(terminal, monkeypatch, "x" * 200, "Hello")
    output = capsys.readouterr().out
    assert "(the message (203 tokens)" in output
    assert "Hi! I am tiny 😀." in output


def test_a_seed_gives_the_same_replies_again(taught_model, byte_tokenizer, monkeypatch, capsys):
    outputs = []
    for seed in (7, 7, 8):
        talker = Talker(Engine(taught_model, byte_tokenizer))
        chat = Terminal(talker, temperature=1.5, top_k=None, max_tokens=30, seed=seed)
        converse(chat, monkeypatch, "Tell me", "And then")
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


def test_a_wrong_run_is_one_line_that_lists_the_runs(root, capsys):
    assert main(["run=nope", f"root={root}"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "nope" in captured.err
    assert "rambling, taught" in captured.err


def test_a_release_folder_serves_as_well_as_a_run(root, capsys):
    folder = root / "runs" / "taught" / "sft" / "release"
    assert main([f"release={folder}", "temperature=0", "--prompt", "Hello"]) == 0
    assert capsys.readouterr().out == "Hi! I am tiny 😀.\n"


def test_a_reply_longer_than_the_context_is_refused(root, capsys):
    assert main(["run=taught", "max_tokens=128", f"root={root}"]) == 2
    assert "max_tokens (128) must be below the model's context (128)" in capsys.readouterr().err


def test_settings_are_read_in_any_order():
    words = ["top_k=0", "-p", "Hi = there", "run=demo", "temperature=1", "seed=3", "max_tokens=9"]
    assert parse(words) == Settings(
        run="demo", top_k=0, prompt="Hi = there", temperature=1.0, seed=3, max_tokens=9
    )
    assert parse(["web=True", "port=80", "release=there"]) == Settings(release="there", web=True, port=80)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either run=RUN or release=FOLDER"),
        (["run=a", "release=b"], "give either run=RUN or release=FOLDER"),
        (["run=a", "temprature=1"], "did you mean temperature=…?"),
        (["demo"], "allowed: root=…, run=…, release=…"),
        (["run=a", "temperature=warm"], "temperature=warm must be a number, 0 or more"),
        (["run=a", "top_k=many"], "top_k=many must be a whole number"),
        (["run=a", "max_tokens=0"], "max_tokens=0 must be a whole number, 1 or more"),
        (["run=a", "web=yes"], "web=yes must be true or false"),
        (["run="], "run= is empty"),
        (["run=a", "web=true", "-p", "Hello"], "leave out either it or web=true"),
        (["run=a", "port=8000"], "add web=true"),
        (["run=a", "temperature=-1"], "temperature=-1 must be a number, 0 or more"),
        (["run=a", "web=true", "port=99999"], "port=99999 must be a whole number from 1 to 65535"),
        (["run=a", "top_k=-5"], "top_k=-5 must be a whole number, 0 or more"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_is_allowed(words, message, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)
