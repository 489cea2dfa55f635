"""The Rust extension, which an install without a Rust compiler lacks."""

import importlib
import importlib.util
from types import ModuleType


def load_extension() -> ModuleType | None:
    """Return nanolit._rustbpe, or None if it was not built; ImportError if it is there but doesn't load."""
    if importlib.util.find_spec("nanolit._rustbpe") is None:
        return None
    try:
        return importlib.import_module("nanolit._rustbpe")
    except ImportError as error:
        raise ImportError(
            f"nanolit's Rust extension is installed but does not load ({error}); install nanolit again with "
            "the Python that runs it"
        ) from error
