"""Containers: one process of modal's real entrypoint per attempt, with the code that the client uploaded.

Retries follow Modal's rules: an exception or a timeout uses up a retry; a container that ends without an
output (a crash, a preemption) gives the input back to the queue, up to eight times.
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modal_proto import api_pb2 as api

if TYPE_CHECKING:
    from tests.fake_modal.control_plane import ControlPlane

REPOSITORY = Path(__file__).resolve().parent.parent.parent
MOST_CRASHES = 8  # modal's MAX_INTERNAL_FAILURE_COUNT
STATUS = api.GenericResult


@dataclass(kw_only=True)
class Call:
    id: str
    function_id: str
    input_id: str
    parent: str
    input: Any = None
    retries: int = 0
    crashes: int = 0
    placed: bool = False  # among the containers that its function may have
    cancelled: bool = False
    told: bool = False
    taken: bool = False
    result: Any = None
    data_format: int = 0
    web: Any = None  # the WebFunction that this container serves
    at: float = field(default_factory=time.time)
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Containers:
    def __init__(self, plane: "ControlPlane") -> None:
        self.plane = plane
        self.running: dict[str, Call] = {}  # task → call
        self.places: dict[str, asyncio.Semaphore] = {}  # of functions with max_containers
        self.background: set[asyncio.Task[None]] = set()

    def begin(self, call: Call, input: Any) -> None:
        call.input = input
        task = asyncio.create_task(self.attempts(call))
        self.background.add(task)
        task.add_done_callback(self.background.discard)

    async def attempts(self, call: Call) -> None:
        """Run the input in one container after another until it has an output that counts."""
        function = self.plane.functions[call.function_id]
        async with self.place_for(call, function):
            call.placed = True
            await self.until_it_counts(call, function)

    def place_for(self, call: Call, function: Any) -> contextlib.AbstractAsyncContextManager[Any]:
        """Return what an input waits for where its function may have so many containers and no more."""
        if not (most := function.autoscaler_settings.max_containers):
            return contextlib.nullcontext()
        return self.places.setdefault(call.function_id, asyncio.Semaphore(most))

    async def until_it_counts(self, call: Call, function: Any) -> None:
        while not call.done.is_set():
            result, data_format = await self.attempt(call, function)
            failed = result is not None and result.status in (
                STATUS.GENERIC_STATUS_FAILURE,
                STATUS.GENERIC_STATUS_TIMEOUT,
            )
            if call.cancelled:
                result, data_format = (
                    STATUS(status=STATUS.GENERIC_STATUS_TERMINATED, exception="cancelled"),
                    0,
                )
            elif failed and call.retries < function.retry_policy.retries:
                call.retries += 1
                continue
            elif result is None and call.crashes < MOST_CRASHES:
                call.crashes += 1
                continue
            elif result is None:
                result = STATUS(status=STATUS.GENERIC_STATUS_INTERNAL_FAILURE, exception="crashed too often")
            call.result, call.data_format = result, data_format
            call.done.set()

    async def attempt(self, call: Call, function: Any) -> tuple[Any, int]:
        """One container: its output, a timeout, or None when it ended without one."""
        task = self.plane.new("ta")
        folder = self.plane.state / "tasks" / task
        environment = self.furnish(folder, task, call, function)
        output = (folder / "log.txt").open("wb")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "modal._container_entrypoint",
            env=environment,
            cwd=folder / "fs" / "root",
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        (folder / "process.txt").write_text(f"{process.pid} {function.function_name} {call.id}\n")
        call.result, call.taken, call.told = None, False, False
        self.running[task] = call
        try:
            reading = asyncio.create_task(self.read_logs(folder / "log.txt", process, call))
            try:
                await asyncio.wait_for(process.wait(), function.timeout_secs)
            except TimeoutError:
                if call.result is None:
                    call.result = STATUS(status=STATUS.GENERIC_STATUS_TIMEOUT, exception="timed out")
            end_everything(task)
            await process.wait()
            await reading
        finally:
            output.close()
            del self.running[task]
            (folder / "ended.txt").write_text(str(process.returncode))
        return call.result, call.data_format

    async def read_logs(self, path: Path, process: Any, call: Call) -> None:
        """Not through a pipe: asyncio would wait for everybody who holds its end, orphans included."""
        with path.open("rb") as file:
            while True:
                over = process.returncode is not None
                while line := file.readline():
                    self.plane.log(self.plane.owner[call.function_id], call.id, line.decode(errors="replace"))
                if over:
                    return
                await asyncio.sleep(0.1)

    def put_output(self, task: str, result: Any, data_format: int) -> None:
        call = self.running[task]
        call.result, call.data_format = result, data_format

    async def cancel(self, call: Call, *, terminate: bool) -> None:
        call.cancelled = True
        if not (call.placed or call.web):  # it waits, and never gets a place
            call.result = STATUS(status=STATUS.GENERIC_STATUS_TERMINATED, exception="cancelled")
            call.done.set()
        for task, running in self.running.items():
            if running is call and (terminate or not call.taken):
                end_everything(task)

    def furnish(self, folder: Path, task: str, call: Call, function: Any) -> dict[str, str]:
        """The container's files, volumes, arguments and environment."""
        files = folder / "fs"
        (files / "root").mkdir(parents=True)
        for mount in function.mount_ids:
            self.place(self.plane.mounts.get(mount, []), files)
        self.build(function.image_id, files)
        moved = {}  # what would be at this machine's root, or is a part, is below the container's own folder
        for mount in function.volume_mounts:
            path = Path(mount.mount_path)
            if mount.sub_path or len(path.parts) == 2:
                path = files / mount.mount_path.strip("/")
                moved[mount.mount_path] = str(path)
            if not path.is_symlink():
                path.symlink_to(self.plane.volume(mount.volume_id) / mount.sub_path)
        app = self.plane.owner[call.function_id]
        layout = self.plane.layout(app)
        for one in function.object_dependencies:
            layout.objects.add(object_id=one.object_id)
        arguments = api.ContainerArguments(
            task_id=task,
            function_id=call.function_id,
            app_id=app,
            function_def=function,
            app_layout=layout,
            environment_name="main",
        )
        (folder / "arguments").write_bytes(arguments.SerializeToString())
        secrets = [self.plane.secrets[one.removeprefix("st-")] for one in function.secret_ids]
        kept = {
            key: os.environ[key] for key in ("PATH", "HOME", "OMP_NUM_THREADS", "TMPDIR") if key in os.environ
        }
        return {
            **kept,
            **image_environment(self.plane, function.image_id),
            **{key: moved.get(value, value) for secret in secrets for key, value in secret.items()},
            "PYTHONPATH": str(files / "root"),
            "PYTHONUNBUFFERED": "1",
            "MODAL_SERVER_URL": self.plane.url_of_rpc,
            "MODAL_IS_REMOTE": "1",
            "MODAL_TASK_ID": task,
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(folder / "arguments"),
            "MODAL_OVERRIDE_HEADERS": f"x-fake-task:{task}",
            "MODAL_HEARTBEAT_INTERVAL": "1",
            "MODAL_CONFIG_PATH": str(folder / "no-config"),
        }

    def place(self, mount: list[Any], folder: Path) -> None:
        for one in mount:
            path = folder / one.filename.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.plane.files[one.sha256_hex])

    def build(self, image_id: str, files: Path) -> None:
        """COPY is done; RUN and FROM are not: the container uses the test's own environment.

        Of RUN one thing is done, what ours builds: the Rust extension, copied from the checkout if it has it.
        """
        image = self.plane.images[image_id]
        for base in image.base_images:
            self.build(base.image_id, files)
        for command in image.dockerfile_commands:
            if match := re.fullmatch(r"COPY \. (/\S*)", command):
                self.place(self.plane.mounts[image.context_mount_id], files / match[1].strip("/"))
            if "maturin" in command:
                for library in (REPOSITORY / "nanolit").glob("_rustbpe*.so"):
                    (files / "root" / "nanolit").mkdir(parents=True, exist_ok=True)
                    shutil.copy(library, files / "root" / "nanolit")


def image_environment(plane: "ControlPlane", image_id: str) -> dict[str, str]:
    """The ENV lines of an image and its bases, but PATH and PYTHONPATH, which are the test's."""
    found: dict[str, str] = {}
    image = plane.images[image_id]
    for base in image.base_images:
        found |= image_environment(plane, base.image_id)
    for command in image.dockerfile_commands:
        if (match := re.fullmatch(r"ENV (\w+)=(.*)", command)) and "PATH" not in match[1]:
            found[match[1]] = match[2].strip("'\"")
    return found


def end_everything(task: str) -> None:
    """What ends with a container: every process that has its MODAL_TASK_ID."""
    marker = f"MODAL_TASK_ID={task}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if marker in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
