"""Measure the chat API: process start to first token, then its streams compared with the bare engine.

python -m benchmarks serving model=d26 streams=1,8,40     on this machine's device, without gradio

The model has random weights and is served from a release in a temporary folder. All streams of a row start at
once; each sends `prompt` tokens and asks for `new` more. The engine then gets the same requests without a
server, and must generate as many tokens. Also takes the settings of nanolit train.
"""

import asyncio
import json
import random
import signal
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import httpx
import torch

import nanolit
from benchmarks import results
from benchmarks.inference import random_model, run
from benchmarks.train import device_name
from nanolit.chat.models import Models
from nanolit.chat.server import build_app, listen, serve
from nanolit.inference.engine import Engine
from nanolit.inference.request import Request
from nanolit.machine.arguments import names, read_some, setting
from nanolit.machine.device import pick_device
from nanolit.model.release import save_release
from nanolit.tokenizer.bpe import SPECIAL_TOKENS

HOST, NAME = "127.0.0.1", "random"
SAMPLING = {"temperature": 1.0, "top_k": 50}
SECONDS = 600.0  # for an answer
SERVER = "import sys; from benchmarks.serving import serve_release; serve_release(sys.argv[1])"


@dataclass(frozen=True, kw_only=True)
class Settings(results.Kept):
    """Settings of the serving benchmark."""

    streams: str = setting("numbers of concurrent streams, a row for each", "1,8,40")
    prompt: int = setting("tokens per prompt", 128, least=1)
    new: int = setting("tokens per reply", 256, least=2)


def main(arguments: list[str]) -> int:
    """Measure, print a table and a line of JSON, keep both."""
    settings, overrides = read_some(Settings, arguments, about=__doc__)
    lines = [[body(settings, seed) for seed in range(int(count))] for count in names(settings.streams)]
    with tempfile.TemporaryDirectory() as folder:
        release = write_release(Path(folder), overrides)
        entry: dict[str, Any] = {
            "command": results.command_line("serving", arguments),
            "device": device_name(pick_device()),
            "torch": torch.__version__,
            "release_bytes": (release / "model.safetensors").stat().st_size,
        }
        with served(release) as (address, seconds):
            entry["ready_seconds"], begun = seconds, time.perf_counter()
            print(f"  the server was listening after {seconds:.1f} s", flush=True)
            entry["first_reply_seconds"] = asyncio.run(ask(address, [body(settings, 0)]))["first_seconds"]
            print(f"  the first token came {entry['first_reply_seconds']:.1f} s later", flush=True)
            while httpx.get(f"{address}/stats", timeout=SECONDS).json()[NAME]["rehearsals_left"]:
                time.sleep(0.1)
            entry["rehearsed_seconds"] = time.perf_counter() - begun
            print(
                f"  its rehearsals ended {entry['rehearsed_seconds']:.1f} s after it was listening",
                flush=True,
            )
            asyncio.run(ask(address, max(lines, key=len)))
            entry["api"] = [measure_api(address, bodies) for bodies in lines]
        engine = nanolit.load(release).engine
    entry["engine"] = []
    for bodies, api in zip(lines, entry["api"], strict=True):
        for _ in range(2):  # the first captures graphs
            alone = run(engine, [request_of(engine, asked) for asked in bodies])
        entry["engine"].append(alone)
        assert api["tokens"] == alone["tokens"], "the API's replies are not as long as the engine's"
        decoding, whole = (api[f"{x}_per_second"] / alone[f"{x}_per_second"] for x in ("decoded", "tokens"))
        print(
            f"  {len(bodies)} streams: {decoding:.0%} of the engine's tokens/s, {whole:.0%} including prefill"
        )
    results.print_entry(entry, results.save(entry, settings, device=entry["device"]))
    return 0


