"""Measure tokenizer speed: `python -m benchmarks tokenizer`, compared with the other tokenizers installed.

Training: our trainer (from strings and from parquet) against rustbpe 0.1.0 and HF tokenizers, wall time and
memory. Encoding: ours against tiktoken, HF tokenizers and rustbpe, cold and warm. Each measurement is a
process of its own, and the tools take turns, so other load affects all equally; compare ratios, not times.
Peak memory is that of the whole process, including the texts as Python strings ("nanolit, parquet" has none).
"""

import importlib
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks import results
from nanolit.data.parquet import Corpus, training_arrays
from nanolit.data.shards import Dataset, LocalFolder, Sample
from nanolit.machine.arguments import choose, read, setting
from nanolit.report.tables import markdown_table
from nanolit.tokenizer.bpe import Tokenizer, as_tiktoken
from nanolit.tokenizer.export import write_huggingface
from nanolit.tokenizer.training import learn

# GPT-4's own split, which every peer knows; nanolit's differs in two digits for three.
GPT4 = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
PEERS = {
    "rustbpe": "rustbpe",
    "tiktoken": "tiktoken",
    "HF tokenizers": "tokenizers",
}
TRAINERS = ("nanolit", "nanolit, parquet", "rustbpe", "HF tokenizers")
ENCODERS = ("nanolit", "tiktoken", "rustbpe", "HF tokenizers")


@dataclass(frozen=True, kw_only=True)
class Text(results.Kept):
    """Settings of the text to read."""

    data: str | None = setting(
        "folder of parquet or jsonl files (default: the sample that ships with nanolit)",
        None,
        value="FOLDER",
    )
    validation: str | None = setting("held-out file, if none is named val*", None, value="FILE")
    vocab_size: int = setting("vocabulary size", 32_768, least=300)

    def train_files(self, root: Path) -> tuple[Path, ...]:
        """Return the training files, opened and checked; jsonl is read into parquet below `root` first."""
        dataset: Dataset = Sample()
        if self.data:
            dataset = LocalFolder(path=self.data, text_column="text", validation=self.validation)
        return dataset.open_corpus(root).train_files


@dataclass(frozen=True, kw_only=True)
class Settings(Text):
    """Settings of the tokenizer benchmark."""

    train_mb: int = setting("megabytes of text to train on", 100, least=1)
    encode_mb: int = setting("megabytes of text to encode", 30, least=1)
    threads: int = setting("training threads", 2, least=1)
    repeats: int = setting("rounds; each measures every tool once", 5, least=1)
    what: Literal["all", "train", "encode"] = setting("what to measure", "all")
    peers: tuple[str, ...] = setting("all, none, or some of rustbpe,tiktoken,tokenizers", ("all",))


def main(arguments: list[str]) -> int:
    """Measure, print the tables and a line of JSON, keep the figures."""
    if arguments[:1] == ["measure"]:
        print(json.dumps(measure(json.loads(arguments[1]))))
        return 0
    settings = read(Settings, arguments, about=__doc__)
    for peer in settings.peers:
        choose(peer, ("all", "none", *PEERS.values()), kind="peer")
    with tempfile.TemporaryDirectory() as folder:
        task = prepare(settings, Path(folder))
        measured: dict[str, dict[str, list[dict[str, float]]]] = {}
        for kind, tools in (("train", TRAINERS), ("encode", ENCODERS)):
            if settings.what in ("all", kind):
                tools = [tool for tool in tools if is_measured(tool, settings.peers)]
                measured[kind] = take_turns(task, kind, tools, settings.repeats)
                print(table_of(kind, measured[kind], task))
    entry = {
        "command": results.command_line("tokenizer", arguments),
        "repeats": settings.repeats,
        "train_megabytes": task["train_bytes"] / 1e6,
        "encode_megabytes": task["encode_bytes"] / 1e6,
        "measured": measured,
    }
    results.print_json(entry, results.save(entry, settings, device=results.processor()))
    return 0


