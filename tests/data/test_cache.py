"""The token cache: the same rows as without it, and never a file that is not whole."""

import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from corpora import TOKENIZER, make_corpus, row_hashes, texts, write_texts

from nanolit.data import cache as cache_module
from nanolit.data.cache import TokenCache
from nanolit.data.packing import Packing
from nanolit.data.parquet import Corpus
from nanolit.data.stream import PretrainStream


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path)


def make_stream(corpus: Corpus, cache: TokenCache | None, **changes: Any) -> PretrainStream:
    settings = {"context": 24, "rows": 8, "micro_batch": 2, "seed": 1, "packing": "bestfit", "lanes": 4}
    return PretrainStream(corpus, TOKENIZER, cache=cache, **(settings | changes))


def make_cache(corpus: Corpus, folder: Path) -> TokenCache:
    return TokenCache(folder, corpus.train_shards, TOKENIZER)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


@pytest.mark.parametrize("packing", ["bestfit", "bestfit_split", "flat"])
def test_rows_and_positions_are_those_without_a_cache(
    corpus: Corpus, tmp_path: Path, packing: Packing
) -> None:
    """Over more than an epoch, and continued by the other one half way."""
    cache = make_cache(corpus, tmp_path / "tokens")
    expected = list(islice(make_stream(corpus, None, packing=packing), 60))
    found = list(islice(make_stream(corpus, cache, packing=packing), 60))
    assert expected[-1].epoch > 1
    assert [row_hashes(step) for step in found] == [row_hashes(step) for step in expected]
    assert [step.position for step in found] == [step.position for step in expected]
    resumed = make_stream(corpus, cache, packing=packing)
    resumed.load_position([expected[29].position])
    assert [row_hashes(step) for step in islice(resumed, 30)] == [row_hashes(step) for step in expected[30:]]


def test_what_a_killed_process_left_half_is_removed(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / ".a-0123.tokens.x1y2.tmp").write_bytes(b"half")
    make_cache(corpus, tmp_path / "tokens")
    assert [name.partition("-")[0] for name in files(tmp_path / "tokens")] == ["a", "b"]


