"""A real server on a free port of 127.0.0.1, in a thread of this process."""

import contextlib
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

from nanolit.chat.models import Models
from nanolit.chat.server import Server, build_app, listen
from nanolit.model.gpt import GPT
from nanolit.tokenizer.bpe import Tokenizer


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
