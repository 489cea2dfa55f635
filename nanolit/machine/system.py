"""This machine and this install, as git, NVIDIA's driver and W&B know them: torch would take seconds."""

import importlib
import importlib.metadata
import importlib.util
import netrc
import os
import subprocess
from types import ModuleType

from nanolit.machine.paths import PACKAGE


def output(*command: str) -> str | None:
    """Return what a program prints; None when it isn't there, fails or takes ten seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def under_torchrun() -> bool:
    """Tell whether this process is a rank that jobs/ranks.py or torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launched_rank() -> int:
    """Return the rank that jobs/ranks.py or torchrun gave: known before there is a process group."""
    return int(os.environ.get("RANK", "0")) if under_torchrun() else 0


def launched_here() -> int:
    """Return how many ranks jobs/ranks.py or torchrun started on this machine, 1 if neither did."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if under_torchrun() else 1


def chat_password() -> str | None:
    """Return NANOLIT_CHAT_PASSWORD without spaces around it, None if it is not set.

    ValueError for one that nobody could type or send: it would shut everybody out.
    """
    given = os.environ.get("NANOLIT_CHAT_PASSWORD", "")
    password = given.strip()
    if (given and not password) or any("\udc80" <= character <= "\udcff" for character in password):
        raise ValueError("NANOLIT_CHAT_PASSWORD is blank, or not UTF-8 text; set another password")
    return password or None


def available_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_of_rank() -> int:
    """Return this process's share of the cores where several ranks train on one machine."""
    return max(1, available_cores() // launched_here())


# Threads that turn text into ids ahead of training: at most four, and never more than the rank's cores, which
# they would take from its training.
ENCODERS = min(4, cores_of_rank())


def commit() -> str | None:
    """Return the checkout's short commit, with -dirty where files differ from it; None without a checkout."""
    if code := os.environ.get("NANOLIT_CODE"):
        return code.partition("+")[2] or None
    if not (PACKAGE.parent / ".git").exists():
        return None
    return output("git", "-C", str(PACKAGE.parent), "describe", "--always", "--dirty", "--exclude=*")


def load_extension() -> ModuleType | None:
    """Return the Rust extension, nanolit._rustbpe; None where no compiler was there to build it."""
    if importlib.util.find_spec("nanolit._rustbpe") is None:
        return None
    try:
        return importlib.import_module("nanolit._rustbpe")
    except ImportError as error:
        raise ImportError(
            f"NanoLit's Rust extension is installed but does not load ({error}); install NanoLit again with "
            "the Python that runs it"
        ) from error


def version(distribution: str) -> str | None:
    """Return the version of an installed distribution."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def code_version() -> str:
    """Return nanolit's version, with the commit where the code is a checkout: 0.1.0+3fa9c1d.

    Where the code was sent to a rented machine, NANOLIT_CODE says what it is: neither git nor an installed
    distribution is there.
    """
    return os.environ.get("NANOLIT_CODE") or "+".join(filter(None, (version("nanolit") or "0", commit())))


def gpu_names() -> list[str]:
    """Return the name of every NVIDIA GPU that the driver lists."""
    return (output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "").splitlines()


def wandb_key() -> bool:
    """Return True if W&B is logged in here, by the environment or by `wandb login`."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") == "online":
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
