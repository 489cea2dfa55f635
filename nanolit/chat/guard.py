"""Access control: hosts, origins, paths, sizes, passwords. Plain ASGI, in front of page and API.

A login is a cookie that holds its expiry and the password's signature of it: nothing is kept on the server,
so it outlives a restart.
"""

import asyncio
import contextlib
import hashlib
import hmac
import html
import ipaddress
import os
import re
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanolit.machine.terminal import one_line

COOKIE, COOKIE_SECONDS = "nanolit_chat", 30 * 24 * 3600
MAX_BODY_BYTES = 512 * 1024  # 32,000 characters as \uXXXX pairs, and room for 500 messages
BODY_SECONDS = 30.0
TOO_LARGE = (413, f"the request is larger than {MAX_BODY_BYTES:,} bytes")
TOO_SLOW = (408, f"the request did not arrive in full within {BODY_SECONDS:.0f} seconds")
TRIES, TRIES_SECONDS = 5, 60.0
LONGEST_LINE = 300  # characters of an error: some quote what a client sent
OPEN_PATHS = ("/health", "/login", "/favicon.ico")
# What a page of ours asks for. All else that Gradio serves (uploads, files, proxies, monitoring, …) is shut
PAGE_PATHS = (
    "/",
    "/config",
    "/theme.css",
    "/manifest.json",
    "/gradio_api/startup-events",
    "/gradio_api/info",
    "/gradio_api/app_id",  # asked by a page that lost its server: answered, it loads itself again
)
PAGE_FOLDERS = ("/static/", "/assets/", "/svelte/", "/gradio_api/queue/")
OUR_PATHS = ("/stats", "/gradio_api/cancel", *OPEN_PATHS)
CHANGING = ("/v1/", "/gradio_api/", "/login")  # where a request may do more than read
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "form-action 'self'; base-uri 'self'; frame-ancestors 'none'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}


HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([0-9a-z._-]+))(?::\d+)?")  # a Host header: [address] or name, port


class Guard:
    """Passes on to `app` what may pass; `hosts` are names by which this server is known."""

    def __init__(self, app: ASGIApp, *, password: str | None, hosts: Sequence[str] = ()) -> None:
        self.app, self.password = app, password
        own = socket.gethostname().lower().removesuffix(".local")
        self.hosts = {"localhost", own, f"{own}.local", *hosts}  # .local: as other machines nearby find it
        self._wrong: dict[str, deque[float]] = {}  # when a client's last wrong passwords came

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # starting and ending; a WebSocket finds no route
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        receive, send = Limited(receive), with_headers(send)
        with contextlib.suppress(ClientDisconnect):  # in the middle of a body: there is nobody to answer
            try:
                answer = self._refused(request) or await self._login(request, receive)
            except BadBody as error:
                answer = refusal(error.status_code, error.detail)
            try:
                await (answer or self.app)(scope, receive, send)
            except Exception as error:  # the client was told; uvicorn would print a traceback each time
                tell(error)

    def _refused(self, request: Request) -> Response | None:
        """Return the answer to a request that must not pass, whoever sends it."""
        path, host = request.scope["path"], request.headers.get("host", "")
        if not self._is_ours(host):  # a stranger's page that has its own name point at this machine
            return refusal(
                403, f"this server does not answer to the name {host!r}; start it with domains=NAME"
            )
        origin = request.headers.get("origin")
        if request.method == "POST" and origin and origin.partition("://")[2] != host:
            return refusal(403, "requests from other sites are not answered")
        if path.startswith("/gradio_api/heartbeat/"):
            return Response(status_code=204)  # an open tab must not keep a rented GPU awake
        if not (path in PAGE_PATHS + OUR_PATHS or path.startswith((*PAGE_FOLDERS, "/v1/"))):
            return refusal(404, "not found")
        if request.method not in (METHODS if path.startswith(CHANGING) else METHODS[:2]):
            return refusal(405, f"{request.method} is not for {path}; use GET", {"allow": "GET, HEAD"})
        length = request.headers.get("content-length", "0")
        if not is_number(length) or int(length) > MAX_BODY_BYTES:
            return refusal(*TOO_LARGE)
        if path.startswith("/v1/") and request.method == "POST":
            kind = request.headers.get("content-type", "").partition(";")[0].strip()
            if kind.lower() != "application/json":
                return refusal(415, f"the content type is {kind!r}; send application/json")
        return None

    def _is_ours(self, host: str) -> bool:
        """Tell whether a Host header names this server: numbers can't be anybody else's name."""
        match = HOST.fullmatch(host.lower())
        name = (match[1] or match[2]) if match else ""
        try:
            return bool(ipaddress.ip_address(name))
        except ValueError:
            return name in self.hosts or any(name.endswith(h[1:]) for h in self.hosts if h.startswith("*."))

    async def _login(self, request: Request, receive: Receive) -> Response | None:
        """Return None for those who may pass, else the form, its outcome, or a refusal."""
        path = request.scope["path"]
        if self.password is None:
            return RedirectResponse("/", 303) if path == "/login" else None
        if path == "/login" and request.method == "POST":
            form = parse_qs((await Request(request.scope, receive).body()).decode("utf-8", "replace"))
            if waiting := self._seconds_to_wait(request):
                return LoginPage(f"Too many attempts. Wait {waiting} s.", 429, {"retry-after": str(waiting)})
            if not self._matches(request, form.get("password", [""])[0].strip().encode()):
                return LoginPage("Wrong password.", 401)
            response = RedirectResponse("/", 303)
            secure = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))
            response.set_cookie(
                COOKIE, self._ticket(), COOKIE_SECONDS, httponly=True, secure=secure, samesite="lax"
            )
            return response
        if path == "/login":
            return LoginPage()
        if path in OPEN_PATHS or self._has_cookie(request):
            return None
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            if waiting := self._seconds_to_wait(request):
                return refusal(429, f"too many wrong keys; wait {waiting} s", {"retry-after": str(waiting)})
            if self._matches(request, key.strip().encode("latin-1")):  # a header's bytes, whatever they are
                return None
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("/login", 303)
        return refusal(401, "the password is missing or wrong; send it as Authorization: Bearer PASSWORD")

    def _matches(self, request: Request, password: bytes) -> bool:
        assert self.password is not None
        if hmac.compare_digest(password, self.password.encode()):
            return True
        self._wrong.setdefault(client_of(request), deque(maxlen=TRIES)).append(time.monotonic())
        return False

    def _seconds_to_wait(self, request: Request) -> int:
        """Return how long this client must wait after its last wrong passwords; 0 for most."""
        now = time.monotonic()
        self._wrong = {
            client: times for client, times in self._wrong.items() if now - times[-1] < TRIES_SECONDS
        }
        times = self._wrong.get(client_of(request), deque())
        if len(times) < TRIES or now - times[0] > TRIES_SECONDS:
            return 0
        return int(TRIES_SECONDS - (now - times[0])) + 1

    def _ticket(self, expiry: int | None = None) -> str:
        assert self.password is not None
        expiry = expiry or int(time.time()) + COOKIE_SECONDS
        return (
            f"{expiry}.{hmac.new(self.password.encode(), str(expiry).encode(), hashlib.sha256).hexdigest()}"
        )

    def _has_cookie(self, request: Request) -> bool:
        cookie = request.cookies.get(COOKIE, "")
        expiry = cookie.partition(".")[0]
        if not is_number(expiry) or int(expiry) < time.time():
            return False
        return hmac.compare_digest(cookie.encode(), self._ticket(int(expiry)).encode())


