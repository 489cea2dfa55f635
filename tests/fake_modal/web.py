"""Modal's way in from the web: a listener a web function, whose requests are inputs of one container.

The container starts with a request, takes many at once, and is told to end when it has had none for
`scaledown_window` seconds (STATE/idle holds a shorter time). A request's body and its end go to it as data
chunks, its answer comes back as such.
"""

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from aiohttp import web
from grpclib import GRPCError, Status
from modal._serialization import deserialize_data_format, serialize_data_format
from modal_proto import api_pb2 as api

from tests.fake_modal.containers import Call, end_everything

if TYPE_CHECKING:
    from tests.fake_modal.control_plane import ControlPlane

ASGI = api.DATA_FORMAT_ASGI
POLL_SECONDS = 1.0
STOP_SECONDS = 2.0


@dataclass(kw_only=True)
class Visit:
    """A request on its way through a container."""

    input_id: str
    call_id: str
    scope: dict[str, Any]
    to_app: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    from_app: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)


class WebFunction:
    """One class with a web method: its address, the requests that wait, its container."""

    def __init__(self, plane: "ControlPlane", function_id: str) -> None:
        self.plane, self.function_id = plane, function_id
        self.waiting: asyncio.Queue[Visit] = asyncio.Queue()
        self.visits: dict[str, Visit] = {}  # by call
        self.last, self.running = time.monotonic(), False
        self.url = ""

    async def listen(self) -> None:
        application = web.Application(client_max_size=1 << 20)
        application.router.add_route("*", "/{path:.*}", self.answer)
        runner = web.AppRunner(application, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    @property
    def app(self) -> dict[str, Any]:
        return self.plane.apps[self.plane.owner[self.function_id]]

    @property
    def needs_tokens(self) -> bool:
        method = self.plane.functions[self.function_id].method_definitions["web"]
        return method.webhook_config.requires_proxy_auth

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if self.app["stopped"]:
            return web.Response(status=404, text="modal-http: app for invoked web endpoint is stopped")
        if self.needs_tokens and not {"Modal-Key", "Modal-Secret"} <= {*request.headers}:
            return web.Response(status=401, text="modal-http: missing credentials for proxy authorization")
        visit = Visit(input_id=self.plane.new("in"), call_id=self.plane.new("fc"), scope=scope_of(request))
        self.plane.visits[visit.call_id] = visit
        await visit.to_app.put({"type": "http.request", "body": await request.read(), "more_body": False})
        await self.waiting.put(visit)
        self.wake()
        response = web.StreamResponse()
        try:
            while message := await visit.from_app.get():
                if message["type"] == "http.response.start":
                    response = web.StreamResponse(status=message["status"])
                    for name, value in message["headers"]:
                        response.headers.add(name.decode(), value.decode())
                    await response.prepare(request)
                elif message.get("body"):
                    await response.write(message["body"])
                if message["type"] == "http.response.body" and not message.get("more_body"):
                    break
            if not response.prepared:
                return web.Response(status=500, text="modal-http: the container ended before it answered")
            await response.write_eof()
        finally:
            await visit.to_app.put({"type": "http.disconnect"})
        return response

    def wake(self) -> None:
        if not self.running:
            self.running = True
            call = Call(id=self.plane.new("fc"), function_id=self.function_id, input_id="", parent="")
            call.web = self
            self.plane.calls[call.id] = call
            task = asyncio.create_task(self.contain(call))
            self.plane.containers.background.add(task)

    async def contain(self, call: Call) -> None:
        self.last = time.monotonic()
        await self.plane.containers.attempt(call, self.plane.functions[self.function_id])
        call.done.set()
        self.running = False
        for visit in self.visits.values():
            visit.from_app.put_nowait(None)
        self.visits.clear()
        if not self.waiting.empty() and not self.app["stopped"]:
            self.wake()

    async def next_input(self) -> Any:
        """A request, nothing for now, or the order to end."""
        with contextlib.suppress(TimeoutError):
            visit = await asyncio.wait_for(self.waiting.get(), POLL_SECONDS)
            self.visits[visit.call_id], self.last = visit, time.monotonic()
            content = serialize_data_format(((visit.scope,), {}), api.DATA_FORMAT_PICKLE)
            asked = api.FunctionInput(
                args=content, data_format=api.DATA_FORMAT_PICKLE, method_name="web", final_input=False
            )
            item = api.FunctionGetInputsItem(
                input_id=visit.input_id, input=asked, function_call_id=visit.call_id
            )
            return api.FunctionGetInputsResponse(inputs=[item])
        override = self.plane.state / "idle"
        window = self.plane.functions[self.function_id].autoscaler_settings.scaledown_window
        idle = float(override.read_text()) if override.exists() else window
        if self.visits:
            self.last = time.monotonic()
        if time.monotonic() - self.last > idle:
            return api.FunctionGetInputsResponse(inputs=[api.FunctionGetInputsItem(kill_switch=True)])
        return api.FunctionGetInputsResponse()

    def ended(self, input_id: str) -> None:
        for call_id, visit in [*self.visits.items()]:
            if visit.input_id == input_id:
                visit.from_app.put_nowait(None)
                self.last = time.monotonic()
                del self.visits[call_id]


def scope_of(request: web.Request) -> dict[str, Any]:
    path, _, query = request.raw_path.partition("?")
    peer = request.transport.get_extra_info("peername") if request.transport else None
    return {
        "type": "http",
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": unquote(path),
        "query_string": query.encode(),
        "headers": [(name.lower(), value) for name, value in request.raw_headers],
        "client": peer or ("127.0.0.1", 0),
    }


class Web:
    """The part of the control plane that deployed apps need."""

    state: Any
    apps: dict[str, dict[str, Any]]
    functions: dict[str, Any]
    owner: dict[str, str]
    containers: Any
    new: Any
    handle: Any
    function_data: Any

    def __init__(self) -> None:
        self.deployed: dict[str, str] = {}  # name → app
        self.web: dict[str, WebFunction] = {}  # by function
        self.visits: dict[str, Visit] = {}  # by call

    async def on_AppGetByDeploymentName(self, request: Any, task: str) -> Any:
        return api.AppGetByDeploymentNameResponse(app_id=self.deployed.get(request.name, ""))

    async def on_AppGetLayout(self, request: Any, task: str) -> Any:
        return api.AppGetLayoutResponse(app_layout=self.layout(request.app_id))

    async def on_AppPublish(self, request: Any, task: str) -> Any:
        deployed_at = 0.0
        if request.app_state == api.APP_STATE_DEPLOYED:
            self.deployed[request.name], deployed_at = request.app_id, time.time()
            self.apps[request.app_id]["stopped"] = False
        return api.AppPublishResponse(url=f"https://modal.com/id/{request.app_id}", deployed_at=deployed_at)

    async def on_ClassCreate(self, request: Any, task: str) -> Any:
        layout = self.apps[request.app_id]["layout"]
        (name,) = [one for one in layout.function_ids if one.endswith(".*")]
        class_id = request.existing_class_id or self.new("cs")
        layout.class_ids[name.removesuffix(".*")] = class_id
        return api.ClassCreateResponse(
            class_id=class_id, handle_metadata=self.class_metadata(layout.function_ids[name])
        )

    async def on_ClassGet(self, request: Any, task: str) -> Any:
        layout = self.apps[self.named(request.app_name)]["layout"]
        function_id = layout.function_ids[f"{request.object_tag}.*"]
        return api.ClassGetResponse(
            class_id=layout.class_ids[request.object_tag], handle_metadata=self.class_metadata(function_id)
        )

    async def on_FunctionGet(self, request: Any, task: str) -> Any:
        function_id = self.apps[self.named(request.app_name)]["layout"].function_ids[request.object_tag]
        metadata = self.handle(function_id, request.object_tag)
        data = self.function_data(self.functions[function_id])
        return api.FunctionGetResponse(function_id=function_id, function=data, handle_metadata=metadata)

    def named(self, name: str) -> str:
        app = self.deployed.get(name, "")
        if not app or self.apps[app]["stopped"]:
            raise GRPCError(Status.NOT_FOUND, f"App '{name}' not found")
        return app

    def class_metadata(self, function_id: str) -> Any:
        metadata = self.handle(function_id, self.functions[function_id].function_name)
        return api.ClassHandleMetadata(class_function_id=function_id, class_function_metadata=metadata)

    def layout(self, app: str) -> Any:
        """An app's functions and classes, each with what a handle of it knows."""
        layout = api.AppLayout.FromString(self.apps[app]["layout"].SerializeToString())
        for name, function_id in layout.function_ids.items():
            layout.objects.add(object_id=function_id, function_handle_metadata=self.handle(function_id, name))
        for name, class_id in layout.class_ids.items():
            metadata = self.class_metadata(layout.function_ids[f"{name}.*"])
            layout.objects.add(object_id=class_id, class_handle_metadata=metadata)
        return layout

    async def on_TaskList(self, request: Any, task: str) -> Any:
        tasks = [
            api.TaskStats(task_id=one, app_id=request.app_id, enqueued_at=call.at)
            for one, call in self.containers.running.items()
            if self.owner[call.function_id] == request.app_id
        ]
        return api.TaskListResponse(tasks=tasks)

    async def on_ContainerStop(self, request: Any, task: str) -> None:
        """SIGINT, a moment for exit handlers, the end: as Modal does when it takes a machine away."""
        (process,) = [path.read_text() for path in self.state.glob(f"tasks/{request.task_id}/process.txt")]
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process.split()[0]), signal.SIGINT)
        await asyncio.sleep(STOP_SECONDS)
        end_everything(request.task_id)

    async def on_FunctionGetCurrentStats(self, request: Any, task: str) -> Any:
        calls = self.containers.running.values()
        return api.FunctionStats(num_total_tasks=sum(one.function_id == request.function_id for one in calls))

    async def on_FunctionCallPutDataOut(self, request: Any, task: str) -> None:
        for chunk in request.data_chunks:
            if chunk.data_format == ASGI:
                message = deserialize_data_format(chunk.data, ASGI, None)
                await self.visits[request.function_call_id].from_app.put(message)

    async def send_data_in(self, request: Any, stream: Any) -> None:
        visit, index = self.visits[request.function_call_id], request.last_index
        while True:
            message = await visit.to_app.get()
            index += 1
            data = serialize_data_format(message, ASGI)
            await stream.send_message(api.DataChunk(data_format=ASGI, data=data, index=index))
            if message["type"] == "http.disconnect":
                return