def is_measured(tool: str, peers: Sequence[str]) -> bool:
    """Tell whether a tool is asked for and can be measured here; ours always is."""
    if tool.startswith("nanolit"):
        return True
    module = PEERS[tool]
    found = importlib.util.find_spec(module)
    installed = found is not None and found.origin is not None  # a folder of that name is no package
    return installed and ("all" in peers or module in peers)


def prepare(settings: Settings, folder: Path) -> dict[str, Any]:
    """Prepare what every measurement reads: texts to encode, a vocabulary in each tool's format, settings."""
    train_bytes, encode_bytes = settings.train_mb * 1_000_000, settings.encode_mb * 1_000_000
    task: dict[str, Any] = {
        "files": [str(path) for path in settings.train_files(folder)],
        "train_bytes": train_bytes,
        "num_tokens": settings.vocab_size - 9,
        "threads": settings.threads,
        "folder": str(folder),
    }
    texts = list(texts_of(task, encode_bytes))
    task["encode_bytes"] = sum(len(text.encode()) for text in texts)
    (folder / "texts.json").write_text(json.dumps(texts))
    tokens = learn(texts, pattern=GPT4, num_tokens=task["num_tokens"])
    tokenizer = Tokenizer(tokens, pattern=GPT4)
    tokenizer.save(folder / "ours")
    write_huggingface(tokenizer, folder)
    task["train_bytes"] = sum(len(text.encode()) for text in texts_of(task, train_bytes))
    return task


def corpus_of(task: dict[str, Any]) -> Corpus:
    """Return the training files as a corpus, without first checking all their texts."""
    files = tuple(map(Path, task["files"]))
    return Corpus(name="bench", text_column="text", train_files=files, validation_files=())


def texts_of(task: dict[str, Any], num_bytes: int) -> Iterator[str]:
    """Yield the first texts, about `num_bytes` of them in all."""
    for array in arrays_of(task, num_bytes):
        yield from array.to_pylist()


def arrays_of(task: dict[str, Any], num_bytes: int) -> Iterator[Any]:
    left = num_bytes
    for array in training_arrays(corpus_of(task), max_characters=num_bytes, max_document_characters=10**9):
        ends = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
        num_rows = int(np.searchsorted(ends - ends[0], left, side="left"))
        yield array[:num_rows]
        left -= int(ends[-1] - ends[0])
        if left <= 0:
            return


