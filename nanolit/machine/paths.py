"""Places below the one base path, and files that are written whole or not at all."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent
Json = dict[str, Any]  # an object of a JSON file: its reader checks or converts what it takes from it


def home(root: str | Path | None = None) -> Path:
    """Return the base path of all artefacts: `root`, else NANOLIT_HOME, else ./runs."""
    return Path(root or os.environ.get("NANOLIT_HOME") or "runs").expanduser().absolute()


def run_folder(root: str | Path, run: str) -> Path:
    return Path(root) / "runs" / run


def stage_folder(root: str | Path, run: str, stage: str) -> Path:
    return run_folder(root, run) / stage


def tokenizers_folder(root: str | Path) -> Path:
    return Path(root) / "tokenizers"


def dataset_folder(root: str | Path, dataset: str) -> Path:
    return Path(root) / "data" / dataset


def core_folder(root: str | Path) -> Path:
    """Return the folder of CORE's questions, which all runs share."""
    return Path(root) / "eval" / "core"


def conf_folder() -> Path:
    """Return the configuration: the checkout's conf/ where there is one, else the copy inside the package."""
    checkout = PACKAGE.parent
    if (checkout / "hatch_build.py").exists():
        return checkout / "conf"
    return PACKAGE / "conf"


@contextmanager
def whole_or_absent(path: Path) -> Iterator[Path]:
    """Yield a file to fill, which becomes `path` when the block ends and vanishes when it fails.

    A reader of `path` sees the old file or the whole new one, never a part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    try:
        yield Path(temporary)
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with whole_or_absent(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: object) -> None:
    """Write `content` as indented JSON, atomically."""
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; ValueError names the file when it is not valid JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete it and make it again") from error
