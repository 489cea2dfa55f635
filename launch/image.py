"""The container image: locked dependencies, then the Rust extension, the code last: an edit is a copy.

Nothing else is sent: no .git, no data, no runs, no secrets; `unwanted` decides it by an allowlist.
"""

from pathlib import Path
from typing import Any

import modal

CHECKOUT = Path(__file__).resolve().parent.parent
CODE = "/root"  # on the path of Modal's containers
SUFFIXES = {
    ".css",
    ".js",
    ".py",
    ".pyi",
    ".yaml",
    ".rs",
    ".toml",
    ".lock",
    ".txt",
    ".md",
    ".parquet",
    ".zst",
    ".json",
    ".html",
}
LEFT_OUT = {"__pycache__", "target", "runs", "notebooks", "node_modules"}
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
    """Whether a file stays here; `path` is relative to the folder that is sent."""
    hidden = any(part.startswith(".") or part in LEFT_OUT for part in path.parts)
    return hidden or path.suffix not in SUFFIXES or "secret" in path.name.lower()


def container_image(settings: dict[str, Any], *, root: str) -> modal.Image:
    """The image of every function; `settings` are hydra.launcher.image, `root` the volume's path."""
    check_checkout()
    image = modal.Image.debian_slim(python_version=settings["python"])
    image = image.apt_install("build-essential", "curl", "git", *settings["apt"])
    image = image.uv_sync(str(CHECKOUT), extras=list(settings["uv_extras"]), uv_version=UV)
    image = image.add_local_dir(CHECKOUT / "rustbpe", "/src/rustbpe", copy=True, ignore=unwanted)
    image = image.run_commands(BUILD_EXTENSION)
    image = image.env({"HF_HOME": f"{root}/cache/huggingface", "NANOLIT_HOME": root})
    for folder, target in (("conf", "nanolit/conf"), ("launch", "launch"), ("nanolit", "nanolit")):
        image = image.add_local_dir(CHECKOUT / folder, f"{CODE}/{target}", copy=True, ignore=unwanted)
    return image


def check_checkout() -> None:
    """ValueError when what the image is built from isn't here, as with a nanolit that pip installed."""
    needed = ("pyproject.toml", "uv.lock", "rustbpe/Cargo.toml", "conf/config.yaml")
    if missing := [name for name in needed if not (CHECKOUT / name).is_file()]:
        raise ValueError(
            f"{CHECKOUT} has no {', '.join(missing)}, which the image is built from; submit from a "
            "checkout of nanolit"
        )
