"""The gRPC side: every request is logged and answered, by `on_<Name>` here or with an empty message.

So a request that nobody thought of never breaks it; the client decides what it can do with an empty reply.
"""

import asyncio
import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from aiohttp import web
from google.protobuf.json_format import MessageToDict
from grpclib import GRPCError, Status
from grpclib.const import Handler
from modal_proto import api_pb2 as api
from modal_proto.api_grpc import ModalClientBase

from tests.fake_modal.containers import Call, Containers
from tests.fake_modal.web import Web, WebFunction

PICKLE = [api.DATA_FORMAT_PICKLE]
QUIET = {
    "ContainerHeartbeat",
    "AppHeartbeat",
    "AppGetLogs",
    "FunctionGetOutputs",
    "FunctionCallGetInfo",
    "FunctionGetInputs",
}
BLOCK = 8 << 20  # bytes; modal.volume.BLOCK_SIZE


def answered_by_us(names: frozenset[str]) -> type:
    """ModalClientBase with its abstract methods filled in; __mapping__ is all that we want of it."""
    return type("Service", (ModalClientBase,), dict.fromkeys(names, lambda self, stream: None))


class ControlPlane(Web):
    """State is in memory, and on disk what tests look at: rpc.jsonl, tasks/, volumes/NAME/, blobs/."""

    def __init__(self, state: Path, *, secrets: dict[str, dict[str, str]], port: int) -> None:
        self.state, self.secrets, self.url = state, secrets, f"http://127.0.0.1:{port}"
        super().__init__()
        self.count = 0
        self.apps: dict[str, dict[str, Any]] = {}
        self.functions: dict[str, api.Function] = {}
        self.owner: dict[str, str] = {}  # function → app
        self.images: dict[str, api.Image] = {}
        self.image_ids: dict[bytes, str] = {}
        self.mounts: dict[str, list[api.MountFile]] = {}
        self.files: dict[str, bytes] = {}  # sha256 → content
        self.calls: dict[str, Call] = {}
        self.dicts: dict[str, dict[bytes, bytes]] = {}
        self.containers = Containers(self)
        for name in ("tasks", "volumes", "blobs"):
            (state / name).mkdir(parents=True, exist_ok=True)

    def new(self, prefix: str) -> str:
        """Return an id that no other account on this machine has: ending a container looks for its id."""
        self.count += 1
        return f"{prefix}-{os.getpid()}{self.count:06d}"

    def __mapping__(self) -> dict[str, Handler]:
        service = answered_by_us(ModalClientBase.__abstractmethods__)()
        return {
            path: Handler(self.handler(path.rpartition("/")[2], reply), cardinality, request, reply)
            for path, (_, cardinality, request, reply) in service.__mapping__().items()
        }

    def handler(self, name: str, reply_type: Any) -> Any:
        async def handle(stream: Any) -> None:
            request = await stream.recv_message()
            task = stream.metadata.get("x-fake-task", "")
            if name not in QUIET:
                line = {"rpc": name, "task": task, "at": time.time(), "request": MessageToDict(request)}
                with (self.state / "rpc.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")
            answer = getattr(self, f"on_{name}", None)
            if name == "AppGetLogs":
                await self.stream_logs(request, stream)
            elif name == "FunctionCallGetDataIn":
                await self.send_data_in(request, stream)
            elif name == "VolumeListFiles2":
                await stream.send_message(self.list_files(request))
            else:
                reply = (await answer(request, task)) if answer else None
                await stream.send_message(reply or reply_type())

        return handle

    # -- apps, environments, secrets, volumes

    async def on_EnvironmentGetOrCreate(self, request: Any, task: str) -> Any:
        settings = api.EnvironmentSettings(image_builder_version="2025.06")
        return api.EnvironmentGetOrCreateResponse(
            environment_id="en-1", metadata=api.EnvironmentMetadata(name="main", settings=settings)
        )

    async def on_AppCreate(self, request: Any, task: str) -> Any:
        app = self.new("ap")
        self.apps[app] = {"logs": [], "layout": api.AppLayout(), "news": asyncio.Event(), "stopped": False}
        return api.AppCreateResponse(app_id=app, app_page_url=f"https://modal.com/apps/{app}")

    async def on_AppGetOrCreate(self, request: Any, task: str) -> Any:
        app = self.deployed.get(request.app_name, request.app_name)
        if app not in self.apps:
            raise GRPCError(Status.NOT_FOUND, f"App '{request.app_name}' not found")
        return api.AppGetOrCreateResponse(app_id=app)

    async def on_AppStop(self, request: Any, task: str) -> None:
        self.apps[request.app_id]["stopped"] = True
        for call in self.calls.values():
            if self.owner[call.function_id] == request.app_id:
                await self.containers.cancel(call, terminate=True)

    async def on_SecretGetOrCreate(self, request: Any, task: str) -> Any:
        name = request.deployment_name
        if not name:
            name = self.new("anonymous")
            self.secrets[name] = dict(request.env_dict)
        elif request.object_creation_type:
            self.secrets.setdefault(name, dict(request.env_dict))
        if name not in self.secrets:
            raise GRPCError(Status.NOT_FOUND, f"Secret '{name}' not found in environment 'main'")
        missing = [key for key in request.required_keys if key not in self.secrets[name]]
        if missing:
            raise GRPCError(Status.NOT_FOUND, f"Secret is missing key(s): {', '.join(missing)}")
        return api.SecretGetOrCreateResponse(secret_id=f"st-{name}")

    async def on_SecretUpdate(self, request: Any, task: str) -> None:
        there = self.secrets[request.secret_id.removeprefix("st-")]
        there.update({one.key: one.value for one in request.updates})

    async def on_VolumeGetOrCreate(self, request: Any, task: str) -> Any:
        folder = self.state / "volumes" / request.deployment_name
        if not folder.exists() and not request.object_creation_type:
            raise GRPCError(Status.NOT_FOUND, f"Volume '{request.deployment_name}' not found")
        folder.mkdir(exist_ok=True)
        metadata = api.VolumeMetadata(name=request.deployment_name, version=api.VOLUME_FS_VERSION_V2)
        return api.VolumeGetOrCreateResponse(
            volume_id=f"vo-{request.deployment_name}", version=metadata.version, metadata=metadata
        )

    def volume(self, volume_id: str) -> Path:
        return self.state / "volumes" / volume_id.removeprefix("vo-")

    async def on_VolumeGetFile2(self, request: Any, task: str) -> Any:
        path = self.volume(request.volume_id) / request.path.lstrip("/")
        if not path.is_file():
            raise GRPCError(Status.NOT_FOUND, f"no such file: {request.path}")
        size = path.stat().st_size
        blocks = range(0, max(size, 1), BLOCK)
        urls = [f"{self.url}/file/{path.relative_to(self.state)}?start={start}" for start in blocks]
        return api.VolumeGetFile2Response(get_urls=urls if size else [], size=size, start=0, len=size)

    def list_files(self, request: Any) -> Any:
        base = self.volume(request.volume_id)
        folder = base / request.path.lstrip("/")
        if not folder.exists():
            raise GRPCError(Status.NOT_FOUND, f"no such directory: {request.path}")
        entries = []
        found = [folder] if folder.is_file() else folder.rglob("*") if request.recursive else folder.iterdir()
        for path in sorted(found):
            kind = api.FileEntry.DIRECTORY if path.is_dir() else api.FileEntry.FILE
            name, size = str(path.relative_to(base)), path.stat().st_size
            entries.append(api.FileEntry(path=name, type=kind, size=size, mtime=int(path.stat().st_mtime)))
        return api.VolumeListFiles2Response(entries=entries)

    async def on_VolumeRemoveFile2(self, request: Any, task: str) -> None:
        path = self.volume(request.volume_id) / request.path.lstrip("/")
        if not path.exists():
            raise GRPCError(Status.NOT_FOUND, f"no such file: {request.path}")
        if path.is_dir() and not request.recursive:
            raise GRPCError(Status.INVALID_ARGUMENT, f"{request.path} is a directory")
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    async def on_VolumePutFiles2(self, request: Any, task: str) -> Any:
        reply = api.VolumePutFiles2Response()
        for index, file in enumerate(request.files):
            path = self.volume(request.volume_id) / file.path.lstrip("/")
            if path.exists() and request.disallow_overwrite_existing_files:
                raise GRPCError(Status.ALREADY_EXISTS, f"{file.path}: already exists")
            blobs = [self.state / "blobs" / block.contents_sha256.hex() for block in file.blocks]
            for number, blob in enumerate(blobs):
                if not blob.exists():
                    reply.missing_blocks.add(
                        file_index=index, block_index=number, put_url=f"{self.url}/blob/{blob.name}"
                    )
            if all(blob.exists() for blob in blobs):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(
                    b"".join(blob.read_bytes().ljust(BLOCK, b"\0") for blob in blobs)[: file.size]
                )
        return reply

    # -- dicts

    async def on_DictGetOrCreate(self, request: Any, task: str) -> Any:
        self.dicts.setdefault(request.deployment_name, {})
        return api.DictGetOrCreateResponse(dict_id=f"di-{request.deployment_name}")

    async def on_DictUpdate(self, request: Any, task: str) -> Any:
        there = self.dicts[request.dict_id.removeprefix("di-")]
        created = [item for item in request.updates if item.key not in there]
        for item in created if request.if_not_exists else request.updates:
            there[item.key] = item.value
        return api.DictUpdateResponse(created=bool(created))

    async def on_DictGet(self, request: Any, task: str) -> Any:
        value = self.dicts[request.dict_id.removeprefix("di-")].get(request.key)
        return api.DictGetResponse(found=value is not None, value=value)

    # -- mounts, blobs, images

    async def on_MountBatchedCheckExistence(self, request: Any, task: str) -> Any:
        missing = [one for one in request.sha256_hex_hashes if one not in self.files]
        return api.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    async def on_MountPutFile(self, request: Any, task: str) -> Any:
        content = request.data
        if request.data_blob_id:
            content = (self.state / "blobs" / request.data_blob_id).read_bytes()
        self.files[request.sha256_hex] = content
        return api.MountPutFileResponse(exists=True)

    async def on_MountGetOrCreate(self, request: Any, task: str) -> Any:
        mount = self.new("mo")
        self.mounts[mount] = list(request.files)
        digest = hashlib.sha256(repr([(one.filename, one.sha256_hex) for one in request.files]).encode())
        return api.MountGetOrCreateResponse(
            mount_id=mount,
            handle_metadata=api.MountHandleMetadata(content_checksum_sha256_hex=digest.hexdigest()),
        )

    async def on_BlobCreate(self, request: Any, task: str) -> Any:
        blob = self.new("bl")
        urls = api.UploadUrlList(items=[f"{self.url}/blob/{blob}"])
        return api.BlobCreateResponse(blob_ids=[blob], upload_urls=urls)

    async def on_BlobGet(self, request: Any, task: str) -> Any:
        return api.BlobGetResponse(download_url=f"{self.url}/file/blobs/{request.blob_id}")

    async def on_ImageGetOrCreate(self, request: Any, task: str) -> Any:
        """An image is its definition: one that was seen before is not built again. None is ever built."""
        files = sorted(
            (one.filename, one.sha256_hex) for one in self.mounts.get(request.image.context_mount_id, [])
        )
        definition = api.Image.FromString(request.image.SerializeToString())
        definition.context_mount_id = ""
        key = definition.SerializeToString(deterministic=True) + repr(files).encode()
        image = self.image_ids.setdefault(key, f"im-{len(self.image_ids) + 1:06d}")
        self.images[image] = request.image
        result = api.GenericResult(status=api.GenericResult.GENERIC_STATUS_SUCCESS)
        metadata = api.ImageMetadata(image_builder_version="2025.06", python_version_info="3.12.1")
        return api.ImageGetOrCreateResponse(image_id=image, result=result, metadata=metadata)

    # -- functions and calls

    def handle(self, function_id: str, name: str) -> Any:
        methods = {}
        if function_id in self.web:
            methods["web"] = api.FunctionHandleMetadata(
                function_name=name.replace("*", "web"),
                function_type=api.Function.FUNCTION_TYPE_GENERATOR,
                is_method=True,
                use_method_name="web",
                web_url=self.web[function_id].url,
                definition_id=f"de-{function_id}",
                app_id=self.owner[function_id],
            )
        return api.FunctionHandleMetadata(
            method_handle_metadata=methods,
            function_name=name,
            function_type=api.Function.FUNCTION_TYPE_FUNCTION,
            definition_id=f"de-{function_id}",
            app_id=self.owner[function_id],
            supported_input_formats=PICKLE,
            supported_output_formats=PICKLE,
        )

    async def on_FunctionPrecreate(self, request: Any, task: str) -> Any:
        function_id = request.existing_function_id or self.new("fu")
        self.owner[function_id] = request.app_id
        if "web" in request.method_definitions and function_id not in self.web:
            self.web[function_id] = WebFunction(self, function_id)
            await self.web[function_id].listen()
        self.apps[request.app_id]["layout"].function_ids[request.function_name] = function_id
        metadata = self.handle(function_id, request.function_name)
        return api.FunctionPrecreateResponse(function_id=function_id, handle_metadata=metadata)

    async def on_FunctionCreate(self, request: Any, task: str) -> Any:
        function_id, function = request.existing_function_id, request.function
        if request.function_data.ranked_functions:  # a list of GPUs, the most wanted first
            function = request.function_data.ranked_functions[0].function
        self.functions[function_id] = function
        data = self.function_data(function)
        metadata = self.handle(function_id, function.function_name)
        return api.FunctionCreateResponse(
            function_id=function_id, function=function, function_data=data, handle_metadata=metadata
        )

    def function_data(self, function: Any) -> Any:
        ranked = [api.FunctionData.RankedFunction(rank=0, function=function)]
        return api.FunctionData(
            module_name=function.module_name, function_name=function.function_name, ranked_functions=ranked
        )

    async def on_FunctionGetById(self, request: Any, task: str) -> Any:
        function = self.functions[request.function_id]
        metadata = self.handle(request.function_id, function.function_name)
        return api.FunctionGetByIdResponse(function=self.function_data(function), handle_metadata=metadata)

    async def on_FunctionMap(self, request: Any, task: str) -> Any:
        call = Call(id=self.new("fc"), function_id=request.function_id, input_id=self.new("in"), parent=task)
        self.calls[call.id] = call
        reply = api.FunctionMapResponse(function_call_id=call.id)
        for item in request.pipelined_inputs:
            reply.pipelined_inputs.add(idx=item.idx, input_id=call.input_id)
            self.containers.begin(call, item.input)
        return reply

    async def on_FunctionPutInputs(self, request: Any, task: str) -> Any:
        call = self.calls[request.function_call_id]
        self.containers.begin(call, request.inputs[0].input)
        return api.FunctionPutInputsResponse(
            inputs=[api.FunctionPutInputsResponseItem(idx=0, input_id=call.input_id)]
        )

    async def on_FunctionGetOutputs(self, request: Any, task: str) -> Any:
        call = self.calls.get(request.function_call_id)
        if call is None:
            raise GRPCError(Status.NOT_FOUND, f"Function call {request.function_call_id} not found")
        try:
            await asyncio.wait_for(call.done.wait(), max(request.timeout, 0.01))
        except TimeoutError:
            return api.FunctionGetOutputsResponse(num_unfinished_inputs=1)
        item = api.FunctionGetOutputsItem(
            result=call.result, input_id=call.input_id, data_format=call.data_format
        )
        return api.FunctionGetOutputsResponse(outputs=[item])

    async def on_FunctionCallFromId(self, request: Any, task: str) -> Any:
        call = self.calls[request.function_call_id]
        metadata = api.FunctionCallHandleMetadata(
            function_id=call.function_id, app_id=self.owner[call.function_id]
        )
        return api.FunctionCallFromIdResponse(function_call_id=call.id, num_inputs=1, metadata=metadata)

    async def on_FunctionCallCancel(self, request: Any, task: str) -> None:
        await self.containers.cancel(
            self.calls[request.function_call_id], terminate=request.terminate_containers
        )

    # -- what containers ask

    async def on_ContainerHeartbeat(self, request: Any, task: str) -> Any:
        call = self.containers.running.get(task)
        if call and call.cancelled and not call.told:
            call.told = True
            event = api.CancelInputEvent(input_ids=[call.input_id])
            return api.ContainerHeartbeatResponse(cancel_input_event=event)
        return None

    async def on_FunctionGetInputs(self, request: Any, task: str) -> Any:
        call = self.containers.running[task]
        if call.web:
            return await call.web.next_input()
        call.taken = True
        item = api.FunctionGetInputsItem(
            input_id=call.input_id, input=call.input, function_call_id=call.id, retry_count=call.retries
        )
        return api.FunctionGetInputsResponse(inputs=[item])

    async def on_FunctionPutOutputs(self, request: Any, task: str) -> None:
        call = self.containers.running[task]
        if call.web:
            for output in request.outputs:
                call.web.ended(output.input_id)
            return
        self.containers.put_output(task, request.outputs[0].result, request.outputs[0].data_format)

    async def on_TaskResult(self, request: Any, task: str) -> None:
        self.containers.put_output(task, request.result, api.DATA_FORMAT_PICKLE)

    # -- logs

    def log(self, app: str, call: str, text: str) -> None:
        entry = api.TaskLogs(data=text, timestamp=time.time(), function_call_id=call, file_descriptor=1)
        self.apps[app]["logs"].append(entry)
        self.apps[app]["news"].set()

    async def on_AppFetchLogs(self, request: Any, task: str) -> Any:
        batch = api.TaskLogsBatch(items=self.apps[request.app_id]["logs"][-request.limit :])
        return api.AppFetchLogsResponse(batches=[batch])

    async def stream_logs(self, request: Any, stream: Any) -> None:
        app, deadline = self.apps[request.app_id], time.monotonic() + (request.timeout or 55)
        position = int(request.last_entry_id or 0)
        while True:
            app["news"].clear()
            items = app["logs"][position:]
            position = len(app["logs"])
            wanted = [one for one in items if request.function_call_id in ("", one.function_call_id)]
            over = self.app_is_over(request.app_id)
            if wanted or over:
                await stream.send_message(
                    api.TaskLogsBatch(items=wanted, entry_id=str(position), app_done=over)
                )
            if over or time.monotonic() > deadline:
                return
            try:
                await asyncio.wait_for(app["news"].wait(), 1)
            except TimeoutError:
                continue

    def app_is_over(self, app: str) -> bool:
        mine = [call for call in self.calls.values() if self.owner[call.function_id] == app]
        return self.apps[app]["stopped"] or (bool(mine) and all(call.done.is_set() for call in mine))


def blob_server(state: Path) -> web.Application:
    """Where the client puts and gets what is too large for a message."""

    async def put(request: web.Request) -> web.Response:
        (state / "blobs" / request.match_info["name"]).write_bytes(await request.read())
        return web.Response(headers={"ETag": '"x"'}, body=b"put")

    async def get(request: web.Request) -> web.Response:
        content = (state / request.match_info["path"]).read_bytes()
        if "start" in request.query:
            start = int(request.query["start"])
            content = content[start : start + BLOCK]
        return web.Response(body=content)

    application = web.Application(client_max_size=1 << 30)
    application.router.add_put("/blob/{name}", put)
    application.router.add_get("/file/{path:.*}", get)
    return application