def test_a_file_is_made_once_for_a_shard_and_a_tokenizer(corpus: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    make_cache(corpus, folder)
    made = {name: (folder / name).stat().st_mtime_ns for name in files(folder)}
    assert [name.partition("-")[0] for name in made] == ["a", "b"]
    make_cache(corpus, folder)
    assert {name: (folder / name).stat().st_mtime_ns for name in files(folder)} == made


def test_another_text_gets_another_file(tmp_path: Path) -> None:
    """As many documents in a file of the same name: its size and time tell."""
    corpus = make_corpus(tmp_path)
    make_cache(corpus, tmp_path / "tokens")
    path = write_texts(tmp_path / "a.parquet", texts(66, label="abdcefgh"))
    os.utime(path, ns=(1, 1))
    changed = Corpus(name="small", text_column="text", train_files=corpus.train_files, validation_files=())
    cache = make_cache(changed, tmp_path / "tokens")
    assert len(files(tmp_path / "tokens")) == 3
    ids, offsets = cache.tokens(changed.train_shards[0], 1)
    assert TOKENIZER.decode(ids[offsets[0] + 1 : offsets[1]].tolist()).startswith("abdcefgh 8:")


def test_ctrl_c_leaves_nothing(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, read = tmp_path / "tokens", cache_module.read_texts

    def interrupted(shard: Any, group: int) -> Any:
        if group == 3:
            raise KeyboardInterrupt
        return read(shard, group)

    monkeypatch.setattr(cache_module, "read_texts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_cache(corpus, folder)
    assert files(folder) == []


@pytest.mark.parametrize("left", [0, 5, 1000, -1])
def test_a_file_that_is_not_whole_is_made_again(corpus: Corpus, tmp_path: Path, left: int) -> None:
    folder = tmp_path / "tokens"
    make_cache(corpus, folder)
    path = folder / files(folder)[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:left])
    make_cache(corpus, folder)
    assert path.read_bytes() == whole


def test_a_file_whose_offsets_fall_is_made_again_and_ids_that_are_none_are_refused(
    corpus: Corpus, tmp_path: Path
) -> None:
    make_cache(corpus, tmp_path / "tokens")
    path = tmp_path / "tokens" / files(tmp_path / "tokens")[0]
    whole = path.read_bytes()
    shard = next(shard for shard in corpus.train_shards if shard.path.stem in path.name)
    checksums = 4 * len(shard.group_sizes)
    last = whole[-checksums - 8 : -checksums]
    path.write_bytes(whole[: -checksums - 16] + 2 * last + whole[-checksums:])
    make_cache(corpus, tmp_path / "tokens")
    assert path.read_bytes() == whole
    tokens, offsets = make_cache(corpus, tmp_path / "tokens").tokens(shard, 0)
    size, tokens[0] = tokens.nbytes, 0xFFFF
    group, checksum = tokens.tobytes(), cache_module._checksum(tokens, offsets)
    forged = checksum.to_bytes(4, "little") + whole[len(whole) - checksums + 4 :]
    path.write_bytes(group + whole[size:-checksums] + forged)
    with pytest.raises(ValueError, match="is damaged or was changed: delete it, and it is made again"):
        make_cache(corpus, tmp_path / "tokens").tokens(shard, 0)


@pytest.mark.parametrize("what", ["tokens", "offsets", "checksums"])
def test_a_flipped_bit_is_seen(corpus: Corpus, tmp_path: Path, what: str) -> None:
    """Most other ids are ids, and would be trained on without a word."""
    cache = make_cache(corpus, tmp_path / "tokens")
    for shard in corpus.train_shards:
        path = next((tmp_path / "tokens").glob(f"{shard.path.stem}-*"))
        content = bytearray(path.read_bytes())
        checksums = len(content) - 4 * len(shard.group_sizes)
        offsets = checksums - 8 * sum(shard.group_sizes)
        content[{"tokens": 4, "offsets": offsets, "checksums": checksums}[what]] ^= 1
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged or was changed: delete it"):
            cache.tokens(shard, 0)
        assert len(cache.tokens(shard, 1)[0])


@pytest.mark.parametrize("left", [0, 300, -400])
def test_a_file_that_shrinks_while_it_is_used_is_refused(corpus: Corpus, tmp_path: Path, left: int) -> None:
    """Were it mapped, the next read would end this process by SIGBUS."""
    cache = make_cache(corpus, tmp_path / "tokens")
    shard = corpus.train_shards[0]
    tokens, offsets = cache.tokens(shard, 0)
    before = TOKENIZER.decode(tokens.tolist())
    path = next((tmp_path / "tokens").glob(f"{shard.path.stem}-*"))
    os.truncate(path, left % path.stat().st_size)
    with pytest.raises(ValueError, match="was changed: delete it"):
        cache.tokens(shard, 0)
    assert (TOKENIZER.decode(tokens.tolist()), offsets[-1]) == (before, len(tokens))


def test_a_folder_that_takes_no_files_is_one_line(corpus: Corpus, tmp_path: Path) -> None:
    """A real failure to write: the process may open no file larger than a kilobyte."""
    code = f"""
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from corpora import TOKENIZER, make_corpus
from nanolit.data.cache import TokenCache
corpus = make_corpus(Path({str(tmp_path)!r}))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    TokenCache(Path({str(tmp_path / "tokens")!r}), corpus.train_shards, TOKENIZER)
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        "cannot be written (File too large): the cache takes 2 bytes per token; free some space"
        in done.stdout
    )
    assert files(tmp_path / "tokens") == []


def test_processes_that_begin_at_once_make_every_file_once(tmp_path: Path) -> None:
    """Three forks of one that has imported all it needs: they begin within a moment of each other."""
    corpus = make_corpus(tmp_path)
    code = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from corpora import TOKENIZER
from nanolit.data.cache import TokenCache
from nanolit.data.parquet import open_shard
forks = []
for _ in range(3):
    if pid := os.fork():
        forks.append(pid)
        continue
    shards = [open_shard(Path(path), "text") for path in sys.argv[1:]]
    TokenCache(Path({str(tmp_path / "tokens")!r}), shards, TOKENIZER)
    sys.exit()
print([os.waitpid(pid, 0)[1] for pid in forks])
"""
    command = [sys.executable, "-c", code, *map(str, corpus.train_files)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "[0, 0, 0]"
    assert printed.count("cache:") == 2
    assert len(files(tmp_path / "tokens")) == 2
