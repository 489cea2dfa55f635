"""List the ways to damage a file, for damage.py, chaos.py and fuzz.py."""

import ctypes
import hashlib
import json
import os
import re
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Change = Callable[[bytes], bytes]
HUGE = 1 << 62
BYTES: dict[str, Change] = {
    "empty": lambda old: b"",
    "cut in half": lambda old: old[: len(old) // 2],
    "an extra byte": lambda old: old + b"x",
    "zeros appended": lambda old: old + b"\0\0",
    "all zeros": lambda old: bytes(len(old)),
    "a NUL inside": lambda old: old[: len(old) // 2] + b"\0" + old[len(old) // 2 :],
    "a flipped bit": lambda old: old[:-3] + bytes([old[-3] ^ 1]) + old[-2:] if len(old) > 2 else b"\1",
    "not UTF-8": lambda old: b"\xff\xfe" + old,
    "UTF-16": lambda old: old.decode("latin-1").encode("utf-16"),
    "a byte-order mark": lambda old: b"\xef\xbb\xbf" + old,
    "Windows line endings": lambda old: old.replace(b"\n", b"\r\n"),
    "a long line": lambda old: old + b"9" * 200_000 + b"\n",
    "first line missing": lambda old: old.partition(b"\n")[2],
    "repeated": lambda old: old + old,
    "a list": lambda old: b"[]",
    "null": lambda old: b"null",
    "a string": lambda old: b'"text"',
    "an empty object": lambda old: b"{}",
    "100,000 brackets": lambda old: b"[" * 100_000,
    "100,000 objects": lambda old: b'{"format":' * 100_000,
    "a number of 5,000 digits": lambda old: b'{"format": ' + b"1" * 5000 + b"}",
    "a Python tag": lambda old: b"!!python/object/apply:os.system ['false']",
    "YAML aliases": lambda old: b"a: &a [*a, *a]\nb: &b [*a, *a, *a]\n",
    "negative numbers": lambda old: re.sub(rb"(?<=[ ,:])(?=[1-9])", b"-", old),
    "NaN for numbers": lambda old: re.sub(rb"(?<=: )-?\d[\d.e-]*(?=,?\n)", b"NaN", old),
    "infinite numbers": lambda old: re.sub(rb"(?<=: )-?\d[\d.e-]*(?=,?\n)", b"1e400", old),
    "numbers as strings": lambda old: re.sub(rb"(?<=: )(-?\d[\d.e-]*)(?=,?\n)", rb'"\1"', old),
    "every key twice": lambda old: re.sub(rb'(?m)^( *)("?\w+"?: )(?=[^\s{\[])', rb"\1\g<2>1,\n\1\2", old),
}
ODD = (None, "text", -1, [], {}, 1e300, True, "\x1b]0;title\x07", 2**70, [[]], 0, "", float("nan"), "../../x")


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return a function that replaces a file or a folder by something else."""

    def apply(path: Path) -> None:
        remove(path)
        make(path)

    return apply


def later(path: Path) -> None:
    os.utime(path, (time.time() + 1e9, time.time() + 1e9))


PLACES: dict[str, Callable[[Path], object]] = {
    "missing": remove,
    "a folder": instead(Path.mkdir),
    "a folder with content": instead(lambda path: (path / "step_000009" / "a").mkdir(parents=True)),
    "a pipe": instead(os.mkfifo),
    "a link to itself": instead(lambda path: path.symlink_to(path)),
    "a link to nothing": instead(lambda path: path.symlink_to("/nonexistent/x")),
    "a link to zeros": instead(lambda path: path.symlink_to("/dev/zero")),
    "an empty file": instead(Path.touch),
    "unreadable": lambda path: path.chmod(0),
    "modified in the future": later,
}


@dataclass(frozen=True)
class Damage:
    """A change to a file or folder; `forged` if its hash is updated to match, so that it goes unnoticed."""

    file: Path
    name: str
    apply: Callable[[Path], object]
    forged: bool = False


def damages_of(file: Path, path: Path, *, turn: int = 0) -> Iterator[Damage]:
    """Yield every damage to a file or folder, which is at `path` below some root.

    Each key gets one of the odd values; another `turn` gives it another.
    """
    for name, apply in PLACES.items():
        yield Damage(file, name, apply)
    if path.is_dir():
        return
    for name, change in BYTES.items():
        yield Damage(file, name, changing(change))
    if path.suffix in (".json", ".yaml"):
        yield from edits_of(file, path, turn)
    if path.suffix == ".safetensors":
        for name, change in TENSORS.items():
            yield Damage(file, name, changing(change))
            yield Damage(file, f"{name}, with a matching hash", changing(change, forged=True), forged=True)


def edits_of(file: Path, path: Path, turn: int) -> Iterator[Damage]:
    """Yield damages to one key each; in a checkpoint also with a matching manifest."""
    for index, key in enumerate(keys(load(path))):
        odd, forged = (
            ODD[(index + turn) % len(ODD)],
            path.parent.name.startswith("step_") or path.name == "gpt.json",
        )
        yield Damage(file, f"without {key}", lambda path, key=key: edit(path, key, delete=True))
        yield Damage(file, f"{key} {odd!r}", lambda path, key=key, odd=odd: edit(path, key, odd))
        if forged and path.name != "manifest.json":
            yield Damage(
                file,
                f"{key} {odd!r}, with a matching hash",
                lambda path, key=key, odd=odd: (edit(path, key, odd), fit(path)),
                forged=True,
            )


def changing(change: Change, *, forged: bool = False) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))
        if forged:
            fit(path)

    return apply


def fit(path: Path) -> None:
    """Update the hash of a changed file in the manifest or the meta.json beside it."""
    content, name = path.read_bytes(), path.name
    digest = hashlib.sha256(content).hexdigest()
    if (manifest := path.with_name("manifest.json")).exists():
        node = load(manifest)
        node["files"][name] = {"bytes": len(content), "sha256": digest}
        manifest.write_text(json.dumps(node))
    elif (meta := path.with_name("meta.json")).exists():
        edit(meta, {"gpt.json": "gpt_hash"}.get(name, "weights_hash"), digest)


def load(path: Path) -> Any:
    if path.suffix == ".json":
        return json.loads(path.read_text())  # YAML takes 1e-10 for a text
    import yaml

    return yaml.safe_load(path.read_text())


def keys(content: dict[str, Any]) -> list[str]:
    """Return the keys and those one level below, dotted."""
    inner = {key: value for key, value in content.items() if isinstance(value, dict)}
    return [*content, *(f"{key}.{name}" for key, value in inner.items() for name in list(value)[:4])]


def edit(path: Path, key: str, value: object = None, *, delete: bool = False) -> None:
    """Set or remove one key, as a valid file of its kind."""
    content = load(path)
    first, _, second = key.partition(".")
    parent, name = (content[first], second) if second and first in content else (content, key)
    if delete:
        del parent[name]
    else:
        parent[name] = value
    path.write_text(json.dumps(content))  # which is YAML too


def parted(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the data of a safetensors file."""
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def packed(header: dict[str, Any] | bytes, data: bytes, size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def reheaded(change: Callable[[dict[str, Any], list[str]], object]) -> Change:
    """Return a change of the header; `change` gets it, and the names of its tensors, the largest first."""

    def apply(old: bytes) -> bytes:
        header, data = parted(old)
        names = [name for name in header if name != "__metadata__"]
        change(header, sorted(names, key=lambda name: -header[name]["data_offsets"][1]))
        return packed(header, data)

    return apply


def exchange(header: dict[str, Any], names: list[str]) -> None:
    """Let two tensors of one shape have each other's data."""
    for first in names:
        for second in names:
            if first < second and header[first]["shape"] == header[second]["shape"]:
                header[first], header[second] = header[second], header[first]
                return


TENSORS: dict[str, Change] = {
    "a header of 2^62 bytes": lambda old: packed(*parted(old), size=HUGE),
    "a truncated header": lambda old: old[:20],
    "a header that is not JSON": lambda old: struct.pack("<Q", 8) + b"not JSON" + old[8:],
    "a renamed tensor": reheaded(lambda header, names: header.update({names[0] + "x": header.pop(names[0])})),
    "a missing tensor": reheaded(lambda header, names: header.pop(names[0])),
    "transposed tensors": reheaded(lambda header, names: [header[name]["shape"].reverse() for name in names]),
    "tensors with an extra dimension": reheaded(
        lambda header, names: [header[n].update(shape=[1, *header[n]["shape"]]) for n in names]
    ),
    "integers": reheaded(
        lambda header, names: [header[n].update(dtype=INTEGERS[header[n]["dtype"]]) for n in names]
    ),
    "two swapped tensors": reheaded(exchange),
    "no metadata": reheaded(lambda header, names: header.pop("__metadata__", None)),
    "odd metadata": reheaded(lambda header, names: header.update(__metadata__={"starts": "[1]"})),
    "other starts": reheaded(lambda header, names: header.update(__metadata__={"starts": '{"a": 7}'})),
    "NaN weights": lambda old: packed(parted(old)[0], b"\xff" * len(parted(old)[1])),
    "no tensors": lambda old: packed({}, b""),
}
INTEGERS = {"F32": "I32", "BF16": "I16", "F16": "I16", "F64": "I64", "I64": "F64", "I32": "F32"}


def drop_privileges() -> None:
    """Hold root, in this thread, to the permissions of files, by giving up two capabilities of Linux."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert libc.capget(header, data) == 0
        data[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        assert libc.capset(header, data) == 0
