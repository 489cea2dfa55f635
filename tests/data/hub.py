"""A stand-in of the hub on loopback, for the real client: a dataset's files, and faults to order."""

import hashlib
import json
import re
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """`files` by name; `faults[name]` befall the next requests for it, in order; `asked` is the log.

    A fault is a status (503) or a pair of one and headers, "reset" or "truncate" (after half of what was
    asked for), "damage" (as many bytes, others), "more" (a byte too many), "ignore range" (the whole file
    again), or an event: half, then wait for it. The name "api" stands for the metadata.
    """

    def __init__(self, repository: str, files: dict[str, bytes]) -> None:
        self.repository, self.files = repository, files
        self.faults: dict[str, list] = defaultdict(list)
        self.asked: list[tuple[str, str | None]] = []
        self.sent = 0  # bytes of files
        self.revision = REVISION
        self.stated_size: dict[str, int] = {}  # in place of the real one
        self.halfway = threading.Event()  # an answer with a fault has sent its half

    def next_fault(self, name: str):
        return self.faults[name].pop(0) if self.faults[name] else None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == f"/api/datasets/{self.hub.repository}":
            return self.answer_json({"id": self.hub.repository, "sha": self.hub.revision, "siblings": []})
        found = re.fullmatch(f"/datasets/{self.hub.repository}/resolve/(\\w+)/(.+)", path)
        if not found or found[1] != self.hub.revision or found[2] not in self.hub.files:
            return self.answer_status(404)
        self.answer_file(found[2])

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        if urlsplit(self.path).path != f"/api/datasets/{self.hub.repository}/paths-info/{self.hub.revision}":
            return self.answer_status(404)
        answer = []
        for name in form["paths"]:
            if name in self.hub.files:
                content = self.hub.files[name]
                size = self.hub.stated_size.get(name, len(content))
                lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 134}
                answer.append({"type": "file", "path": name, "size": size, "oid": "0" * 40, "lfs": lfs})
        self.answer_json(answer)

    def answer_json(self, content: object) -> None:
        self.hub.asked.append(("api", None))
        if fault := self.hub.next_fault("api"):
            return self.answer_status(fault)
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer_status(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer_file(self, name: str) -> None:
        asked = self.headers.get("Range")
        self.hub.asked.append((name, asked))
        fault, content = self.hub.next_fault(name), self.hub.files[name]
        if isinstance(fault, int):
            return self.answer_status(fault)
        if isinstance(fault, tuple):
            return self.answer_status(*fault)
        start = (
            int(asked.removeprefix("bytes=").removesuffix("-")) if asked and fault != "ignore range" else 0
        )
        body = content[start:]
        if fault == "damage":
            body = bytes(255 - byte for byte in body)
        if fault == "more":
            body += b"x"
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        half = fault in ("reset", "truncate") or isinstance(fault, threading.Event)
        self.send(body[: len(body) // 2] if half else body)
        if half:
            self.fail(fault, body[len(body) // 2 :])

    def fail(self, fault: object, rest: bytes) -> None:
        self.wfile.flush()
        self.hub.halfway.set()
        self.close_connection = True
        if isinstance(fault, threading.Event):
            fault.wait(20)
            self.send(rest)
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def send(self, body: bytes) -> None:
        try:
            self.wfile.write(body)
            self.hub.sent += len(body)
        except OSError:  # the client is gone
            self.close_connection = True


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """The stand-in's address, for HF_ENDPOINT."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
