"""README's pictures: what dev/pictures.py makes of a terminal and of the page."""

import re
import struct
import sys
from xml.etree import ElementTree

import pytest

from dev.pictures import as_svg, at_terminal, photograph, served


def test_a_picture_of_a_terminal_has_its_text_and_loads_nothing():
    svg = as_svg("$ make demo\n\033[1mscores\033[0m: a<b & c")
    text = "".join(ElementTree.fromstring(svg).itertext()).replace("\xa0", " ")
    assert "$ make demo" in text
    assert "scores" in text
    assert "a<b & c" in text
    assert re.findall(r"url\((?!#)|href=|@import|@font-face|<script|<image", svg) == []


def test_a_command_sees_a_terminal_and_its_whole_output_comes_back(tmp_path):
    code = "import os, sys; print(sys.stdout.isatty(), os.get_terminal_size().columns); print('x' * 100_000)"
    printed = at_terminal([sys.executable, "-c", code], folder=tmp_path)
    assert printed == f"True 110\n{'x' * 100_000}\n"


def test_a_command_that_fails_makes_no_picture(tmp_path):
    with pytest.raises(ValueError, match="exit code 3: no such run"):
        at_terminal([sys.executable, "-c", "print('no such run'); exit(3)"], folder=tmp_path)


@pytest.mark.slow
def test_the_page_is_photographed_after_its_last_reply(root, browser):
    """Two questions of the taught model; the sizes of a PNG are in its first chunk."""
    with served("taught", root=root) as address:
        picture = photograph(browser, address, (390, 600), ["Hello", "Sum?"])
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", picture[16:24])
    assert width == 585
    assert 900 <= height <= 1500
