"""Connections with nothing in them, half a request, or what is no HTTP, and readers that do not read."""

import contextlib
import json
import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest

from nanolit.chat import guard, server
from tests.chat.serving import models_of, served

HOST = b"Host: localhost\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
WHOLE = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n"


@pytest.fixture
def address(rambling_model, byte_tokenizer, monkeypatch):
    """A server whose patience is half a second."""
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.5)
    with served(models_of(byte_tokenizer, {"rambling/base": rambling_model})) as address:
        yield address


def connect(address: str) -> socket.socket:
    there = urlsplit(address)
    return socket.create_connection((there.hostname, there.port), timeout=10)


def answer(address: str, content: bytes) -> bytes:
    """All that the server says until it closes the connection; TimeoutError where it never does."""
    with connect(address) as client:
        client.sendall(content)
        return b"".join(iter(lambda: client.recv(65_536), b""))


def error_of(said: bytes) -> dict[str, str]:
    return json.loads(said.partition(b"\r\n\r\n")[2])["error"]


@pytest.mark.parametrize("content", [b"", b"GET /v1/models HTTP/1.1\r\nHo", WHOLE + b"GET /v1/mo"])
def test_who_sends_half_a_head_is_let_go(address, content):
    assert answer(address, content).count(b"HTTP/1.1 ") == content.count(WHOLE)


def test_half_a_body_is_refused_in_time(address):
    said = answer(address, POST + b"Content-Length: 50\r\n\r\n{")
    assert said.startswith(b"HTTP/1.1 408 ")
    assert error_of(said)["message"] == "the request did not arrive in full within 30 seconds"


@pytest.mark.parametrize(
    "content",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,  # TLS
        b"GET /health HTTP/1.1\r\n\r\n",  # without a host
        WHOLE.replace(b"/health", b"/hea lth"),
        POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        POST + b"Content-Length: -1\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_in_json(address, content):
    said = answer(address, content)
    assert said.startswith(b"HTTP/1.1 400 ")
    assert error_of(said)["type"] == "invalid_request_error"


def test_patience_ends_no_reply(address):
    """It takes some seconds, several times as long as a head may."""
    begun = time.monotonic()
    asked = {"prompt": "Once", "max_tokens": 1500}
    reply = httpx.post(f"{address}/v1/completions", json=asked, timeout=120).json()
    assert reply["usage"]["completion_tokens"] == 1500
    assert time.monotonic() - begun > 2 * server.HEAD_SECONDS


def test_a_crowd_with_half_a_head_each_and_readers_that_do_not_read_hold_up_nobody(address):
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(connect(address)).sendall(b"GET /v1/models HTTP/1.1\r\nHo")
        body = json.dumps({"prompt": "Once", "max_tokens": 1000, "stream": True}).encode()
        for _ in range(5):
            reader = stack.enter_context(connect(address))
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.sendall(POST + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        asked = {"prompt": "Once", "max_tokens": 5, "temperature": 0}
        reply = httpx.post(f"{address}/v1/completions", json=asked, timeout=60).json()
        assert reply["choices"][0]["text"] == "aaaaa"
