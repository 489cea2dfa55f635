"""Sources of pretraining text: a dataset resolves to parquet files, some to train on, some held out.

Documents never straddle the two: the held-out files are named (or pinned), and no other file changes that.
Files are checked when they are opened, texts when they are read; what is wrong is one line with the file and
the row.
"""

import functools
import hashlib
import math
from pathlib import Path

from nanolit.data.download import fetch_shards, missing_shards
from nanolit.data.parquet import Corpus, read_texts
from nanolit.data.prepare import (
    Found,
    estimated_bytes,
    find,
    fits_as_it_is,
    held_out_fraction,
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
MUCH_TEXT = 40 << 30  # bytes of own text of which more is held out than any recipe evaluates on
# Of own text that is hashed whole, in a tenth of a second; of more, both ends of up to so many files
HASHED_BYTES, HASHED_FILES, END_BYTES = 64 << 20, 256, 64 << 10


class Dataset:
    """A dataset's default answers; each kind adds `open_corpus`, which opens what `fetch` brought here."""

    name: str
    bytes_per_shard = 0  # to be downloaded
    num_characters: int | None = None  # of the train text, about; None where only reading it would tell
    is_shipped = False  # with the package: there is nothing to fetch, and nobody writes to it

    def __init__(self, *, cache: bool = False) -> None:  # jobs of earlier versions don't say
        self.cache = cache

    def shards_needed(self, num_tokens: int, *, kept_fraction: float) -> int:
        """Return how many train shards give `num_tokens` in one epoch, if packing keeps `kept_fraction`."""
        return 1

    def shards_with(self, num_characters: int) -> int:
        """Return the number of train shards that hold `num_characters`."""
        return self.shards_needed(0, kept_fraction=1)

    def download_gigabytes(self, num_shards: int) -> float | None:
        """Return about how many GB a fetch brings, with the held-out shard; None where nothing is fetched."""
        return round((num_shards + 1) * self.bytes_per_shard / 1e9, 1) if self.bytes_per_shard else None

    def train_bytes(self) -> dict[str, int]:
        """File name → bytes of train text that may change under the same settings; {} where none may."""
        return {}

    def text_hash(self) -> str | None:
        """Return a hash that tells own text from another of the same size; None for other data."""
        return None

    def text_bytes(self, *, enough: float = math.inf) -> int | None:
        """Return about how many bytes own text has, counted until there are `enough`; None where unknown."""
        return None

    def held_out_bytes(self) -> int | None:
        """Return about how many bytes are held out; None where unknown, or more than plans evaluate on."""
        return None

    def document_bytes(self) -> float | None:
        """Return about how long the documents of own text are; None where that is unknown."""
        return None

    def fetch(self, root: Path, *, num_shards: int, offline: bool) -> None:
        """Bring the first `num_shards` train shards and the held-out ones to this machine, if they aren't."""


class Shipped(Dataset):
    """Text that ships with the package: train.parquet and validation.parquet in `folder`."""

    folder: Path
    num_held_out_bytes: int
    is_shipped = True

    def held_out_bytes(self) -> int:
        return self.num_held_out_bytes

    def open_corpus(self, root: Path, *, num_shards: int | None = None) -> Corpus:
        return Corpus(
            name=self.name,
            text_column="text",
            train_files=(self.folder / "train.parquet",),
            validation_files=(self.folder / "validation.parquet",),
        )


class Sample(Shipped):
    """Real text of many kinds: 4.3 million characters, and 0.4 million held out."""

    name = "sample"
    folder = SAMPLE_FOLDER
    num_characters = 4_300_000
    num_held_out_bytes = 405_000


class Stories(Shipped):
    """Little stories from a grammar (dev/stories.py): a model of a million parameters learns to tell them."""

    name = "stories"
    folder = SAMPLE_FOLDER.parent / "stories"
    num_characters = 4_900_000
    num_held_out_bytes = 244_000


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
        """Return the train files' sizes; {} where they aren't known, as in a plan for another machine.

        A name that an earlier source has too comes after the number of its source, not its path, which
        another machine may not share.
        """
        sizes: dict[str, int] = {}
        try:
            for number, files in enumerate(find(self.sources, self.validation).values()):
                for name, size, _, is_held_out in stamps(files) if files else []:
                    if not is_held_out:
                        sizes[f"{number}/{name}" if name in sizes else str(name)] = int(size)
        except (ValueError, OSError):
            return {}
        return sizes

    def text_hash(self) -> str | None:
        try:
            files = [(file, file.stat()) for file in self._train_files()]
            return hash_of(tuple((file, found.st_size, found.st_mtime_ns) for file, found in files))
        except (ValueError, OSError):  # not here: whatever reads it says so
            return None

    def text_bytes(self, *, enough: float = math.inf) -> int | None:
        if any(source.startswith(HUB) for source in self.sources):
            return None
        return estimated_bytes(self._train_files(), self.text_column, enough=enough)

    def held_out_bytes(self) -> int | None:
        """By the named files' size, else by the part of all text that prepare.py holds out."""
        found = find(self.sources, self.validation).values()
        if None in found:
            return None
        try:
            if named := [file for files in found if files for file in files.held_out]:
                return estimated_bytes(named, self.text_column)
            every = estimated_bytes(self._train_files(), self.text_column, enough=MUCH_TEXT)
        except ValueError:  # a malformed file: what reads the text says where
            return None
        return int(every * held_out_fraction(every)) if every < MUCH_TEXT else None

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
            times=manifest.times(self.weights),
            summary=manifest.summary(),
            content=manifest.content,
            held_out_fraction=manifest.held_out_fraction,
        )

    def _where_it_lies(self, found: Found, root: Path) -> Corpus:
        (files,) = (files for files in found.values() if files)
        corpus = Corpus(
            name=self.name,
            text_column=self.text_column,
            train_files=files.train,
            validation_files=files.held_out,
            summary=files.summary(),
        )
        shards = corpus.train_shards + corpus.validation_shards
        if sum(shard.path.stat().st_size for shard in shards) <= READ_THROUGH_BYTES:
            for shard in shards:
                for group in range(len(shard.group_sizes)):
                    read_texts(shard, group)
        return corpus


@functools.cache  # every stage's plan asks for it
def hash_of(files: tuple[tuple[Path, int, int], ...]) -> str | None:
    """Return a hash of all that the files hold if it is little, else of some files' ends; None: no files.

    Each comes with its size and time of modification, so that a file that changes is read again.
    """
    whole = sum(size for _, size, _ in files) <= HASHED_BYTES
    some = files if whole else files[:: -(-len(files) // HASHED_FILES)]
    digest = hashlib.sha256()
    for file, size, _ in some:
        with file.open("rb") as stream:
            digest.update(stream.read(HASHED_BYTES if whole else END_BYTES))
            stream.seek(max(stream.tell(), size - END_BYTES))
            digest.update(stream.read())
    return digest.hexdigest() if files else None


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
                f"missing ({listed(missing)}); training downloads them: python -m "
                f"nanolit.train data={self.name} …; or choose data=sample or data=PATH"
            )
        *train, held_out = [folder / name for name in names]
        corpus = Corpus(
            name=self.name,
            text_column=self.text_column,
            train_files=tuple(train),
            validation_files=(held_out,),
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
