"""A chat endpoint on loopback that misbehaves as real ones do, and remembers what it was asked."""

import json
import socket
import struct
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

STATUSES = {"429": 429, "500": 500, "503": 503, "400": 400, "401": 401, "404": 404}


def said(**turns: str | None) -> str:
    return json.dumps({"messages": [{"role": role, "content": text} for role, text in turns.items()]})


CONTENTS = {
    "no_json": "Sure! Here is a conversation.",
    "other_json": '{"dialogue": []}',
    "bare_text": '"hello"',
    "wrong_turns": said(assistant="Hi"),
    "no_last_word": said(user="Hi"),
    "empty_content": said(user="Hi", assistant=" "),
    "null_content": said(user=None, assistant="x"),
    "half_json": said(user="Hi", assistant="I am Ada.")[:-20],
    "same_again": said(user="Hi", assistant="I am Ada."),
}
PASSING = ["429", "500", "503", "reset", "cut_short", "no_completion", "half_answer", "refusal", *CONTENTS]


class StandIn(ThreadingHTTPServer):
    """`with StandIn(faults=["429", "reset"]) as endpoint:`; the first requests meet the faults, in order;
    with `always`, all do."""

    daemon_threads = True

    def __init__(
        self, *, faults: list[str] | None = None, always: str = "", seconds: float = 0.0, padding: int = 0
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.always, self.seconds = list(faults or []), always, seconds
        self.padding = padding  # letters before what is said with a status
        self.requests: list[dict[str, Any]] = []  # bodies, each with the key under "authorization"
        self.num_good = self.now = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> "StandIn":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with server.lock:
            key = self.headers.get("authorization")
            server.requests.append({**body, "path": self.path, "authorization": key})
            fault = server.always or (server.faults.pop(0) if server.faults else "")
            server.now += 1
            server.most_at_once = max(server.most_at_once, server.now)
        time.sleep(server.seconds)
        self.answer(fault, body["messages"][0]["content"], key)
        with server.lock:
            server.now -= 1
            server.num_good += not fault

    def answer(self, fault: str, prompt: str, key: str | None) -> None:
        if fault == "reset":
            linger = struct.pack("ii", 1, 0)  # closing sends RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
        elif fault in STATUSES:
            said_back = f"{'x' * self.server.padding} no, not with {key}"
            self.send(STATUSES[fault], said_back.encode(), {"Retry-After": "0.02"})
        elif fault == "redirect":
            self.send(307, b"", {"Location": "http://127.0.0.1:9/v1/chat/completions"})
        elif fault == "cut_short":
            self.send(200, b'{"choices": [{"mess', {"Content-Length": "4000"})
            self.close_connection = True
        elif fault == "no_completion":
            self.send(200, b'{"error": {"message": "overloaded"}}')
        elif fault == "refusal":
            self.complete(None)
        else:
            self.complete(CONTENTS.get(fault, conversation(prompt)), half=fault == "half_answer")

    def complete(self, content: str | None, *, half: bool = False) -> None:
        choice = {"message": {"content": content}, "finish_reason": "length" if half else "stop"}
        usage = {"prompt_tokens": 700, "completion_tokens": 40}
        self.send(200, json.dumps({"choices": [choice], "usage": usage}).encode())

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def conversation(prompt: str) -> str:
    """A conversation that depends on the prompt alone."""
    messages = [
        {"role": "user", "content": "Who are you? "},
        {"role": "assistant", "content": "I am Ada, a small model — и всё 😀.\n"},
        {"role": "user", "content": f"And {zlib.crc32(prompt.encode()):08x}?"},
        {"role": "assistant", "content": "I do not know."},
    ]
    return json.dumps({"messages": messages}, ensure_ascii=False)
