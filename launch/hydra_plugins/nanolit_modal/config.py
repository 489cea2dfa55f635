"""Values that `hydra.launcher.KEY` may have for cluster=modal_*, with types that Hydra enforces."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore


@dataclass
class VolumeConf:
    name: str = "nanolit"
    version: int = 2
    read_only: bool = False


@dataclass
class ImageConf:
    python: str = "3.12"
    uv_extras: list[str] = field(default_factory=lambda: ["cudnn"])  # whose attention the speeds are of
    apt: list[str] = field(default_factory=list)


@dataclass
class ModalLauncherConf:
    """One detached app and one call per job. Sizes in MiB, times in seconds.

    `root` is where all artefacts are in the containers: on the volume `nanolit`, unless `volumes` says
    another. `gpu` may be a list, the most wanted first: Modal takes the first that is free.
    """

    _target_: str = "hydra_plugins.nanolit_modal.launcher.ModalLauncher"
    app_name: str = "nanolit"
    gpu: Any = "H100"  # NAME:COUNT, or a list of them
    cpu: float = 8.0
    memory: int = 65_536
    ephemeral_disk: int | None = None  # None: what Modal gives, 512 GiB
    timeout: int = 86_400
    startup_timeout: int = 1_800
    retries: int = 3
    max_parallel: int = 8
    nodes: int = 1
    rdma: bool = False
    region: str | None = None
    root: str = "/vol"
    volumes: dict[str, VolumeConf] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    image: ImageConf = field(default_factory=ImageConf)
    environment: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    wait: bool = True
    stream_logs: bool = True
    dry_run: bool = False
    show_request: bool = False  # with dry_run, print the whole job as JSON


ConfigStore.instance().store(
    group="hydra/launcher", name="nanolit_modal", node=ModalLauncherConf, provider="nanolit"
)
