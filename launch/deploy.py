"""A chat to Modal: `python -m nanolit.chat run=RUN web=true cluster=modal_a10g`.

An app of its own that stays: it wakes with a request and sleeps two minutes after the last, and the same
command again puts the newest release and code behind the same address.
"""

from __future__ import annotations

import json
import re
import secrets as tokens
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, cast

import modal
from typing_extensions import TypedDict

from launch.chats import record_path, stored_chat
from launch.gpus import gpus_of, same_gpu
from launch.image import check_project, container_image
from launch.progress import read_volume_json
from launch.serve import labelled
from launch.submit import explain, volume
from launch.uploads import artefacts, upload_once
from nanolit.config.compose import compose_config
from nanolit.config.schema import MODEL_STAGES, Cluster
from nanolit.machine.arguments import choose
from nanolit.machine.paths import Json, as_null, read_json, run_folder, write_json
from nanolit.machine.system import chat_password, code_version
from nanolit.model.accounting import gpu_memory_gib
from nanolit.planning.costs import cost

if TYPE_CHECKING:
    from nanolit.chat.__main__ import Settings

CORES, LEAST_MEMORY = 2.0, 16_384  # MiB
IDLE_SECONDS, INPUT_SECONDS, START_SECONDS = 120, 900, 900
MOST_REQUESTS = 100  # at once, in the one container; how many are answered at once is the chat's to say
MONTH_HOURS = 720
LONGEST_NAME = 32  # of 63 in an address, which the workspace and "nanolit" are in too
RELEASE, KERNELS = "/release", "/kernels"
DRAWING = ("temperature", "top_k", "max_tokens", "seed")  # how replies are drawn: the chat's Defaults
AGAIN = "copy or convert the release again"


class Described(TypedDict):
    """The fields that are read of a release's gpt.json."""

    context: int


class Meta(TypedDict):
    """The fields that are read of a release's meta.json."""

    step: NotRequired[int | None]


@dataclass(frozen=True, kw_only=True)
class Found:
    """A run's release, here (`folder`), on the volume (`place`), or both; `size` is that of the weights."""

    run: str
    stage: str
    meta: Json
    size: int
    context: int
    folder: Path | None = None
    place: str | None = None

    @property
    def name(self) -> str:
        return f"{self.run}/{self.stage}"


def deploy(wish: Settings, *, words: Sequence[str]) -> None:
    """Deploy or update the chat, and print where it is; ValueError before any call for wrong settings.

    `words` are all settings but the run, as they were typed.
    """
    machine, settings = machine_of(str(wish.cluster))
    run, home = str(wish.run), wish.home
    check_project()
    check_wish(wish)
    name = checked_name(wish.name or run.partition("/")[0], given=wish.name is not None)
    here = release_here(run, home)
    check_room(wish, here)
    if wish.dry_run:
        print(described(here.name if here else run, here, machine, wish))
        where = "would be uploaded if it is not on the volume" if here else "would be looked up on the volume"
        print(f"dry run: nothing was deployed; the release {where}, the app is nanolit-chat-{name}")
        return
    path, store = record_path(home, name), artefacts(settings)
    before = stored_chat(path)["place"] if path.exists() else ""
    try:
        found = release_there(run, store, here)
        check_room(wish, found)
        print(described(found.name, found, machine, wish), flush=True)
        there, entrance = put_there(name, wish, settings, store, found)
    except modal.exception.Error as error:
        raise ValueError(explain(error)) from error
    write_json(path, {**there, **recorded(wish, words, found, machine)})
    print(f"{there['url']}   {entrance}\nAPI: {there['url']}/v1, {key_text(wish)}")
    print(f"python -m launch stop chat:{name} stops it; the same command again updates it")
    if before != there["place"] and before.startswith(f"{uploads_of(name)}/"):
        remove_upload(store, before)


def put_there(
    name: str, wish: Settings, settings: dict[str, Any], store: modal.Volume, found: Found
) -> tuple[Json, str]:
    """Upload the release if need be, deploy the app, and return where it all is and what lets people in."""
    place = found.place or upload_once(cast(Path, found.folder), store, folder=uploads_of(name))
    secret, entrance = password_secret(name, wish, settings["environment"])
    app, chat = define(name, wish, settings, place, found, secret)
    with modal.enable_output():
        app.deploy(strategy="recreate", environment_name=settings["environment"])
    there = {"name": name, "app": app.app_id, "app_name": app.name, "url": chat().web.get_web_url()}
    gpu = gpus_of(settings)[0].partition(":")[0]
    return {**there, "place": place, "environment": settings["environment"], "gpu": gpu}, entrance


def uploads_of(name: str) -> str:
    """Return the volume's folder for releases of this chat alone: it may remove what it served before."""
    return f"chats/{name}"


def remove_upload(store: modal.Volume, place: str) -> None:
    """Remove a release that the chat served before this deployment; not being able to is only said."""
    folder = str(Path(place).parent)
    try:
        store.remove_file(folder, recursive=True)
        print(f"removed {folder} from the volume: the previously served release")
    except (FileNotFoundError, modal.exception.Error) as error:
        print(f"{folder} on the volume is no longer served, but could not be removed: {error}")


