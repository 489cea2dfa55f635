"""The API as its users meet it: `python -m benchmarks serve release=FOLDER`, or with the settings of a model.

Starts `nanolit chat web=true` on this machine and asks it over HTTP: seconds from the command to the first
token, then how fast one reply is streamed, and `streams` at once. Without a release one is made with random
weights and a made-up tokenizer, of the model that the settings of nanolit train describe.
"""

import http.client
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.inference import random_model
from benchmarks.train import device_name
from nanolit.machine.arguments import read_some, setting
from nanolit.machine.device import pick_device
from nanolit.model.release import save_release

PROMPT = "Tell me a story. " * 10
PATIENCE = 300  # seconds for the server to start


@dataclass(frozen=True, kw_only=True)
class Settings(results.Kept):
    """Which model, and how much is asked of it."""

    release: Path | None = setting("a release folder (default: random weights)", None)
    streams: int = setting("replies at once", 32, least=1)
    new: int = setting("tokens of a reply, at most", 256, least=2)
    repeats: int = setting("times that each is asked, of which the best counts", 3, least=1)


@dataclass(frozen=True)
class Reply:
    """A streamed reply: seconds to its first and its last piece, and its tokens."""

    first: float
    last: float
    tokens: int


def main(arguments: list[str]) -> int:
    """Serve, ask, print a table and a line of JSON, keep both."""
    settings, overrides = read_some(Settings, arguments, about=__doc__)
    if settings.release and overrides:
        raise ValueError(f"release= is a model already; leave out {' '.join(overrides)}")
    with tempfile.TemporaryDirectory() as folder:
        release = settings.release or made(Path(folder), overrides)
        begun = time.perf_counter()
        with served(release) as port:
            started = time.perf_counter() - begun
            asked = time.perf_counter()
            first = asked - begun + ask(port, 2).first
            alone = [ask(port, settings.new) for _ in range(settings.repeats)]
            together = [of_many(port, settings) for _ in range(settings.repeats)]
    device = device_name(pick_device())
    entry = {
        "command": results.command_line("serve", arguments),
        "device": device,
        "seconds_to_answering": started,
        "seconds_to_first_token": first,
        "first_ms": 1000 * min(reply.first for reply in alone),
        "tokens_per_second": max((r.tokens - 1) / (r.last - r.first) for r in alone),
        "streams": settings.streams,
        **max(together, key=lambda one: one["streams_tokens_per_second"]),
    }
    results.print_entry(entry, results.save(entry, settings, device=device))
    return 0


def made(folder: Path, overrides: list[str]) -> Path:
    """Return a release in `folder` with random weights."""
    model, tokenizer = random_model(overrides)
    tokenizer.save(folder / "tokenizer")
    about = {"run": "random", "stage": "sft", "step": 0, "tokenizer_hash": tokenizer.hash}
    save_release(
        folder / "release",
        model,
        tokenizer_folder=folder / "tokenizer",
        tokenizer_hash=tokenizer.hash,
        meta=about,
    )
    return folder / "release"


@contextmanager
def served(release: Path) -> Iterator[int]:
    """Yield the port of a server that answers; ValueError with what it printed if it ends before."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "nanolit.chat", f"release={release}", "web=true", f"port={port}"]
    with tempfile.TemporaryFile("w+") as printed:
        server = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT)
        try:
            begun = time.perf_counter()
            while not healthy(port):
                if server.poll() is not None or time.perf_counter() - begun > PATIENCE:
                    printed.seek(0)
                    raise ValueError(f"the server did not start: {printed.read()[-1000:]}")
                time.sleep(0.02)
            yield port
        finally:
            server.terminate()
            server.wait(30)


def healthy(port: int) -> bool:
    try:
        return get(port, "/health").status == 200
    except OSError:
        return False


def get(port: int, path: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    return connection.getresponse()


def ask(port: int, new: int) -> Reply:
    """Stream one reply that has text: random weights end some at once."""
    body = {
        "model": json.loads(get(port, "/v1/models").read())["data"][0]["id"],
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": new,
        "temperature": 1.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    for _ in range(10):
        begun, first, last, tokens = time.perf_counter(), None, 0.0, 0
        for piece in pieces(port, json.dumps(body)):
            if any(choice["delta"].get("content") for choice in piece["choices"]):
                last = time.perf_counter() - begun
                first = first or last
            tokens = (piece.get("usage") or {}).get("completion_tokens", tokens)
        if first is not None:
            return Reply(first, last, tokens)
    raise ValueError("ten replies had no text")


def pieces(port: int, body: str) -> Iterator[dict[str, Any]]:
    """Yield a streamed answer's pieces as they come."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise ValueError(f"the server answered {response.status}: {response.read()[:500]!r}")
    for line in response:
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])


def of_many(port: int, settings: Settings) -> dict[str, float]:
    """Return the speed of `streams` replies at once, and the median time to a reply's first token."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(settings.streams) as pool:
        replies = [*pool.map(lambda _: ask(port, settings.new), range(settings.streams))]
    seconds = time.perf_counter() - begun
    return {
        "streams_tokens_per_second": sum(reply.tokens for reply in replies) / seconds,
        "streams_first_ms": 1000 * statistics.median(reply.first for reply in replies),
    }
