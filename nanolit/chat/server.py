"""Page and API as one ASGI app, which anything that serves ASGI can mount, and its server on this machine."""

import asyncio
import contextlib
import ipaddress
import json
import os
import re
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from typing import cast

import h11
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from nanolit.chat.api import routes
from nanolit.chat.guard import Guard, error_body, refusal
from nanolit.chat.models import Defaults, Models
from nanolit.chat.service import Busy

# What pydantic adds to the place of an error in a union
TYPE = re.compile(r"str|constrained-str|list\[.*")
FIRST_PORT, NUM_PORTS = 7860, 100
HEAD_SECONDS = 30.0  # that a request's first line and headers may take
SHUTDOWN_SECONDS = 3  # for replies that are being written; then their clients are told that the server ends


def build_app(
    models: Models,
    *,
    defaults: Defaults | None = None,
    password: str | None = None,
    hosts: Sequence[str] = (),
    page: bool = True,
) -> Guard:
    """Return the app. `hosts` are names it may be reached by, `*.example.org` among them.

    `page=False` leaves the page out, and gradio unimported. The models' threads end with the app's lifespan.
    """
    defaults = defaults or Defaults()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        models.close()

    app = FastAPI(title="NanoLit chat", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(routes(models, defaults))
    _explain_errors(app)

    @app.api_route("/health", methods=["GET", "HEAD"])
    def health():
        return {"status": "ok"}

    @app.api_route("/stats", methods=["GET", "HEAD"])
    def stats():
        return {served.name: served.service.stats() for served in models.loaded()}

    if page:
        from nanolit.chat.web import mount

        mount(app, models, defaults)
    return Guard(app, password=password, hosts=hosts)


def _explain_errors(app: FastAPI) -> None:
    """Answer errors as OpenAI's clients read them."""

    @app.exception_handler(ValidationError)
    async def invalid(request: Request, error: ValidationError) -> Response:
        deepest = max(error.errors(), key=lambda one: len(one["loc"]))  # of a union, what was meant
        place = ".".join(part for part in map(str, deepest["loc"]) if not TYPE.fullmatch(part))
        what = deepest["msg"].removeprefix("Value error, ")
        message = f"{place}: {what}" if place else what
        return refusal(400, message, param=place or None)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        return refusal(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> Response:
        again = {"Retry-After": str(error.seconds)}
        return refusal(503, str(error), again, kind="server_error", code="busy")

    @app.exception_handler(ValueError)
    async def refused(request: Request, error: ValueError) -> Response:
        return refusal(400, str(error))

    @app.exception_handler(RuntimeError)
    async def failed(request: Request, error: RuntimeError) -> Response:
        return refusal(500, str(error), kind="server_error")


def listen(host: str, port: int | None) -> socket.socket:
    """Return a listening socket; `port` None takes the first free one from 7860 on."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        socket.create_server((address[0], 0), family=family).close()
    except OSError as error:
        raise ValueError(
            f"host {host} is not an address of this machine ({error}); give another host="
        ) from error
    last: OSError | None = None
    for number in [port] if port else range(FIRST_PORT, FIRST_PORT + NUM_PORTS):
        try:
            return socket.create_server((address[0], number), family=family, backlog=256)
        except OSError as error:
            last = error
    which = f"port {port}" if port else f"ports {FIRST_PORT} to {FIRST_PORT + NUM_PORTS - 1}"
    why = os.strerror(last.errno or 0) if last else ""
    raise ValueError(f"{which} can't be served on {host} ({why}); give another port=") from last


class Connection(H11Protocol):
    """Closes unless a whole head comes in every HEAD_SECONDS in which nothing is being answered.

    uvicorn waits forever for the rest of a request's head, so a thousand clients that each send half of one
    would take every file that the server may open.
    """

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._look_again()

    def _look_again(self) -> None:
        self.watch = self.loop.call_later(HEAD_SECONDS, self._close_if_silent, self.cycle)

    def connection_lost(self, exc: Exception | None) -> None:
        self.watch.cancel()  # it would keep 12 KB of each connection until it is due
        super().connection_lost(exc)

    def _close_if_silent(self, before: RequestResponseCycle | None) -> None:
        if self.cycle is before and (before is None or before.response_complete):
            self.transport.close()
        elif not self.transport.is_closing():
            self._look_again()

    def send_400_response(self, msg: str) -> None:
        """Answer what could not be read as HTTP, unless another request is being answered, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error_body(msg.rstrip("."))).encode()
            headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
            start = h11.Response(status_code=400, headers=[*headers, ("connection", "close")])
            for event in (start, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(cast(bytes, self.conn.send(event)))
        self.transport.close()


class Server(uvicorn.Server):
    """Ends replies that run long after Ctrl-C, where uvicorn would cut their connections."""

    def __init__(self, app: Guard, models: Models) -> None:
        config = uvicorn.Config(
            app,  # pyright: ignore[reportArgumentType]
            http=Connection,
            ws="none",
            log_level="critical",  # the guard reports the app's errors; clients were told everything else
            access_log=False,
            server_header=False,
            # By default uvicorn believes X-Forwarded-For of any program on this machine, and so would the
            # guard, which counts wrong passwords by address
            forwarded_allow_ips=os.environ.get("FORWARDED_ALLOW_IPS", []),
            timeout_graceful_shutdown=2 * SHUTDOWN_SECONDS,
        )
        super().__init__(config)
        self.models = models

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(SHUTDOWN_SECONDS, loop.run_in_executor, None, self.models.close)
        await super().shutdown(sockets)


def serve(app: Guard, models: Models, listening: socket.socket, *, host: str) -> None:
    """Serve until Ctrl-C, on a socket of `listen`."""
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listening.getsockname()[1]}"
    print(f"Chat: {url}  API: {url}/v1  (Ctrl-C stops the server)", flush=True)
    if app.password is None and not ipaddress.ip_address(listening.getsockname()[0]).is_loopback:
        print(
            "Anyone who can reach this machine can use it. Set NANOLIT_CHAT_PASSWORD to require a password."
        )
    server = Server(app, models)
    sys.stdout.flush()
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it once more when it has ended
        server.run(sockets=[listening])
