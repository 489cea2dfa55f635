"""Sources of pretraining text: a dataset resolves to parquet files, some to train on, some held out.

Documents never straddle the two: the held-out files are named (or pinned), and no other file changes that.
Files are checked when they are opened, texts when they are read; what is wrong is one line with the file and
the row.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from nanolit.data.download import fetch_shards, missing_shards
from nanolit.data.jsonl import SUFFIXES, as_parquet
from nanolit.machine.numbers import listed
from nanolit.machine.paths import dataset_folder

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLE_FOLDER = Path(__file__).resolve().parent / "sample"
# A folder up to this size (compressed) is read through before training starts; a larger one as training goes.
READ_THROUGH_BYTES = 1 << 30
KINDS = (".parquet", *SUFFIXES)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """An opened parquet file: the documents in each of its row groups, and the bytes of their text."""

    path: Path
    text_column: str
    group_sizes: tuple[int, ...]
    group_bytes: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The parquet files of a dataset, to train on and held out, and the column of their text."""

    name: str
    text_column: str
    train_files: tuple[Path, ...]
    validation_files: tuple[Path, ...]
    cache_folder: Path | None = None  # where tokens are kept (cache.py); None: nowhere

    @cached_property
    def train_shards(self) -> list[Shard]:
        return [open_shard(path, self.text_column) for path in self.train_files]

    @cached_property
    def validation_shards(self) -> list[Shard]:
        return [open_shard(path, self.text_column) for path in self.validation_files]

    @cached_property
    def fingerprint(self) -> str:
        """Hash what a position in the data depends on (sha256, hex): train files and their row groups."""
        content = [[shard.path.name, *shard.group_sizes] for shard in self.train_shards]
        return hashlib.sha256(json.dumps([self.text_column, content]).encode()).hexdigest()


class Dataset:
    """A dataset's default answers; each kind adds `open_corpus`, which opens what `fetch` brought here."""

    name: str
    bytes_per_shard = 0  # to be downloaded

    def __init__(self, *, cache: bool = False) -> None:  # jobs of earlier versions don't say
        self.cache = cache

    def cache_folder(self, root: Path) -> Path | None:
        """Return the folder of the train shards' tokens; None without a cache."""
        return dataset_folder(root, self.name) / "tokens" if self.cache else None

    def shards_needed(self, num_tokens: int, *, kept_fraction: float) -> int:
        """Return how many train shards give `num_tokens` in one epoch, if packing keeps `kept_fraction`."""
        return 1

    def shards_with(self, num_characters: int) -> int:
        """Return the number of train shards that hold `num_characters`."""
        return self.shards_needed(0, kept_fraction=1)

    def train_bytes(self) -> dict[str, int]:
        """File name → bytes of train text that may change under the same settings; {} where none may."""
        return {}

    def fetch(self, root: Path, *, num_shards: int, offline: bool) -> None:
        """Bring the first `num_shards` train shards and the held-out ones to this machine, if they aren't."""


class Sample(Dataset):
    """The text that ships with the package: 4.3 million characters, and 0.4 million held out."""

    name = "sample"

    def open_corpus(self, root: Path, *, num_shards: int | None = None) -> Corpus:
        return Corpus(
            name=self.name,
            text_column="text",
            train_files=(SAMPLE_FOLDER / "train.parquet",),
            validation_files=(SAMPLE_FOLDER / "validation.parquet",),
            cache_folder=self.cache_folder(root),
        )


