"""Places below the one base path, and files: written whole or not at all, and checked when they are read."""

import functools
import hashlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic.config import ExtraValues
    from pydantic_core import ErrorDetails

PACKAGE = Path(__file__).resolve().parent.parent
# The configuration: the checkout's conf/ where there is one, else the copy inside the package
CONF = (PACKAGE.parent if (PACKAGE.parent / "hatch_build.py").exists() else PACKAGE) / "conf"
Json = dict[str, Any]  # an object of a JSON file: its reader checks or converts what it takes from it
STEP = re.compile(r"step_[0-9]+")
LARGEST_TEXT = 1 << 28  # bytes; a vocabulary of 200,000 tokens is 5 MB
DEEPEST = 50  # levels of JSON; a plan has 4
LARGEST_YAML = 100_000  # values; the jobs of this repository have about 300


def home(root: str | Path | None = None) -> Path:
    """Return the base path of all artefacts: `root`, else NANOLIT_HOME, else ./runs."""
    return encodable(expanded(root or os.environ.get("NANOLIT_HOME") or "runs").absolute())


def encodable(path: Path) -> Path:
    """Return the path; ValueError for a name that is not UTF-8, which safetensors and Arrow do not open."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path} has a name that is not UTF-8; rename it") from None
    return path


def expanded(path: str | Path) -> Path:
    """Return the path with ~ or ~USER at its beginning replaced; ValueError for a user that is not here."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path} starts with an unknown user; write the full path") from error


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


