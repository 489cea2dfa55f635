"""Lines fit a terminal: words stay whole, a value stays in its column, what is copied stays in one line."""

import errno
import textwrap

import pytest

from nanolit.machine.terminal import fitted, one_line, unbroken


def test_what_follows_stands_below_the_value():
    text = "demo · base\n  model              depth 4, width 128, heads 4 × 32, context 512"
    assert fitted(text, 40).split("\n") == [
        "demo · base",
        "  model              depth 4, width 128,",
        "                     heads 4 × 32,",
        "                     context 512",
    ]


def test_a_sentence_is_indented_by_two_more():
    assert fitted("base: stories: about 1,400,000 tokens", 20) == "base: stories: about\n  1,400,000 tokens"
    assert (
        fitted("  step 40: validation 0.8 bits per byte", 24)
        == "  step 40: validation\n    0.8 bits per byte"
    )


def test_bold_names_count_as_they_look():
    assert fitted("\033[1mdemo  \033[0mOnce upon a time", 22) == "\033[1mdemo  \033[0mOnce upon a time"
    story = "\033[1mdemo  \033[0mOnce upon a time there was a pig"
    assert fitted(story, 19) == "\033[1mdemo  \033[0mOnce upon a\n      time there\n      was a pig"


def test_tables_commands_and_long_paths_stay_whole():
    for line in (
        "| a | b c d e f |",
        "go on with: python -m nanolit.train model=d4",
        "release in /a/long/path",
    ):
        assert max(fitted(line, 11).split("\n"), key=len) in (line, "  /a/long/path")


@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_stream_is_broken_between_words_and_loses_none(size):
    """Oracle: textwrap, on the whole text."""
    text = "Once upon a time there was a little fox who lived high up in the mountains.\n\nThe end of it."
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    wrapped = "\n".join(textwrap.fill(line, 24) for line in text.split("\n"))
    assert "".join(unbroken(pieces, 24)) == wrapped


def test_a_stream_does_not_wait_for_the_end_of_what_has_no_blanks():
    pieces = unbroken(iter(["a," * 30, "b"]), 24)
    assert len(next(pieces)) < 30


def test_an_error_that_quotes_a_file_steers_no_terminal():
    """Files may come from strangers; a title of the window is set between these two characters."""
    assert one_line(ValueError("identity was \x1b]0;title\x07,\n is a")) == "identity was ␛]0;title␇, is a"
    missing = FileNotFoundError(errno.EACCES, "denied", "/a/\x1b[2Jb")
    assert one_line(missing).startswith("/a/␛[2Jb: Permission denied; make it")