def recorded(wish: Settings, words: Sequence[str], found: Found, machine: Cluster) -> Json:
    """Return what the chat's record holds besides its address and place."""
    return {
        "format": 1,
        "command": shlex.join(["python", "-m", "nanolit.chat", f"run={found.name}", *words]),
        "release": found.name,
        "step": found.meta.get("step"),
        "keep_warm": wish.keep_warm,
        "dollars_per_hour": dollars_per_hour(machine),
        "deployed": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "code": code_version(),
    }


def machine_of(cluster: str) -> tuple[Cluster, dict[str, Any]]:
    """Return the cluster as it is priced, and the launcher's settings; ValueError unless it is one GPU."""
    from hydra_plugins.nanolit_modal.launcher import launcher_settings, plain, validate

    config = compose_config([f"cluster={cluster}"])
    machine = cast(Cluster, {**plain(config.cluster), "cpu": CORES, "memory": LEAST_MEMORY})
    if machine["kind"] != "modal":
        raise ValueError(
            f"cluster={cluster} can't serve a chat; give a Modal cluster with one GPU, such as modal_a10g"
        )
    if (machine["devices"], machine["nodes"]) != (1, 1):
        gpus = machine["devices"] * machine["nodes"]
        raise ValueError(
            f"cluster={cluster} has {gpus} GPUs, but a chat uses one; give cluster=modal_a10g or modal_h100"
        )
    settings = launcher_settings(config)
    validate(**settings)
    return machine, settings


def check_wish(wish: Settings) -> None:
    """ValueError for settings that do not go together."""
    if wish.public and wish.auth == "modal":
        raise ValueError("public=true lets everyone in, auth=modal only Modal's tokens; give one of them")


def check_room(wish: Settings, found: Found | None) -> None:
    """ValueError for replies longer than the model's context."""
    most = wish.max_tokens
    if found and most and most >= found.context:
        raise ValueError(f"max_tokens ({most:,}) must be below the model's context ({found.context:,})")


def checked_name(name: str, *, given: bool) -> str:
    """Return a chat's name as an address may have it: lower case, digits, hyphens."""
    fit = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not fit or len(fit) > LONGEST_NAME or (given and fit != name):
        raise ValueError(
            f"name={name} cannot be part of an address; give name= with 1 to {LONGEST_NAME} of a-z, 0-9 and -"
        )
    return fit


def release_here(run: str, root: Path) -> Found | None:
    """Return the run's release on this machine: its last stage's, unless the stage is given."""
    name, _, given = run.partition("/")
    for stage in [choose(given, MODEL_STAGES, kind="stage")] if given else reversed(MODEL_STAGES):
        folder = run_folder(root, name) / stage / "release"
        if (folder / "meta.json").is_file() and (folder / "model.safetensors").is_file():
            gpt = read_json(folder / "gpt.json", Described, remedy=AGAIN)
            meta = read_json(folder / "meta.json", Meta, remedy=AGAIN, constant=as_null)
            size = (folder / "model.safetensors").stat().st_size
            return Found(run=name, stage=stage, meta=meta, size=size, context=gpt["context"], folder=folder)
    return None


def release_there(run: str, store: modal.Volume, here: Found | None) -> Found:
    """Return the release on the volume, unless the one here is another; ValueError where it is nowhere."""
    name, _, given = run.partition("/")
    stages = [given] if given else [here.stage] if here else [*reversed(MODEL_STAGES)]
    for stage in stages:
        place = f"runs/{name}/{stage}/release"
        meta = read_volume_json(store, f"{place}/meta.json", Meta)
        if meta and (here is None or meta == here.meta):
            sizes = {Path(entry.path).name: entry.size for entry in store.listdir(place)}
            gpt = read_volume_json(store, f"{place}/gpt.json", Described)
            if gpt and (size := sizes.get("model.safetensors")):
                return Found(run=name, stage=stage, meta=meta, size=size, context=gpt["context"], place=place)
    if here is None:
        try:
            runs = sorted(Path(entry.path).name for entry in store.listdir("runs"))
        except (FileNotFoundError, modal.exception.NotFoundError):
            runs = []
        raise ValueError(
            f"run {run} has no release here or on the volume {store.name}; "
            f"runs there: {', '.join(runs) or 'none'}"
        )
    return here