class LocalFolder(Dataset):
    """Any folder of parquet, jsonl or jsonl.zst files with a column of text.

    jsonl is read into parquet files below the root first, once. `validation` names the held-out file (in the
    folder, or a path). Where it is None the files whose name begins with "val" are held out; where there are
    none the user has to name one, so that a file added later never takes the place of the held-out one.
    """

    name = "local"

    def __init__(self, *, path: str, text_column: str, validation: str | None, cache: bool = False) -> None:
        super().__init__(cache=cache)
        self.path = Path(path).expanduser()
        self.text_column = text_column
        self.validation = validation

    def shards_needed(self, num_tokens: int, *, kept_fraction: float) -> int:
        return len(self._files()) - len(self._validation_files(self._files()))

    def train_bytes(self) -> dict[str, int]:
        """Return the train files' sizes; {} where they aren't known, as in a plan for another machine."""
        try:
            return {path.name: path.stat().st_size for path in self._split()[0]}
        except (ValueError, OSError):
            return {}

    def fetch(self, root: Path, *, num_shards: int, offline: bool) -> None:
        """Check the files, and read jsonl into parquet once, before several ranks would."""
        self.open_corpus(root)

    def open_corpus(self, root: Path, *, num_shards: int | None = None) -> Corpus:
        """Return the checked files; ValueError names the file, and the row, of what cannot be trained on."""
        train, held_out = ([self._parquet(path, root) for path in paths] for paths in self._split())
        corpus = Corpus(
            name=self.name,
            text_column=self.text_column,
            train_files=tuple(train),
            validation_files=tuple(held_out),
            cache_folder=self.cache_folder(root),
        )
        shards = corpus.train_shards + corpus.validation_shards
        if sum(shard.path.stat().st_size for shard in shards) <= READ_THROUGH_BYTES:
            for shard in shards:
                for group in range(len(shard.group_sizes)):
                    read_texts(shard, group)
        return corpus

    def _split(self) -> tuple[list[Path], list[Path]]:
        """Return the files to train on, and the held-out ones."""
        files = self._files()
        held_out = self._validation_files(files)
        train = [path for path in files if not any(path.samefile(other) for other in held_out)]
        if not train:
            raise ValueError(
                f"{self.path} holds no file of texts besides the held-out {held_out[0].name}; add one"
            )
        return train, held_out

    def _files(self) -> list[Path]:
        if not self.path.is_dir():
            raise ValueError(
                f"data.path={self.path} is not a folder; give one that holds {listed(KINDS)} files"
            )
        files = sorted(path for path in self.path.iterdir() if path.name.endswith(KINDS) and path.is_file())
        if not files:
            raise ValueError(f"data.path={self.path} holds no {listed(KINDS)} file; give a folder that does")
        return files

    def _parquet(self, path: Path, root: Path) -> Path:
        if not path.name.endswith(SUFFIXES):
            return path
        place = hashlib.sha256(f"{path.parent.resolve()} {self.text_column}".encode()).hexdigest()[:8]
        return as_parquet(path, dataset_folder(root, self.name) / place, text_column=self.text_column)

    def _validation_files(self, files: Sequence[Path]) -> list[Path]:
        if self.validation is not None:
            path = self.path / self.validation  # an absolute path stays what it is
            if not path.is_file():
                has = listed([one.name for one in files])
                raise ValueError(f"data.validation={self.validation} is not a file; {self.path} has {has}")
            return [path]
        if held_out := [path for path in files if path.name.lower().startswith("val")]:
            return held_out
        raise ValueError(
            f"no file of {self.path} is named val*, so none is known to be held out; name one that "
            f"is never trained on, such as data.validation={files[-1].name}"
        )


class HubDataset(Dataset):
    """Shuffled shards of a dataset on the Hugging Face hub, in `<root>/data/<name>`; the last is held out.

    It is pinned by its number, not the last of those that are present: fetching more never changes it.
    """

    repository: str
    num_shards: int  # published, the held-out one included
    text_column = "text"
    characters_per_shard = 250_000_000  # of both corpora, as published
    bytes_per_shard = 100_000_000  # compressed, about
    characters_per_token = 4.8  # of nanochat's tokenizers on this text, vocabulary 32,768 and 65,536
    margin = 1.11  # fetched above the estimate, as nanochat does: 240 shards for its d20, 800 for its d32

    def shards_needed(self, num_tokens: int, *, kept_fraction: float) -> int:
        characters = num_tokens * self.characters_per_token / kept_fraction
        needed = math.ceil(characters / self.characters_per_shard * self.margin)
        return min(max(1, needed), self.num_shards - 1)

    def shards_with(self, num_characters: int) -> int:
        return min(max(1, math.ceil(num_characters / self.characters_per_shard)), self.num_shards - 1)

    def fetch(self, root: Path, *, num_shards: int, offline: bool) -> None:
        fetch_shards(
            dataset_folder(root, self.name), self.repository, self._names(num_shards), offline=offline
        )

    def open_corpus(self, root: Path, *, num_shards: int | None = None) -> Corpus:
        """Return the first `num_shards` train shards (without a number: one) and the held-out one, opened."""
        folder, names = dataset_folder(root, self.name), self._names(num_shards or 1)
        if missing := missing_shards(folder, names):
            raise ValueError(
                f"data={self.name} needs {len(names):,} shards in {folder}, of which {len(missing):,} are "
                f"missing ({listed(missing)}); training fetches them: python -m "
                f"nanolit.train data={self.name} …; or choose data=sample or data=local"
            )
        *train, held_out = [folder / name for name in names]
        corpus = Corpus(
            name=self.name,
            text_column=self.text_column,
            train_files=tuple(train),
            validation_files=(held_out,),
            cache_folder=self.cache_folder(root),
        )
        _ = corpus.train_shards, corpus.validation_shards  # opened now: a truncated file is found here
        return corpus

    def _names(self, num_shards: int) -> list[str]:
        """Return the files of the first `num_shards` train shards, then the held-out one."""
        train = range(min(num_shards, self.num_shards - 1))
        return [*map(shard_name, train), shard_name(self.num_shards - 1)]