def by_step(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, whole or not, the oldest first; other names are passed over."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:  # none would be found, and all steps trained again
        raise ValueError(f"{folder} cannot be read ({error.strerror}); make it readable") from error
    return sorted((folder / name for name in names if STEP.fullmatch(name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


@contextmanager
def whole_or_absent(path: Path) -> Iterator[Path]:
    """Yield a file to fill, which becomes `path` when the block ends and vanishes when it fails.

    A reader of `path` sees the old file or the whole new one, never a part, even after a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix, temporary = f".{path.name}.", None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        sync(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        named = not error.filename or os.path.basename(error.filename).startswith(prefix)
        if error.errno and named:  # a full disk, which has no name, or ours, which nobody knows
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk itself."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_hash(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left in a folder of files and releases that were not whole yet.

    Call it only under the lock of what is written there.
    """
    for path in [*folder.glob(".*.tmp"), *folder.glob(".release.*")]:
        remove(path)


def remove(path: Path) -> None:
    """Remove a folder, a file or a link, not what the link leads to; what can't be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with whole_or_absent(path) as temporary:
        # Half a surrogate pair is written as \ud83d, which in JSON means itself
        encoded = content.encode(errors="backslashreplace") if isinstance(content, str) else content
        temporary.write_bytes(encoded)


def as_null(_constant: str) -> None:
    """Read NaN as null: versions before December 2026 wrote it for a loss that had diverged."""


def write_json(path: Path, content: object) -> None:
    """Write `content` as indented JSON, atomically; a number that is not finite becomes null."""
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError:  # NaN of a run that has diverged
        known = json.loads(json.dumps(content), parse_constant=as_null)
        text = json.dumps(known, indent=2, ensure_ascii=False)
    write_atomically(path, text + "\n")


def write_yaml(path: Path, content: Mapping[str, object]) -> None:
    """Write a mapping as YAML, atomically, its keys in their order."""
    import yaml

    write_atomically(path, yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True))


class DamagedFile(ValueError):
    """A file of ours does not hold what it must; the message is one line with the file and the remedy."""


def _finite(text: str) -> float:
    """Return a number of JSON, which has neither NaN nor infinity."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def read_json(
    path: Path,
    kind: Any = None,
    *,
    remedy: str = "delete it and make it again",
    constant: Callable[[str], float | None] = _finite,
) -> Json:
    """Read the object of a JSON file, checked against `kind`, a TypedDict, where one is given.

    Keys beyond those of `kind` are kept: a newer version may have written them. `constant` reads NaN and
    Infinity, which are refused unless it is given. DamagedFile says what is wrong; ValueError too where the
    file may not be read, FileNotFoundError where there is none.
    """
    return parse_json(read_text(path, remedy=remedy), path, kind, remedy=remedy, constant=constant)


def parse_json(
    text: str | bytes,
    path: Path,
    kind: Any = None,
    *,
    remedy: str,
    constant: Callable[[str], float | None] = _finite,
) -> Json:
    """Return the object of a JSON file that was read from somewhere else; see `read_json`."""
    try:
        content = json.loads(text, object_pairs_hook=_object, parse_float=_finite, parse_constant=constant)
        if _levels(content) > DEEPEST:  # each step of a reader down a value takes several of Python's 1,000
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is not valid JSON ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise DamagedFile(f"{path} holds {type(content).__name__}, not an object; {remedy}")
    if kind is not None:
        check_content(content, kind, path, remedy=remedy)
    return content


def _object(pairs: list[tuple[str, Any]]) -> Json:
    """Return an object's content; ValueError for a repeated key, of which only the last would be read."""
    content = dict(pairs)
    if len(content) < len(pairs):
        (doubled, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {doubled[:40]!r} appears twice")
    return content


def _levels(content: Any) -> int:
    """Return how deep lists and objects are nested."""
    level, layer = 0, [content]
    while layer := [node for node in layer if isinstance(node, dict | list)]:
        level += 1
        layer = [below for node in layer for below in (node.values() if isinstance(node, dict) else node)]
    return level


def check_content(content: Json, kind: Any, path: Path, *, remedy: str, may_lack: int = 0) -> None:
    """DamagedFile names the first key of `content` that is missing, or has another type than in `kind`.

    It may lack keys down to level `may_lack`: 1 are its own.
    """
    if errors := faults(content, kind, may_lack=may_lack):
        first = errors[0]
        key, reason = ".".join(map(str, first["loc"])), first["msg"][0].lower() + first["msg"][1:]
        raise DamagedFile(f"{path} is damaged ({key}: {reason}); {remedy}")


def faults(
    content: Mapping[str, object], kind: Any, *, may_lack: int = 0, extra: "ExtraValues | None" = None
) -> "list[ErrorDetails]":
    """Return pydantic's errors of `content` as a `kind`, without keys that it may lack down to a level."""
    from pydantic import ValidationError  # here: most commands read nothing that needs it

    try:
        _adapter(kind).validate_python(content, strict=True, extra=extra)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
        return [e for e in errors if e["type"] != "missing" or len(e["loc"]) > may_lack]
    return []


@functools.cache
def _adapter(kind: Any) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def read_text(path: Path, *, remedy: str, errors: str = "strict") -> str:
    """Read a text file of ours; ValueError unless it is a readable file of UTF-8, and not far too large."""
    try:
        if (found := check_file(path, remedy=remedy)).st_size > LARGEST_TEXT:
            raise DamagedFile(
                f"{path} is {found.st_size / 1e9:,.1f} GB, too large for a NanoLit file; {remedy}"
            )
        return path.read_text(encoding="utf-8", errors=errors)
    except UnicodeDecodeError as error:
        raise DamagedFile(f"{path} is not UTF-8 text ({error.reason}); {remedy}") from error
    except PermissionError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); make it readable") from error


def check_file(path: Path, *, remedy: str) -> os.stat_result:
    """Return the status of a file; DamagedFile for what is none: reading a pipe would never end."""
    if not stat.S_ISREG((status := path.stat()).st_mode):
        raise DamagedFile(f"{path} is not a file; {remedy}")
    return status


def read_yaml(path: Path, *, remedy: str) -> Any:
    """Read a YAML file without tags; DamagedFile also where its aliases unfold to more than any of ours."""
    import yaml

    text = read_text(path, remedy=remedy)
    try:
        if "!" in text and any(isinstance(token, yaml.TagToken) for token in yaml.scan(text)):
            raise ValueError("it has a tag, !…, which is not allowed")  # some are not checked
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if _unfolded(node, {}) > LARGEST_YAML:
            raise DamagedFile(f"{path} expands to over {LARGEST_YAML:,} values through its aliases; {remedy}")
        return loader.construct_document(node) if node else None
    except DamagedFile:
        raise
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        where = f"line {mark.line + 1}: " if mark else ""
        raise DamagedFile(
            f"{path} is not valid YAML ({where}{' '.join(str(problem).split())}); {remedy}"
        ) from error


def _unfolded(node: Any, counted: dict[int, int]) -> int:
    """Count the values of a YAML node with every alias in full; what holds itself counts as endless.

    ValueError for a key that stands twice in a mapping: it would be read as whichever came last.
    """
    if id(node) not in counted:
        counted[id(node)] = LARGEST_YAML + 1
        below = node.value if isinstance(getattr(node, "value", None), list) else []
        pairs = [item for item in below if isinstance(item, tuple)]
        keys = Counter((key.tag, key.value) for key, _ in pairs if isinstance(key.value, str))
        if len(keys) < keys.total():
            raise ValueError(f"the key {keys.most_common(1)[0][0][1]!r} appears twice")
        parts = [part for item in below for part in (item if isinstance(item, tuple) else (item,))]
        counted[id(node)] = 1 + sum(_unfolded(part, counted) for part in parts)
    return counted[id(node)]


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return a metrics.csv's columns, and a dict of texts for each line, whatever stands in it."""
    header, *lines = read_text(path, remedy="move it away", errors="replace").split("\n")
    names = header.strip().split(",")
    rows = [dict(zip(names, line.strip().split(","), strict=False)) for line in lines if line.strip()]
    return names, rows
