"""Builds the Rust extension nanolit._rustbpe while nanolit is installed, or says loudly that it could not.

Without a Rust compiler, or with one too old, the install succeeds and the Python twin serves; any other
failure fails the install. NANOLIT_REQUIRE_RUST=1 insists on the extension. A wheel also gets what an image on
Modal is built from: the lock and the crate.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

OLDEST_RUST = (1, 85)  # edition 2024, and what pyo3 0.30 asks for
FOR_IMAGES = ("pyproject.toml", "uv.lock", "rustbpe/Cargo.toml", "rustbpe/Cargo.lock", "rustbpe/src")
REMEDY = "install Rust 1.85 or newer (https://rustup.rs), then install nanolit again"


class RustExtension(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        return [] if rust_problem() else ["maturin>=1.9,<2"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Put the extension into the wheel, or into the checkout if the install is an editable one."""
        package = Path(self.root) / "nanolit"
        if version != "editable":  # a checkout has them where they are
            for name in FOR_IMAGES:
                build_data["force_include"][str(Path(self.root) / name)] = f"launch/project/{name}"
        if problem := rust_problem():
            if os.environ.get("NANOLIT_REQUIRE_RUST", "0") not in ("", "0"):
                raise RuntimeError(f"NANOLIT_REQUIRE_RUST is set, but {problem}; {REMEDY}")
            say(f"nanolit: {problem}: training tokenizers will be slow, in Python; {REMEDY}")
            if version == "editable":
                for stale in package.glob("_rustbpe*.so"):
                    stale.unlink()
            return
        wheel = build_extension(Path(self.root))
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith((".so", ".pyd")))
            content = archive.read(member)
        library = Path(member).name
        if version == "editable":
            place(content, package / library)
            return
        place(content, wheel.parent / library)
        build_data["force_include"][str(wheel.parent / library)] = f"nanolit/{library}"
        build_data["pure_python"] = False
        build_data["tag"] = wheel.stem.split("-", 2)[2]  # cp311-abi3-<platform>


def rust_problem() -> str | None:
    """What keeps us from building with Rust; None if nothing does."""
    if not shutil.which("cargo"):
        return "no Rust compiler was found (cargo is not on PATH)"
    try:
        answer = subprocess.run(["cargo", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        return f"the Rust compiler does not run ({error})"
    version = re.search(r"(\d+)\.(\d+)", answer)
    if version is None or tuple(map(int, version.groups())) < OLDEST_RUST:
        return f"the Rust compiler is too old ({answer.strip()})"
    return None


def build_extension(root: Path) -> Path:
    """The wheel that maturin makes of rustbpe/."""
    # The script, not `python -m maturin`: that fails in pip's isolated build environment.
    maturin = shutil.which("maturin")
    if maturin is None:
        raise RuntimeError(
            "maturin is missing from the build environment; pip install maturin, then try again"
        )
    out = root / "rustbpe" / "target" / "wheel"
    shutil.rmtree(out, ignore_errors=True)
    command = [maturin, "build", "--release", "--locked", "--features", "python"]
    command += ["--manifest-path", str(root / "rustbpe" / "Cargo.toml"), "--out", str(out)]
    command += ["--interpreter", sys.executable]
    subprocess.run(command, check=True)
    (wheel,) = out.glob("*.whl")
    return wheel


def place(content: bytes, path: Path) -> None:
    """Write by rename: a process that has the old library loaded keeps it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.chmod(0o755)
    temporary.replace(path)


def say(message: str) -> None:
    """On standard error, and on the terminal too: uv and pip hide what a successful build printed."""
    print(message, file=sys.stderr)
    with contextlib.suppress(OSError), open("/dev/tty", "w") as terminal:
        print(f"\n{message}", file=terminal)