def take_turns(
    task: dict[str, Any], kind: str, tools: Sequence[str], repeats: int
) -> dict[str, list[dict[str, float]]]:
    """Return each tool's figures, one for each round; in a round every tool is measured once."""
    measured: dict[str, list[dict[str, float]]] = {tool: [] for tool in tools}
    for _ in range(repeats):
        for tool in tools:
            order = json.dumps({**task, "kind": kind, "tool": tool})
            command = [sys.executable, "-m", "benchmarks", "tokenizer", "measure", order]
            threads = str(task["threads"] if kind == "train" else 1)
            environment = {**os.environ, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise ValueError(f"{tool} failed ({reason}); leave it out with peers=…")
            measured[tool].append(json.loads(done.stdout.splitlines()[-1]))
    return measured


def measure(order: dict[str, Any]) -> dict[str, float]:
    """Measure once, in this process: seconds of wall time, and for training the process's peak memory."""
    if order["kind"] == "encode":
        return measure_encoding(order)
    make = {
        "nanolit": train_nanolit,
        "nanolit, parquet": train_nanolit,
        "rustbpe": train_rustbpe,
        "HF tokenizers": train_huggingface,
    }[order["tool"]]
    work = make(order)
    seconds, _ = timed(work)
    return {"seconds": seconds, "megabytes": peak_megabytes()}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result


def peak_megabytes() -> float:
    """Return the most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def train_nanolit(order: dict[str, Any]) -> Callable[[], Any]:
    """Return the work, which from parquet includes reading the files."""
    settings = {"num_tokens": order["num_tokens"], "threads": order["threads"], "pattern": GPT4}
    if order["tool"] == "nanolit, parquet":
        return lambda: learn(arrays_of(order, order["train_bytes"]), **settings)
    texts = list(texts_of(order, order["train_bytes"]))
    return lambda: learn(iter(texts), **settings)


def train_rustbpe(order: dict[str, Any]) -> Callable[[], Any]:
    rustbpe = importlib.import_module("rustbpe")
    texts = list(texts_of(order, order["train_bytes"]))
    tokenizer = rustbpe.Tokenizer()
    return lambda: tokenizer.train_from_iterator(iter(texts), vocab_size=order["num_tokens"], pattern=GPT4)


def train_huggingface(order: dict[str, Any]) -> Callable[[], Any]:
    tokenizers = importlib.import_module("tokenizers")
    split = tokenizers.pre_tokenizers
    texts = list(texts_of(order, order["train_bytes"]))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    by_pattern = split.Split(tokenizers.Regex(GPT4), behavior="isolated")
    to_bytes = split.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = split.Sequence([by_pattern, to_bytes])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=order["num_tokens"],
        show_progress=False,
        initial_alphabet=split.ByteLevel.alphabet(),
    )
    return lambda: tokenizer.train_from_iterator(iter(texts), trainer)


def measure_encoding(order: dict[str, Any]) -> dict[str, float]:
    """Encode on one thread: a first pass over the texts (cold), then a second one (warm)."""
    texts = json.loads((Path(order["folder"]) / "texts.json").read_text())
    work = encoder_of(order["tool"], Path(order["folder"]), texts)
    cold, num_tokens = timed(work)
    warm, _ = timed(work)
    return {"cold": cold, "warm": warm, "num_tokens": num_tokens}


def encoder_of(tool: str, folder: Path, texts: list[str]) -> Callable[[], int]:
    """Return what encodes all texts on one thread, as fast as the tool can, and counts the tokens."""
    if tool == "nanolit":
        ours = Tokenizer.load(folder / "ours")
        ours.encode("x")  # builds the encoder
        return lambda: len(ours.encode_flat(texts, threads=1)[0])
    if tool == "tiktoken":
        encoding = as_tiktoken(Tokenizer.load(folder / "ours"))
        return lambda: sum(len(encoding.encode_ordinary(text)) for text in texts)
    if tool == "rustbpe":
        learner = importlib.import_module("rustbpe").Tokenizer()
        size = len(Tokenizer.load(folder / "ours").tokens)
        learner.train_from_iterator(iter(texts), vocab_size=size, pattern=GPT4)
        return lambda: sum(len(learner.encode(text)) for text in texts)
    theirs = importlib.import_module("tokenizers").Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda: sum(len(theirs.encode(text).ids) for text in texts)


def table_of(kind: str, measured: dict[str, list[dict[str, float]]], task: dict[str, Any]) -> str:
    """Return medians with their range, speed, and ratio to ours."""
    megabytes = task[f"{kind}_bytes"] / 1e6
    columns = {"train": ("seconds",), "encode": ("cold", "warm")}[kind]
    header = [f"{kind}, {megabytes:.0f} MB"]
    for column in columns:
        header += [f"{column}: median s", "min–max", "MB/s", "× ours"]
    header += ["peak memory MB"] if kind == "train" else ["tokens"]
    rows = []
    for tool, figures in measured.items():
        row = [tool]
        for column in columns:
            values = [figure[column] for figure in figures]
            ours = statistics.median(figure[column] for figure in measured["nanolit"])
            median = statistics.median(values)
            row += [f"{median:.2f}", f"{min(values):.2f}–{max(values):.2f}"]
            row += [f"{megabytes / median:.1f}", f"{median / ours:.2f}"]
        last = "megabytes" if kind == "train" else "num_tokens"
        row.append(f"{statistics.median(figure[last] for figure in figures):,.0f}")
        rows.append(row)
    return markdown_table(header, rows)