def measure_api(address: str, bodies: list[dict[str, Any]]) -> dict[str, float]:
    """Stream all replies at once, and print the line as soon as it is known."""
    api = asyncio.run(ask(address, bodies))
    print(
        f"  {len(bodies)} streams: all first tokens after {1000 * api['first_seconds']:,.0f} ms, "
        f"{api['tokens_per_second']:,.0f} tokens/s",
        flush=True,
    )
    return api


def body(settings: Settings, seed: int) -> dict[str, Any]:
    """Return what a stream asks for. Every letter is a token of `random_model`'s."""
    letters = random.Random(seed).choices(string.ascii_letters, k=settings.prompt - 1)  # <|bos|> is one more
    limits = {"max_tokens": settings.new, "stream": True, "stream_options": {"include_usage": True}}
    return {"prompt": "".join(letters), "seed": seed, **limits, **SAMPLING}


def request_of(engine: Engine, asked: dict[str, Any]) -> Request:
    """Return the same request for the engine."""
    prompt_ids = [engine.tokenizer.bos_id, *engine.tokenizer.encode(asked["prompt"])]
    return Request(prompt_ids=prompt_ids, max_tokens=asked["max_tokens"], seed=asked["seed"], **SAMPLING)


def write_release(folder: Path, overrides: list[str]) -> Path:
    """Write the job's model with random weights; nothing of it stays in memory."""
    model, tokenizer = random_model(overrides)
    with torch.no_grad():  # no reply ends early: these logits are 0, never among the largest
        model.unembedding.weight[model.vocab_size - len(SPECIAL_TOKENS) : model.vocab_size] = 0
    tokenizer.save(folder / "tokenizer")
    about = {"run": NAME, "stage": "base", "step": 0}
    release, of_tokenizer = folder / "release", {"tokenizer_hash": tokenizer.hash}
    save_release(release, model, tokenizer_folder=folder / "tokenizer", **of_tokenizer, meta=about)
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return release


def serve_release(folder: str) -> None:
    """Serve the API until Ctrl-C: what the server's process runs."""
    listening, models = listen(HOST, None), Models([NAME], lambda _: nanolit.load(folder))
    models.get()
    serve(build_app(models, page=False), models, listening, host=HOST)


@contextmanager
def served(release: Path) -> Iterator[tuple[str, float]]:
    """Serve in a process of its own; yields the address, and the seconds until it listened."""
    begun = time.perf_counter()
    command = [sys.executable, "-c", SERVER, str(release)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            line = process.stdout.readline()
            if HOST not in line:
                raise ValueError("the server did not start; see above")
            yield line.split()[1], time.perf_counter() - begun
        finally:
            process.send_signal(signal.SIGINT)


async def ask(address: str, bodies: list[dict[str, Any]]) -> dict[str, float]:
    """Stream all replies at once; the seconds until each has text, and the speed, including prefill."""
    begun = time.perf_counter()
    async with httpx.AsyncClient(base_url=address, timeout=SECONDS, limits=httpx.Limits()) as client:
        replies = await asyncio.gather(*[read(client, asked) for asked in bodies])
    seconds, tokens = time.perf_counter() - begun, sum(count for *_, count in replies)
    return {
        "first_seconds": max(first for first, *_ in replies) - begun,
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        # They begin and end at different times
        "decoded_per_second": sum(count / (end - first or inf) for first, end, count, _ in replies),
    }


async def read(client: httpx.AsyncClient, asked: dict[str, Any]) -> tuple[float, float, float, int]:
    """Return when a reply's first and last text came, about how many tokens between them, and in all."""
    times, lengths, tokens = list[float](), list[int](), 0
    async with client.stream("POST", "/v1/completions", json=asked) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                content = json.loads(line[6:])
                if usage := content.get("usage"):
                    tokens = usage["completion_tokens"]
                elif text := content["choices"][0]["text"]:
                    times.append(time.perf_counter())
                    lengths.append(len(text))
    later = tokens * (1 - lengths[0] / sum(lengths))  # the first piece may have several tokens
    return times[0], times[-1], later, tokens