class BadBody(HTTPException):
    """A body that is too slow, or larger than it said."""


class Limited:
    """`receive` that gives up on bodies that are too large or too slow."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._size, self._whole = receive, 0, False
        self._deadline = time.monotonic() + BODY_SECONDS

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            raise BadBody(*TOO_SLOW) from None
        self._size += len(message.get("body", b""))
        if self._size > MAX_BODY_BYTES:
            raise BadBody(*TOO_LARGE)
        self._whole = not message.get("more_body", False)
        return message


class LoginPage(HTMLResponse):
    def __init__(self, note: str = "", status_code: int = 200, headers: dict[str, str] | None = None) -> None:
        super().__init__(LOGIN.replace("NOTE", html.escape(note)), status_code, headers)


def tell(error: BaseException | None) -> None:
    """Print an error of the server's in a line, and its traceback if HYDRA_FULL_ERROR is set."""
    if "HYDRA_FULL_ERROR" in os.environ:
        traceback.print_exception(error)
    if error:
        line = one_line(error)[:LONGEST_LINE]
        print(f"server: {type(error).__name__}: {line}", file=sys.stderr, flush=True)


def refusal(
    status_code: int, message: str, headers: Mapping[str, str] | None = None, **about: Any
) -> Response:
    """Return an error as OpenAI's clients read it; `about` is what `error_body` takes."""
    return JSONResponse(error_body(message, **about), status_code, headers)


def error_body(
    message: str, *, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    message, param = writable(message), param and writable(param)
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def writable(text: str) -> str:
    """Return a text that UTF-8 can write: halves of characters, which JSON lets through, are spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def is_number(text: str) -> bool:
    """Tell whether `int` takes it: not for other scripts' digits, nor for thousands of digits."""
    return text.isascii() and text.isdigit() and len(text) < 20


def client_of(request: Request) -> str:
    return request.client.host if request.client else ""


def with_headers(send: Send) -> Send:
    """Return `send` with our headers on every answer."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            added = [(name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await send(message)

    return sending


LOGIN = """<!doctype html><html lang="en"><meta charset="utf-8"><title>NanoLit chat</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { display: grid; place-items: center; min-height: 95vh; margin: 0 }
form { display: grid; gap: .75rem; width: min(20rem, 85vw) }
h1 { font-size: 1.25rem; margin: 0 } input, button { font: inherit; padding: .5rem .75rem;
 border-radius: .5rem; border: 1px solid #8886 }
button { background: #4f46e5; color: #fff; border: 0; cursor: pointer }
</style><form method="post" action="/login"><h1>NanoLit chat</h1>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" autofocus required>
<button>Log in</button><output>NOTE</output></form></html>"""
