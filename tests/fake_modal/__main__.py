"""`python -m tests.fake_modal STATE SECRETS`: serve on a free port, written to STATE/url, until killed."""

import asyncio
import json
import os
import sys
from pathlib import Path

from aiohttp import web
from grpclib.server import Server

from tests.fake_modal.containers import end_everything
from tests.fake_modal.control_plane import ControlPlane, blob_server


async def main() -> None:
    parent = os.getppid()
    state, secrets = Path(sys.argv[1]), json.loads(sys.argv[2])
    runner = web.AppRunner(blob_server(state))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    plane = ControlPlane(state, secrets=secrets, port=runner.addresses[0][1])
    server = Server([plane])
    await server.start("127.0.0.1", 0)
    port = server._server.sockets[0].getsockname()[1]
    plane.url_of_rpc = f"http://127.0.0.1:{port}"
    (state / "url.part").write_text(plane.url_of_rpc)
    (state / "url.part").rename(state / "url")
    while os.getppid() == parent:  # a test that crashed leaves nothing behind
        await asyncio.sleep(1)
    for task in plane.containers.running:
        end_everything(task)


asyncio.run(main())
