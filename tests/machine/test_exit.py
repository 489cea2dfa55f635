"""How commands end: the exit code, one line for what the user can fix, nothing when `head` has enough."""

import io
import signal
import subprocess
import sys

import pytest

from nanolit.machine.exit import command


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_the_code_is_what_the_command_returns(returned, code):
    assert command(lambda _: returned)([]) == code


def test_the_words_are_those_typed_unless_some_are_given(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "argv", ["nanolit", "typed"])
    main = command(lambda words: seen.append(list(words)))
    main()
    main(["given"])
    assert seen == [["typed"], ["given"]]


@pytest.mark.parametrize("error", [ValueError("depth is 0"), OSError("depth is 0")])
def test_what_the_user_can_fix_is_one_line_and_code_2(error, capsys):
    def main(_):
        raise error

    assert command(main)([]) == 2
    assert capsys.readouterr().err == "error: depth is 0\n"


def test_an_error_of_several_lines_is_told_in_one_without_what_steers_a_terminal(capsys):
    def main(_):
        raise ValueError("no key\n  a\x1b]0;title\x07")

    assert command(main)([]) == 2
    assert capsys.readouterr().err == "error: no key a␛]0;title␇\n"


def test_the_traceback_is_there_for_those_who_ask(monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def main(_):
        raise ValueError("depth is 0")

    with pytest.raises(ValueError, match="depth is 0"):
        command(main)([])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("can't start new thread"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
)
def test_too_little_memory_is_one_line(error, capsys):
    def main(_):
        raise error

    assert command(main)([]) == 2
    assert capsys.readouterr().err.startswith("error: out of memory; close other programs")


@pytest.mark.parametrize("error", [KeyError("ours"), RuntimeError("ours"), ImportError("ours")])
def test_a_fault_of_ours_keeps_its_traceback(error):
    def main(_):
        raise error

    with pytest.raises(type(error), match="ours"):
        command(main)([])


ENDLESS = """
import sys, time
from nanolit.machine.exit import command
@command
def main(words):
    while True:
        print("a line", flush=words == ["slowly"])
        if words == ["slowly"]:
            time.sleep(0.05)
sys.exit(main())
"""


def test_a_reader_that_leaves_ends_the_command_without_a_word():
    command = [sys.executable, "-c", ENDLESS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "a line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("closed", "out", "error"),
    [
        ("<&-", "out\n", " False\n"),
        (">&-", "", " False\n"),
        ("2>&-", "out\n", ""),
        ("<&- >&- 2>&-", "", ""),
    ],
)
def test_streams_that_the_shell_closed_lead_nowhere(closed, out, error):
    code = (
        "import sys; from nanolit.machine.exit import command\n"
        "def main(_): print(sys.stdin.read(), sys.stdin.isatty(), file=sys.stderr); print('out')\n"
        "sys.exit(command(main)([]))"
    )
    words = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout, done.stderr) == (0, out, error)


def test_ctrl_c_is_one_word_and_code_130():
    command = [sys.executable, "-c", ENDLESS, "slowly"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "a line\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "\ninterrupted\n")


def test_an_error_of_the_system_names_the_file_and_says_what_to_do(tmp_path, capsys):
    (tmp_path / "a").write_text("")
    assert command(lambda _: (tmp_path / "a" / "b").mkdir())([]) == 2
    told = f"error: {tmp_path}/a/b: Not a directory; something else has this name: move it away\n"
    assert capsys.readouterr().err == told


def test_what_an_encoding_lacks_is_printed_all_the_same(monkeypatch):
    """A run would else end at its first arrow, where the locale is not UTF-8, or at a broken file name."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert command(lambda _: print("a → b \udcff"))([]) == 0
    assert out.buffer.getvalue() == b"a \\u2192 b \\udcff\n"


def test_ctrl_c_while_the_process_ends_changes_nothing():
    """What libraries tidy up at the end was registered after the command began, and comes after its guard."""
    code = (
        "import atexit, os, signal, sys; from nanolit.machine.exit import command\n"
        "def main(_): atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
        "sys.exit(command(main)([]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
