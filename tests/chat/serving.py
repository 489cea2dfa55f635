"""A real server on a free port of 127.0.0.1, in a thread of this process or in one of its own."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil

from nanolit.chat.models import Models
from nanolit.chat.server import Server, build_app, listen
from nanolit.model.gpt import GPT
from nanolit.tokenizer.bpe import Tokenizer

SERVER = """
import sys, nanolit
from nanolit.chat.models import Models
from nanolit.chat.server import build_app, listen, serve
name, folder, devices, places = sys.argv[1:]
listening = listen("127.0.0.1", None)
models = Models([name], lambda _: nanolit.load(folder), devices=int(devices), places=int(places))
serve(build_app(models, page=False), models, listening, host="127.0.0.1")
"""


def models_of(tokenizer: Tokenizer, named: dict[str, GPT], **settings) -> Models:
    """Models by name; the part of a name after the slash is the stage."""

    def load(name: str) -> SimpleNamespace:
        return SimpleNamespace(model=named[name], tokenizer=tokenizer, meta={"stage": name.partition("/")[2]})

    return Models([*named], load, **settings)


@contextlib.contextmanager
def served(models: Models, *, port: int | None = None, **settings) -> Iterator[str]:
    """Serve; yields the address."""
    listening = listen("127.0.0.1", port)
    app = build_app(models, **{"page": False} | settings)
    server = Server(app, models)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
    assert not thread.is_alive()


@contextlib.contextmanager
def served_apart(
    name: str, release: Path, *, devices: int, places: int
) -> Iterator[tuple[str, psutil.Process]]:
    """Serve a release's API in a process of its own; yields the address and the process."""
    command = [sys.executable, "-c", SERVER, name, str(release), str(devices), str(places)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield process.stdout.readline().split()[1], psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
    assert process.returncode == 0