def described(name: str, found: Found | None, machine: Cluster, wish: Settings) -> str:
    """Return what is deployed: the model, the machine, the cost, and a line for each special setting."""
    gpu, memory = str(machine["gpu"]), gpu_memory_gib(str(machine["gpu"]))
    model = name
    if found:
        size = f"{found.size / 1e9:,.1f} GB" if found.size > 1e8 else f"{found.size / 1e6:,.1f} MB"
        model += f", step {found.meta.get('step') or 0:,}, {size}"
    room = ""
    if found and memory:
        verdict = "fits" if found.size * 1.25 < memory * 2**30 else "does not fit"
        room = f" ({memory:.0f} GiB): {verdict}"
    rate = dollars_per_hour(machine)
    price = "conf/prices.yaml has no price for it" if rate is None else f"${rate:,.2f} per hour"
    lines = [f"{model} → one {gpu}{room}"]
    if wish.keep_warm:
        month = "" if rate is None else f", about ${rate * MONTH_HOURS:,.0f} per month"
        lines.append(f"{price}{month}: keep_warm={wish.keep_warm}, it never sleeps")
    else:
        lines.append(
            f"{price} while someone chats and for {IDLE_SECONDS // 60} minutes after, otherwise nothing"
        )
    if wish.public:
        lines.append("public=true: anyone with the address can use it, at your cost")
    if wish.auth == "modal":
        lines.append("auth=modal: only the API; the page could not send Modal's tokens")
    if wish.gpu_snapshot:
        lines.append("gpu_snapshot=true: the snapshot includes the GPU's memory (experimental at Modal)")
    if wish.domains:
        lines.append(f"also at {', '.join(wish.domains)}, once its DNS is set as Modal's dashboard says")
    return "\n".join(lines)


def dollars_per_hour(machine: Cluster) -> float | None:
    priced = cast(Cluster, {**machine, "gpu": same_gpu(str(machine["gpu"]))})
    known = cost("base", {"gpu": str(machine["gpu"]), "hours": 1.0, "total_hours": 1.0}, priced)
    return known and known["dollars_per_hour"]


def is_locked(wish: Settings) -> bool:
    """Tell whether a password is asked for. Modal's proxy tokens need none, and no browser sends them."""
    return wish.auth == "password" and not wish.public


def key_text(wish: Settings) -> str:
    """Return what a request to the API has to carry."""
    if wish.auth == "modal":
        return "with the headers Modal-Key and Modal-Secret of a proxy token (modal.com/settings)"
    return "the key is the password" if is_locked(wish) else "without a key"


def password_secret(name: str, wish: Settings, environment: str | None) -> tuple[modal.Secret | None, str]:
    """Return the secret that holds the password, and what to tell of it. One that exists is kept."""
    given = chat_password()
    if not is_locked(wish):
        unused = ", NANOLIT_CHAT_PASSWORD is not used" if given else ""
        return None, f"no password{unused}: {'public=true' if wish.public else 'auth=modal'}"
    key = f"nanolit-chat-{name}"
    secret = modal.Secret.from_name(key, environment_name=environment)
    try:
        secret.hydrate()
        if given:
            secret.update({"NANOLIT_CHAT_PASSWORD": given})
        told = "password: as in NANOLIT_CHAT_PASSWORD" if given else "password: as before"
    except modal.exception.NotFoundError:
        password = given or tokens.token_urlsafe(9)
        content = {"NANOLIT_CHAT_PASSWORD": password}
        modal.Secret.objects.create(key, content, environment_name=environment)
        secret = modal.Secret.from_name(key, environment_name=environment)
        told = "password: as in NANOLIT_CHAT_PASSWORD" if given else f"password: {password}"
    return secret, f"{told} (kept in the secret {key})"


def define(
    name: str, wish: Settings, settings: dict[str, Any], place: str, found: Found, secret: modal.Secret | None
) -> tuple[modal.App, Any]:
    """Return the app and its class."""
    app = modal.App(f"nanolit-chat-{name}", include_source=False, tags={"chat": name})
    store = artefacts(settings)
    memory = max(LEAST_MEMORY, 3 * found.size // 2**20)
    drawing = {key: getattr(wish, key) for key in DRAWING}
    serving = {"name": found.name, "hosts": [*wish.domains], "page": wish.auth != "modal"}
    serving["locked"] = is_locked(wish)
    serving = json.dumps({**serving, "gpu_snapshot": wish.gpu_snapshot, "defaults": drawing})
    served = labelled(f"nanolit-{name}", domains=wish.domains, proxy_auth=wish.auth == "modal")
    chat = app.cls(
        image=container_image(settings["image"], root=settings["root"]),
        gpu=gpus_of(settings)[0],
        cpu=CORES,
        memory=memory,
        env={
            "NANOLIT_CODE": code_version(),
            "NANOLIT_RELEASE": RELEASE,
            "NANOLIT_SERVE": serving,
            "TRITON_CACHE_DIR": KERNELS,
        },
        secrets=[secret] if secret else [],
        # Compiling all kernels takes half a minute, finding them compiled two seconds (d26, H200)
        volumes={
            RELEASE: store.with_mount_options(read_only=True, sub_path=place),
            KERNELS: volume(
                {"name": "nanolit-kernels", "version": 2, "read_only": False}, settings["environment"]
            ),
        },
        min_containers=wish.keep_warm,
        max_containers=1,
        scaledown_window=IDLE_SECONDS,
        timeout=INPUT_SECONDS,
        startup_timeout=START_SECONDS,
        region=settings["region"],
        enable_memory_snapshot=True,
        experimental_options={"enable_gpu_snapshot": True} if wish.gpu_snapshot else {},
    )(modal.concurrent(max_inputs=MOST_REQUESTS)(served))
    return app, chat
