"""Many people at once on one server: right replies, fair progress, flat memory, free places."""

import asyncio
import json
import random
import time
from collections import Counter

import httpx
import psutil
import pytest

from nanolit.chat.service import PLACES
from tests.chat.serving import served_apart

QUESTIONS = ("Hello", "Sum?", "Tell me more", "Why?", "a b c d")


def question(user: int, turn: int) -> dict:
    """A request whose reply is the same every time, ragged in prompt and length."""
    draw = random.Random(1000 * user + turn)
    messages = []
    for _ in range(draw.randrange(2)):
        messages += [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}]
    messages.append({"role": "user", "content": f"{draw.choice(QUESTIONS)} {user}"})
    sampling = {"temperature": 1.0, "top_k": 50, "seed": draw.randrange(2**40)}
    return {"messages": messages, "max_tokens": draw.randrange(20, 60), "stream": True, **sampling}


async def ask(client: httpx.AsyncClient, request: dict) -> str:
    """The reply's text, put together from its pieces."""
    text = ""
    async with client.stream("POST", "/v1/chat/completions", json=request) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
    return text


async def talk(address: str, server: psutil.Process, seconds: float) -> tuple[int, Counter, list[float]]:
    """PLACES users for a while: replies that differ from the same asked alone, replies, the server's MiB."""
    async with httpx.AsyncClient(base_url=address, timeout=120) as client:
        alone = {
            (user, turn): await ask(client, question(user, turn)) for user in range(PLACES) for turn in (0, 1)
        }
        wrong, replies, memory, end = 0, Counter(), [], time.monotonic() + seconds

        async def chat(user: int) -> None:
            nonlocal wrong
            for turn in range(10_000):
                wrong += await ask(client, question(user, turn % 2)) != alone[user, turn % 2]
                replies[user] += 1
                memory.append(server.memory_info().rss / 2**20)
                if time.monotonic() > end:
                    return

        await asyncio.gather(*map(chat, range(PLACES)))
        return wrong, replies, memory


@pytest.mark.parametrize(
    ("devices", "seconds"),
    [
        pytest.param(2, 1, id="short"),
        pytest.param(1, 20, marks=pytest.mark.slow),
        pytest.param(2, 20, marks=pytest.mark.slow),
    ],
)
def test_each_of_forty_replies_is_what_it_would_be_alone(root, devices, seconds, monkeypatch):
    """Oracle: the same server, asked one at a time. Everybody gets on, and memory stays."""
    monkeypatch.setenv("NANOLIT_DEVICE", "cpu")
    release = root / "runs" / "taught" / "sft" / "release"
    with served_apart("taught/sft", release, devices=devices, places=PLACES // devices) as (address, server):
        wrong, replies, memory = asyncio.run(talk(address, server, seconds))
        assert wrong == 0
        assert len(replies) == PLACES
        # Replies differ in length, so their numbers differ by four even where all wait alike
        assert 4 * min(replies.values()) + 2 >= sum(replies.values()) / PLACES
        # What the allocator keeps: 0 to 20 MiB more
        assert memory[-1] - memory[len(memory) // 2] < 32
        stats = httpx.get(f"{address}/stats").json()["taught/sft"]
        assert (stats["engines"], stats["places"]) == (devices, PLACES)
        assert (stats["open"], stats["refused"]) == (0, 0)
