"""Sources of pretraining text: a dataset resolves to parquet files, some to train on, some held out.

Documents never straddle the two: the held-out files are named (or pinned), and no other file changes that.
Files are checked when they are opened, texts when they are read; what is wrong is one line with the file and
the row.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

from nanolit.data.download import fetch_shards, missing_shards
from nanolit.data.parquet import Shard, open_shard, read_texts
from nanolit.data.prepare import (
    Found,
    estimated_bytes,
    find,
    fits_as_it_is,
    prepared,
    read_manifest,
    stamps,
    usual_document_bytes,
)
from nanolit.data.sources import HUB
from nanolit.machine.numbers import listed
from nanolit.machine.paths import dataset_folder

SAMPLE_FOLDER = Path(__file__).resolve().parent / "sample"
# A folder up to this size (compressed) is read through before training starts; a larger one as training goes.
READ_THROUGH_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The parquet files of a dataset, to train on and held out, and the column of their text."""

    name: str
    text_column: str
    train_files: tuple[Path, ...]
    validation_files: tuple[Path, ...]
    cache_folder: Path | None = None  # where tokens are kept (cache.py); None: nowhere
    times: tuple[float, ...] = ()  # how often an epoch has each train file; (): once
    summary: str = ""  # of own text: what was read, passed over and split
    content: str = ""  # a hash of the texts, where it is known

    @cached_property
    def train_shards(self) -> list[Shard]:
        return [open_shard(path, self.text_column) for path in self.train_files]

    @cached_property
    def validation_shards(self) -> list[Shard]:
        return [open_shard(path, self.text_column) for path in self.validation_files]

    def train_groups(self) -> list[tuple[Shard, int]]:
        """Return the row groups of an epoch: of a file that it has 2.5 times, every second one thrice."""
        groups: list[tuple[Shard, int]] = []
        before = turn = 0.0
        for shard, times in zip(self.train_shards, self.times or [1.0] * len(self.train_shards), strict=True):
            turn = 0.0 if times != before else turn
            before = times
            for group, size in enumerate(shard.group_sizes):
                count = math.floor(turn + times + 1e-9) - math.floor(turn + 1e-9)
                groups += [(shard, group)] * (count if size else 0)
                turn += times
        return groups

    def validation_groups(self) -> list[tuple[Shard, int]]:
        """Return the held-out row groups, in the files' order; of several sources, one of each in turn."""
        by_shard = [[(shard, n) for n in range(len(shard.group_sizes))] for shard in self.validation_shards]
        turns = zip_longest(*by_shard) if self.times else by_shard
        return [group for groups in turns for group in groups if group is not None]

    @cached_property
    def fingerprint(self) -> str:
        """Hash what a position in the data depends on (sha256, hex): train files and their row groups."""
        groups: list = [[shard.path.name, *shard.group_sizes] for shard in self.train_shards]
        depends = [self.text_column, groups, *([self.times, self.content] if self.content else [])]
        return hashlib.sha256(json.dumps(depends).encode()).hexdigest()


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

    def text_bytes(self, *, enough: float = math.inf) -> int | None:
        """Return about how many bytes own text has, counted until there are `enough`; None where unknown."""
        return None

    def document_bytes(self) -> float | None:
        """Return about how long the documents of own text are; None where that is unknown."""
        return None

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
    """Your own text: files, folders and data sets of the hub (hf:OWNER/NAME), in any format of sources.py.

    All is read into parquet below the root first, once; one folder of fitting parquet is read where it lies.
    `validation` names the held-out file. Where it is None the names of files and splits say what is held out
    (find_files), and where they don't a part of all documents is (pieces.py). `weights` are the shares of the
    sources in the text that is trained on: the scarcer are repeated. None: an epoch has everything once.
    """

    name = "local"

    def __init__(
        self,
        *,
        path: str | list[str],
        text_column: str,
        validation: str | None,
        weights: list[float] | None = None,
        cache: bool = False,
    ) -> None:
        super().__init__(cache=cache)
        self.sources = [path] if isinstance(path, str) else list(path)
        if weights is not None and (len(weights) != len(self.sources) or min(weights) <= 0):
            raise ValueError(
                f"data.weights={weights}; give a positive number for each of {len(self.sources)} sources"
            )
        if not self.sources or len(set(self.sources)) < len(self.sources):
            raise ValueError(f"data.path={self.sources}; give one or more paths, each once")
        self.text_column, self.validation, self.weights = text_column, validation, weights

    def shards_needed(self, num_tokens: int, *, kept_fraction: float) -> int:
        return max(1, len(self._train_files()))

    def train_bytes(self) -> dict[str, int]:
        """Return the train files' sizes; {} where they aren't known, as in a plan for another machine."""
        try:
            found = [files for files in find(self.sources, self.validation).values() if files]
            every = (stamp for files in found for stamp in stamps(files))
            return {str(name): int(size) for name, size, _, is_held_out in every if not is_held_out}
        except (ValueError, OSError):
            return {}

    def text_bytes(self, *, enough: float = math.inf) -> int | None:
        if any(source.startswith(HUB) for source in self.sources):
            return None
        return estimated_bytes(self._train_files(), self.text_column, enough=enough)

    def document_bytes(self) -> float | None:
        files = self._train_files()
        try:
            return usual_document_bytes(files, self.text_column) if files else None
        except ValueError:  # a malformed row: what reads the text says where
            return None

    def _train_files(self) -> list[Path]:
        found = find(self.sources, self.validation)
        return [file for files in found.values() if files for file in files.train]

    def fetch(self, root: Path, *, num_shards: int, offline: bool) -> None:
        """Check the files, and copy what has to be copied, before several ranks would."""
        self.open_corpus(root)

    def open_corpus(self, root: Path, *, num_shards: int | None = None) -> Corpus:
        """Return the checked files; ValueError names the file, and the row, of what cannot be trained on."""
        found = find(self.sources, self.validation)
        if fits_as_it_is(found, self.text_column):
            return self._where_it_lies(found, root)
        folder = prepared(found, dataset_folder(root, self.name), text_column=self.text_column)
        manifest = read_manifest(folder)
        train, held_out = (
            tuple(folder / name for part in manifest.parts(side) for name in part.shards)
            for side in ("train", "validation")
        )
        return Corpus(
            name=self.name,
            text_column="text",
            train_files=train,
            validation_files=held_out,
            cache_folder=self.cache_folder(root),
            times=manifest.times(self.weights),
            summary=manifest.summary(),
            content=manifest.content,
        )

    def _where_it_lies(self, found: Found, root: Path) -> Corpus:
        (files,) = (files for files in found.values() if files)
        corpus = Corpus(
            name=self.name,
            text_column=self.text_column,
            train_files=files.train,
            validation_files=files.held_out,
            cache_folder=self.cache_folder(root),
            summary=f"{len(files.train):,} file(s) of {files.folder}, {len(files.held_out):,} held out"
            + (f", passed over {listed(files.passed_over)}" if files.passed_over else ""),
        )
        shards = corpus.train_shards + corpus.validation_shards
        if sum(shard.path.stat().st_size for shard in shards) <= READ_THROUGH_BYTES:
            for shard in shards:
                for group in range(len(shard.group_sizes)):
                    read_texts(shard, group)
        return corpus


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
