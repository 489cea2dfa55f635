"""Check what this machine supports, and suggest fixes.

    nanolit doctor root=FOLDER

Exits with code 1 if something that every job needs is broken. Sends one request to the hub, and nothing else.
`python -m launch doctor` checks a Modal account: token, volume, secrets, a GPU.
"""

import errno
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

from nanolit.machine.arguments import Root, read
from nanolit.machine.exit import command
from nanolit.machine.locks import fcntl
from nanolit.machine.paths import expanded
from nanolit.machine.system import code_version, gpu_names, load_extension, output, version, wandb_key
from nanolit.machine.terminal import one_line
from nanolit.model.accounting import multiplies_in_fp8
from nanolit.tasks.sandbox import is_weak, walls

GOOD, MISSING, BROKEN = "ok", "-", "BROKEN"
ROOM = 20e9  # bytes: a d12 with its shards and checkpoints
HUB_SECONDS = 3


@dataclass(frozen=True)
class Finding:
    """One finding, and what to do if the thing is missing or broken."""

    name: str
    state: str
    text: str
    remedy: str = ""


@command
def main(words: Sequence[str]) -> int:
    home = read(Root, words, about=__doc__).home
    findings = []
    with ThreadPoolExecutor() as pool:
        hub = pool.submit(check_hub)  # answers while the others look
        for finding in look(home, hub):
            findings.append(finding)
            print(f"{finding.state:<6} {finding.name:<10} {finding.text}", flush=True)
            if finding.remedy:
                print(f"{'':<17} → {finding.remedy}", flush=True)
    return 1 if any(finding.state == BROKEN for finding in findings) else 0


def look(home: Path, hub: "Future[Finding]") -> Iterator[Finding]:
    """Yield what is found, the quick things first."""
    yield check_python()
    yield check_rust()
    yield from check_folder(home)
    yield check_sandbox()
    yield check_wandb()
    yield check_modal()
    yield from check_gpu()
    yield hub.result()


def check_python() -> Finding:
    memory = psutil.virtual_memory().total / 1e9
    text = (
        f"{platform.python_version()} on {platform.system()} {platform.machine()}, nanolit {code_version()}"
    )
    text += f", {os.cpu_count()} cores, {memory:,.0f} GB"
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not any(map(shutil.which, ("cc", "gcc", "clang"))) or not header.exists():
        remedy = "torch.compile needs a C compiler and Python.h: apt-get install gcc python3-dev"
        return Finding("Python", MISSING, text, remedy)
    return Finding("Python", GOOD, text)


def check_rust() -> Finding:
    try:
        built = load_extension() is not None
    except ImportError as error:
        return Finding("Rust", BROKEN, str(error))
    if built:
        return Finding("Rust", GOOD, "the extension is built: tokenizers train and encode fast")
    remedy = "install Rust 1.85 or newer (https://rustup.rs), then install NanoLit again"
    return Finding(
        "Rust", MISSING, "no extension: tokenizers run in Python, fast enough only for small texts", remedy
    )


