"""The chat in the terminal, as a person meets it: a process, its input and its output."""

import contextlib
import io
import os
import pty
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from nanolit.chat.__main__ import Settings, main, parse
from nanolit.chat.dialogue import Talker
from nanolit.chat.terminal import COMMANDS, Drawing, Terminal
from nanolit.inference.engine import Engine
from nanolit.machine.paths import read_json

HELLO = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi! I am tiny 😀."}]


@pytest.fixture
def terminal(taught_model, byte_tokenizer) -> Terminal:
    talker = Talker(Engine(taught_model, byte_tokenizer))
    return Terminal(talker, Drawing(temperature=0.0, top_k=None, max_tokens=40))


def converse(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
    terminal.converse()


def test_a_pipe_gets_the_replies_and_nothing_else(start_chat):
    process = start_chat("taught/sft", "temperature=0")
    output, errors = process.communicate("Hello\n/clear\nSum?\n", timeout=60)
    assert output.startswith("Hi! I am tiny 😀.\nIt is [12*3][= 36]")
    assert output.count("\n") == 2
    assert (errors, process.returncode) == ("(the conversation starts over)\n", 0)


def test_a_person_at_a_terminal_is_greeted_and_prompted(root):
    """A terminal of our own, as `script` makes it."""
    controller, terminal = pty.openpty()
    environment = {**os.environ, "NANOLIT_DEVICE": "cpu", "TERM": "dumb"}
    process = subprocess.Popen(
        [sys.executable, "-m", "nanolit.chat", "taught", "temperature=0", f"root={root}"],
        stdin=terminal, stdout=terminal, stderr=terminal, env=environment,
    )  # fmt: skip
    os.close(terminal)
    os.write(controller, b"Hello\n/quit\n")
    heard = b""
    with contextlib.suppress(OSError):  # the other end closes
        while piece := os.read(controller, 4096):
            heard += piece
    os.close(controller)
    assert process.wait(timeout=60) == 0
    text = heard.decode().replace("\r\n", "\n")
    assert "NanoLit chat with taught/sft (context 128 tokens). /help lists the commands" in text
    assert "Hi! I am tiny 😀.\n> " in text


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


def test_a_base_model_says_that_it_continues_text(rambling_model, byte_tokenizer, monkeypatch, capsys):
    talker = Talker(Engine(rambling_model, byte_tokenizer), continues_text=True)
    chat = Terminal(talker, Drawing(temperature=0.0, max_tokens=5))
    chat.greet("rambling/base")
    converse(chat, monkeypatch, "Once")
    output = capsys.readouterr()
    assert "it continues your text" in output.err
    assert output.out == "aaaaa\n"


def test_the_conversation_grows_by_what_was_said(terminal, monkeypatch, capsys):
    converse(terminal, monkeypatch, "Hello", "/quit", "Hello")
    assert terminal.messages == HELLO


def test_clear_starts_over(terminal, monkeypatch, capsys):
    converse(terminal, monkeypatch, "Hello", "/clear", "")
    assert terminal.messages == []
    assert "starts over" in capsys.readouterr().err


def test_an_unknown_command_is_explained_and_not_sent(terminal, monkeypatch, capsys):
    converse(terminal, monkeypatch, "/hepl me")
    assert terminal.messages == []
    assert capsys.readouterr().err == "(no command /hepl; /help lists them)\n"


def test_help_lists_every_command(terminal, monkeypatch, capsys):
    converse(terminal, monkeypatch, "/help")
    assert re.findall(r"^  (/\w+)", capsys.readouterr().err, re.MULTILINE) == [*COMMANDS]


def test_set_changes_how_replies_are_drawn_and_refuses_nonsense(terminal, monkeypatch, capsys):
    lines = [
        "/set max_tokens=3",
        "Hello",
        "/set top_k = 0",
        "/set top_p=2",
        "/set max_tokens=0",
        "/set max_tokens=128",
        "/set temprature=1",
        "/set seed=3",
        "/set seed=none",
        "/set temperature=none",
    ]
    converse(terminal, monkeypatch, *lines)
    output = capsys.readouterr()
    assert output.out == "Hi!\n"
    assert (terminal.drawing.max_tokens, terminal.drawing.top_k, terminal.drawing.top_p) == (3, None, 1.0)
    assert terminal.drawing.seed is None
    for complaint in (
        "top_p (2.0) must be",
        "max_tokens=0 must be",
        "max_tokens (128) must be below the model's context (128)",
        "did you mean temperature?",
        "temperature=none must be",
    ):
        assert complaint in output.err


def test_regen_answers_again_and_undo_takes_back(terminal, monkeypatch, capsys):
    converse(terminal, monkeypatch, "/undo", "Hello", "/regen")
    assert terminal.messages == HELLO
    output = capsys.readouterr()
    assert output.out == "Hi! I am tiny 😀.\n" * 2
    assert "there are no messages yet" in output.err
    converse(terminal, monkeypatch, "/undo")
    assert terminal.messages == []


def test_regen_that_fails_loses_nothing(terminal, monkeypatch, capsys):
    converse(terminal, monkeypatch, "Hello", "/set max_tokens=127", "/regen")
    assert "lower max_tokens" in capsys.readouterr().err
    assert terminal.messages == HELLO


def test_an_empty_reply_is_answered_again_and_taken_back_like_any_other(terminal, monkeypatch, tmp_path):
    """As a model may end at once, and Ctrl-C may come before the first word."""
    empty = [{"role": "user", "content": "Sum?"}, {"role": "assistant", "content": ""}]
    terminal.messages = [*HELLO, *empty]
    converse(terminal, monkeypatch, f"/save {tmp_path / 'talk.json'}", "/undo")
    assert terminal.messages == HELLO == read_json(tmp_path / "talk.json")["messages"]
    terminal.messages += empty
    converse(terminal, monkeypatch, "/regen")
    assert [message["content"] for message in terminal.messages[::2]] == ["Hello", "Sum?"]
    assert terminal.messages[-1]["content"]


def test_a_saved_conversation_goes_on_elsewhere(terminal, monkeypatch, tmp_path, capsys):
    """With its system prompt; a file that is there already is left alone."""
    path = tmp_path / "talk.json"
    converse(
        terminal,
        monkeypatch,
        "/system Be brief.",
        "/set max_tokens=9",
        f"/save {path}",  # nothing
        "Sum?",
        f"/save {path}",
        f"/save {path}",
    )
    complaints = capsys.readouterr().err
    assert "there are no messages yet" in complaints
    assert "exists; give another name" in complaints
    said = terminal.messages
    terminal.system, terminal.messages = "", []
    converse(terminal, monkeypatch, f"/load {path}")
    assert (terminal.system, terminal.messages) == ("Be brief.", said)
    path.write_text('{"messages": []}')
    converse(terminal, monkeypatch, f"/load {path}", f"/load {tmp_path / 'none'}", "/load")
    assert capsys.readouterr().err.count("\n") == 4


def test_control_characters_never_reach_the_terminal(monkeypatch, capsys):
    class Rude:
        continues_text, engine = False, SimpleNamespace(context=64)

        def reply(self, history, message, **sampling):
            reply = ["a\x1b]0;owned\x07", "\x9b2J\r", "\tb\n"]
            return Said(reply)

    converse(Terminal(Rude(), Drawing()), monkeypatch, "Hello", "/load \x1b[31mred")  # pyright: ignore
    output = capsys.readouterr()
    assert output.out == "a␛]0;owned␇␡2J␍\tb\n\n"
    assert "\x1b" not in output.err
    assert "␛[31mred" in output.err


class Said(list):
    """A reply that was heard already."""

    dropped_turns = 0
    text = property("".join)


def test_control_characters_of_file_names_never_reach_the_terminal(tmp_path, capsys):
    (tmp_path / "runs" / "\x1b[2Jrun" / "base").mkdir(parents=True)
    assert main(["nope", f"root={tmp_path}"]) == 2
    assert "␛[2Jrun" in capsys.readouterr().err


def test_a_full_context_drops_the_oldest_turn_with_a_note(terminal, monkeypatch, capsys):
    oldest, newer = (
        [{"role": "user", "content": a}, {"role": "assistant", "content": 40 * b}] for a, b in ("1x", "2y")
    )
    terminal.messages = [*oldest, *newer]
    converse(terminal, monkeypatch, "Hello")
    assert "the oldest exchange was left out" in capsys.readouterr().err
    assert terminal.messages[:2] == newer
    assert len(terminal.messages) == 4


def test_too_long_a_message_is_explained_and_the_chat_goes_on(terminal, monkeypatch, capsys):
    converse(terminal, monkeypatch, "x" * 200, "Hello")
    output = capsys.readouterr()
    assert "(the message (203 tokens)" in output.err
    assert output.out == "Hi! I am tiny 😀.\n"


def test_a_seed_gives_the_same_replies_again(taught_model, byte_tokenizer, monkeypatch, capsys):
    outputs = []
    for seed in (7, 7, 8):
        talker = Talker(Engine(taught_model, byte_tokenizer))
        chat = Terminal(talker, Drawing(temperature=1.5, top_k=None, max_tokens=30, seed=seed))
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


def test_a_message_comes_from_the_input_where_p_says_so(root, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    assert main(["taught", f"root={root}", "temperature=0", "-p", "-"]) == 0
    assert capsys.readouterr().out == "Hi! I am tiny 😀.\n"


def test_an_empty_message_is_one_line(root, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
    assert main(["taught", f"root={root}", "-p", "-"]) == 2
    assert capsys.readouterr().err.startswith("error: the message is empty; ")


def test_a_pipe_whose_reader_is_gone_ends_in_silence(start_chat):
    process = start_chat("taught", "temperature=0")
    process.stdout.close()
    _, notes = process.communicate("Hello\nHello\n", timeout=60)
    assert (process.returncode, notes) == (1, "")


def test_a_reply_longer_than_the_context_is_refused(root, capsys):
    assert main(["run=taught", "max_tokens=128", f"root={root}"]) == 2
    assert "max_tokens (128) must be below the model's context (128)" in capsys.readouterr().err


def test_settings_are_read_in_any_order():
    words = ["top_k=0", "-p", "Hi = there", "demo", "temperature=1", "seed=3", "max_tokens=9"]
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
        (["a", "b"], "unknown setting 'b'; allowed: root=…, run=…, release=…"),
        (["a", "run=b"], "run= is given twice"),
        (["run=a", "temperature=warm"], "temperature=warm must be a number, 0 or more"),
        (["run=a", "top_k=many"], "top_k=many must be a whole number"),
        (["run=a", "max_tokens=0"], "max_tokens=0 must be a whole number, 1 or more"),
        (["run=a", "web=yes"], "web=yes must be true or false"),
        (["run="], "run= is empty"),
        (["run=a", "web=true", "-p", "Hello"], "leave out either -p or web=true"),
        (["run=a", "port=8000"], "add web=true"),
        (["run=a", "devices=2"], "add web=true"),
        (["run=a", "domains=chat.example.org"], "add web=true"),
        (["run=a", "web=true", "cluster=modal_a10g", "domains=gpubox"], "is not a domain"),
        (["run=a", "web=true", "domains=http://a.org"], "is not a domain; give only its name, such as"),
        (["run=a", "web=true", "devices=0"], "devices=0 must be a whole number, 1 or more"),
        (["run=a", "web=true", "devices=2", "cluster=modal_a10g"], "devices is for a chat on this machine"),
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
