"""`dry_run=true` on every cluster: what a person sees at a terminal, and that nothing is called."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nanolit.config.compose import options

LINES, COLUMNS = 45, 120
ASKED = [
    ["phase=base", "model=d26"],
    ["phase=speedrun", "model=d20"],
    ["phase=base", "model=d12,d20", "seed=1,2"],
    ["phase=speedrun", "model=d12,d20", "seed=1,2"],
]
# Each command in turn, in one process that ends at the first connection anywhere. Hydra reads sys.argv
SCRIPT = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise SystemExit(f"called {arguments}")
sys.addaudithook(refuse)
from nanolit.train import main
for words in sys.argv.pop().split("|"):
    code = main(words.split())
    print(f"═══{code}")
"""


def at_a_terminal(script: str, words: str, folder: Path) -> str:
    """What a script prints where its output is a terminal of LINES by COLUMNS."""
    master, slave = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "LINES": str(LINES), "NO_COLOR": "1"}
    environment |= {"TERM": "xterm", "NANOLIT_HOME": str(folder)}
    command = [sys.executable, "-c", script, words]
    with subprocess.Popen(command, stdout=slave, stderr=slave, env=environment, cwd=folder):
        os.close(slave)
        output = b""
        while True:
            try:
                piece = os.read(master, 1 << 16)
            except OSError:  # Linux's way to say that the other end is closed
                break
            if not piece:
                break
            output += piece
    os.close(master)
    return output.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("cluster", options("cluster"))
def test_a_dry_run_fits_on_a_screen_and_calls_nobody(cluster, tmp_path):
    commands = [[*words, f"cluster={cluster}", "dry_run=true"] for words in ASKED]
    output = at_a_terminal(SCRIPT, "|".join(map(" ".join, commands)), tmp_path)
    *shown, rest = re.split("═══(.*)\n", output)
    assert rest == "", rest
    for words, text, code in zip(commands, shown[::2], shown[1::2], strict=True):
        lines = text.splitlines()
        assert code == "0", text
        assert len(lines) <= LINES, (words, len(lines))
        assert max(map(len, lines)) <= COLUMNS, max(lines, key=len)
        assert ("$" in text) == cluster.startswith("modal"), text
    assert list(tmp_path.glob("runs/*")) == []