class FineWebEdu(HubDataset):
    """FineWeb-Edu, 100 billion tokens, shuffled: the corpus of recipe=classic."""

    name = "fineweb_edu"
    repository = "karpathy/fineweb-edu-100b-shuffle"
    num_shards = 1823


class ClimbMix(HubDataset):
    """ClimbMix, 400 billion tokens, shuffled: the corpus of recipe=modern."""

    name = "climbmix"
    repository = "karpathy/climbmix-400b-shuffle"
    num_shards = 6543


def shard_name(index: int) -> str:
    """Return the file name of a hub shard."""
    return f"shard_{index:05d}.parquet"


def open_shard(path: Path, text_column: str) -> Shard:
    """Open a parquet file; ValueError unless it is whole and has such a column of text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{path} is not a whole parquet file ({_line(error)}); fetch or write it again"
        ) from error
    if text_column not in schema.names:
        raise ValueError(
            f"{path} has no column {text_column!r}; it has {', '.join(schema.names)}: choose one with "
            "data.text_column"
        )
    if schema.names.count(text_column) > 1:
        raise ValueError(
            f"{path} has {text_column!r} as the name of several columns; write it again with one"
        )
    type_ = schema.field(text_column).type
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    if not (pa.types.is_string(type_) or pa.types.is_large_string(type_)):
        raise ValueError(
            f"{path}: column {text_column!r} holds {type_}, not strings; write it again as strings"
        )
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    column = next(n for n in range(metadata.num_columns) if metadata.schema.column(n).path == text_column)
    return Shard(
        path=path,
        text_column=text_column,
        group_sizes=tuple(group.num_rows for group in groups),
        group_bytes=tuple(group.column(column).total_uncompressed_size for group in groups),
    )


def read_texts(shard: Shard, group: int) -> "pa.Array":
    """Return the texts of one row group, as an arrow array of strings without a null, all valid UTF-8."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(shard.path) as file:
            column = file.read_row_group(group, columns=[shard.text_column]).column(0)
        texts = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], pa.string())
        texts = texts.dictionary_decode() if isinstance(texts, pa.DictionaryArray) else texts
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{shard.path}: row group {group} cannot be read ({_line(error)}); fetch or write the file again"
        ) from error
    before = sum(shard.group_sizes[:group])
    if texts.null_count:
        row = before + pc.index(texts.is_null(), True).as_py()
        raise ValueError(
            f"{shard.path}: row {row} has no text in column {shard.text_column!r}; remove such rows"
        )
    try:
        texts.validate(full=True)
    except pa.ArrowException:
        row = before + _first_invalid(texts)
        raise ValueError(
            f"{shard.path}: the text of row {row} is not UTF-8; write it again as UTF-8"
        ) from None
    return texts


def _first_invalid(texts: "pa.Array") -> int:
    for index in range(len(texts)):
        try:
            texts[index].as_py()
        except UnicodeDecodeError:
            return index
    raise AssertionError("arrow found a fault in the texts that is none of encoding")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
