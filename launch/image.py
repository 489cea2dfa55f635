"""The container image: locked dependencies, then the Rust extension, and all code last, in one layer.

Nothing else is sent: no .git, no data, no runs, no secrets; `unwanted` decides it by an allowlist.
"""

import atexit
import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import modal

from nanolit.machine.paths import CONF, PACKAGE

LAUNCH = Path(__file__).resolve().parent
BESIDE = LAUNCH.parent  # the checkout, or what pip installs into
IN_WHEEL = LAUNCH / "project"  # where hatch_build.py puts what a checkout has in its root
PROJECT = IN_WHEEL if IN_WHEEL.is_dir() else BESIDE  # has pyproject.toml, uv.lock and rustbpe/
CODE = "/root"  # on the path of Modal's containers
SUFFIXES = {
    *(".py", ".pyi", ".rs", ".toml", ".lock", ".yaml", ".json", ".txt", ".md"),
    *(".css", ".js", ".html", ".parquet", ".zst"),
}
LEFT_OUT = {"__pycache__", "target", "runs", "notebooks", "node_modules", IN_WHEEL.name}
UV = "0.13.9"
RUST = "1.95.0"
MATURIN = "1.16.0"
BUILD_EXTENSION = " && ".join(  # one layer: the compiler, 1 GB, is gone at its end
    (
        f"curl -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain {RUST}",
        ". /root/.cargo/env",
        f"/.uv/uv tool run maturin@{MATURIN} build --release --locked --features python "
        "--manifest-path /src/rustbpe/Cargo.toml --interpreter $(command -v python) --out /src/wheel",
        "python -m zipfile -e /src/wheel/*.whl /src/unpacked",
        f"mkdir -p {CODE}/nanolit",
        f"find /src/unpacked -name '_rustbpe*.so' -exec cp {{}} {CODE}/nanolit/ ';'",
        "rm -rf /root/.cargo /root/.rustup /src/rustbpe/target /src/wheel /src/unpacked",
    )
)


def unwanted(path: Path) -> bool:
    """Tell whether a file stays here; `path` is relative to the folder that is sent."""
    hidden = any(part.startswith(".") or part in LEFT_OUT for part in path.parts)
    return hidden or path.suffix not in SUFFIXES or "secret" in path.name.lower()


def container_image(settings: dict[str, Any], *, root: str) -> modal.Image:
    """Return the image of every function; `settings` are hydra.launcher.image, `root` the volume's path."""
    check_project()
    image = modal.Image.debian_slim(python_version=settings["python"])
    image = image.apt_install("build-essential", "curl", "git", *settings["apt"])
    image = image.uv_sync(str(PROJECT), extras=list(settings["uv_extras"]), uv_version=UV)
    image = image.add_local_dir(PROJECT / "rustbpe", "/src/rustbpe", copy=True, ignore=unwanted)
    image = image.run_commands(BUILD_EXTENSION)
    image = image.env({"HF_HOME": f"{root}/cache/huggingface", "NANOLIT_HOME": root})
    # A copy: it adds to the folder that has the extension, as COPY is documented to. Mounted at start
    # (copy=False) an edit would be no build at all, but nothing in Modal's client says that a mount adds to
    # a folder of the image instead of hiding it.
    return image.add_local_dir(collected(), CODE, copy=True)


@functools.cache
def collected() -> Path:
    """Return a folder with the code as containers have it, the same for all jobs of a sweep.

    It goes when this process ends.
    """
    temporary = tempfile.TemporaryDirectory(prefix="nanolit-code-")
    atexit.register(temporary.cleanup)
    folder = Path(temporary.name)
    for source, target in code_folders():
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            inside = path.relative_to(source)
            if not unwanted(inside):
                place = folder / target / inside
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, place)  # with its time: Modal refuses files younger than the build
    return folder


def code_folders() -> Iterator[tuple[Path, str]]:
    """Yield each folder of the code here, and its place in the image."""
    yield PACKAGE, "nanolit"
    yield CONF, "nanolit/conf"
    yield LAUNCH, "launch"
    for plugin in (BESIDE / "hydra_plugins").glob("nanolit_*"):  # of a wheel; a checkout's are in launch/
        yield plugin, f"launch/hydra_plugins/{plugin.name}"


def check_project() -> None:
    """ValueError where what the image is built from isn't here."""
    needed = ("pyproject.toml", "uv.lock", "rustbpe/Cargo.toml")
    if missing := [name for name in needed if not (PROJECT / name).is_file()]:
        raise ValueError(
            f"{PROJECT} has no {', '.join(missing)}, which the image is built from; submit from a complete "
            "checkout of NanoLit, or install its wheel again"
        )
