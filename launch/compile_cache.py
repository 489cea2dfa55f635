"""Compiled kernels, kept between containers: one tar on the volume, unpacked on the machine's own disk.

A machine runs one stage once. Without this each stage, each resume and each job of a sweep compiles the same
model again: 29 s for a d12 on an H200, 5 s with the cache.
"""

import importlib.metadata
import shutil
import tarfile
import tempfile
from pathlib import Path

from nanolit.machine.paths import whole_or_absent
from nanolit.machine.system import gpu_names


class CompileCache:
    """`folder` is on this machine; what the variables of `environment` point to is inside it."""

    def __init__(self, root: str | Path, folder: Path, *, model: str) -> None:
        gpu = next(iter(gpu_names()), "cpu").replace(" ", "-")
        name = f"{model}-{gpu}-torch-{importlib.metadata.version('torch')}.tar"
        self.folder, self.path = folder, Path(root) / "cache" / "compile" / name
        self.environment = {
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "TRITON_CACHE_DIR": str(folder / "triton"),
        }
        folder.mkdir(parents=True)
        if self.path.exists():
            try:
                with tarfile.open(self.path) as tar:
                    tar.extractall(folder, filter="data")
            except (tarfile.TarError, OSError) as error:
                print(f"compiling again: {self.path} cannot be unpacked ({error})", flush=True)
        self.kept = self.files()

    def files(self) -> set[Path]:
        """Return the files that are whole: caches are written under other names first."""
        return {path for path in self.folder.rglob("*") if path.is_file() and ".tmp" not in path.name}

    def tick(self) -> None:
        """Do nothing: kernels are kept with checkpoints and at the end, when they are whole."""

    def keep(self) -> None:
        """Put the cache on the volume if there is something new in it."""
        files = self.files()
        if files <= self.kept:
            return
        with tempfile.TemporaryFile() as local, whole_or_absent(self.path) as target:
            with tarfile.open(fileobj=local, mode="w") as tar:
                for path in sorted(files):
                    if path.exists():
                        tar.add(path, path.relative_to(self.folder))
            local.seek(0)
            with target.open("wb") as file:
                shutil.copyfileobj(local, file, 1 << 24)
        self.kept = files
