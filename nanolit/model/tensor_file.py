"""The tensors of a safetensors file, each read when it is asked for.

They are read, never mapped: a mapped file that shrinks, or a disk that fails, ends the process by SIGBUS.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from nanolit.machine.paths import DamagedFile


class TensorFile(Mapping[str, Tensor]):
    """Tensors by name, their shapes and types; DamagedFile, with the remedy, for a file that is not whole."""

    def __init__(self, path: Path, *, remedy: str) -> None:
        self.path, self.remedy = path, remedy
        path.open("rb").close()  # safetensors says "no such file" of one that may not be read
        with self._refused():
            self._file = safe_open(path, "pt", backend="pread")
            self.metadata: dict[str, str] = self._file.metadata() or {}
            slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118
            self.shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            self.dtypes: dict[str, str] = {name: part.get_dtype() for name, part in slices.items()}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        with self._refused():
            return self._file.get_tensor(name)

    def part(self, name: str, start: int, stop: int) -> Tensor:
        """Return a range of a tensor's first dimension; nothing else of the file is read."""
        with self._refused():
            return self._file.get_slice(name)[start:stop]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    @contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except (SafetensorError, OSError) as error:
            raise DamagedFile(f"{self.path} is damaged ({error}); {self.remedy}") from error