def check_folder(home: Path) -> Iterator[Finding]:
    """Write a file where runs go, or would go, and lock it."""
    there = next(folder for folder in (home, *home.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            room = shutil.disk_usage(there).free
            text = f"{room / 1e9:,.0f} GB free for {home}"
            remedy = (
                "" if room > ROOM else "free some space, or point root=FOLDER or NANOLIT_HOME to another disk"
            )
            yield Finding("disk", GOOD if room > ROOM else MISSING, text, remedy)
            yield check_locks(file.fileno())
    except OSError as error:
        remedy = "give root=FOLDER or set NANOLIT_HOME to a folder you can write to"
        yield Finding("disk", BROKEN, f"{home}: {error.strerror or error}", remedy)


def check_locks(file: int) -> Finding:
    try:
        if fcntl is None:
            raise OSError(errno.ENOTSUP, "this system has no flock")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        remedy = (
            "nothing stops two commands from training the same run: run one at a time, or use a local "
            "root=FOLDER"
        )
        return Finding("locks", MISSING, f"not available: {error.strerror}", remedy)
    return Finding("locks", GOOD, "a second command on the same run is refused")


def check_sandbox() -> Finding:
    text = f"layers: {', '.join(walls())}"
    if is_weak():
        remedy = "HumanEval needs Linux with Landlock or user namespaces, or sandbox=weak"
        return Finding("sandbox", MISSING, text, remedy)
    return Finding("sandbox", GOOD, text)


def check_wandb() -> Finding:
    if wandb_key():
        return Finding("W&B", GOOD, "logged in: logger=wandb uploads")
    return Finding(
        "W&B", MISSING, "no key: logger=wandb writes offline", "run wandb login, or set WANDB_API_KEY"
    )


def check_modal() -> Finding:
    file = expanded(os.environ.get("MODAL_CONFIG_PATH") or "~/.modal.toml")
    if "MODAL_TOKEN_ID" in os.environ or file.is_file():
        return Finding("Modal", GOOD, "token found; python -m launch doctor checks it")
    return Finding("Modal", MISSING, "no token: cluster=modal_… can't submit", "run modal token new")


def check_gpu() -> Iterator[Finding]:
    """Ask NVIDIA's driver first: torch is imported only where there is a GPU to ask it about."""
    torch_version = version("torch")
    if torch_version is None or importlib.util.find_spec("torch") is None:
        yield Finding(
            "torch", BROKEN, "not installed", "install NanoLit again: make setup, or pip install -e ."
        )
        return
    names = gpu_names()
    if not names:
        text = f"none (torch {torch_version}): trains on the CPU, enough for the demo and models like d2"
        yield Finding(
            "GPU", MISSING, text, "cluster=modal_h100 rents one; if this machine has one, install its driver"
        )
        return
    import torch

    driver = (output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "").splitlines()
    text = f"{len(names)} × {names[0]}, driver {driver[0] if driver else '?'}, torch {torch.__version__}"
    text += f" (CUDA {torch.version.cuda})"
    if not torch.cuda.is_available():
        remedy = (
            "install a driver for this CUDA version, or the torch build for your driver (https://pytorch.org)"
        )
        yield Finding("GPU", BROKEN, f"{text}: torch can't use it", remedy)
        return
    yield Finding("GPU", GOOD, text)
    yield check_attention()
    yield check_fp8(names[0])


def check_attention() -> Finding:
    from nanolit.kernels.attention import choose_backend
    from nanolit.machine.device import compute_dtype, pick_device

    device = pick_device()
    dtype = compute_dtype(device)
    backend = choose_backend(device, dtype, 128)
    text = f"{backend}, in {str(dtype).removeprefix('torch.')}"
    if backend in ("flash3", "flash4", "cudnn"):
        return Finding("attention", GOOD, text)
    return Finding("attention", MISSING, text, "on Hopper, pip install 'nanolit[cudnn]' is faster")


def check_fp8(gpu: str) -> Finding:
    import torch

    from nanolit.machine.device import ADA

    if torch.cuda.get_device_capability() >= ADA and multiplies_in_fp8(gpu):
        return Finding("fp8", GOOD, "precision=fp8 works, and is worth it from d20 on")
    return Finding("fp8", MISSING, "this GPU can't multiply in 8 bits: use precision=bf16 or fp32")


def check_hub() -> Finding:
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    remedy = "train on data=sample or data=PATH, set HF_ENDPOINT to a mirror, or check HTTPS_PROXY"
    try:
        request = urllib.request.Request(endpoint, method="HEAD")
        with urllib.request.urlopen(request, timeout=HUB_SECONDS):
            pass
    except (OSError, ValueError) as error:  # a page that is refused or missing is an answer too
        if not isinstance(error, urllib.error.HTTPError) or error.code in (502, 503, 504):
            reason = getattr(error, "reason", None)
            why = one_line(reason if isinstance(reason, Exception) else error)
            return Finding("network", MISSING, f"{endpoint} doesn't answer ({why})", remedy)
    return Finding("network", GOOD, f"{endpoint} answers: data, tasks and tokenizers can be downloaded")


if __name__ == "__main__":
    sys.exit(main())
