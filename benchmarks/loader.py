"""The data loader alone: `python -m benchmarks loader data=FOLDER`, from parquet files to batches.

Tokens a second of one rank on N threads, text a second, memory against the stated bound; then, on one thread,
the share of each part: reading, shuffling, encoding, packing, tensors. The stream is measured in a process of
its own, so that the peak memory is its own. Own settings: see OWN.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks import results
from benchmarks.tokenizer import peak_megabytes
from nanolit.data.packing import Documents, Packing, make_packer
from nanolit.data.sequence import DocumentSequence
from nanolit.data.shards import Corpus, Dataset, LocalFolder, Sample
from nanolit.data.stream import BUFFER, DRAWN_BUFFERS, PretrainStream, as_batch
from nanolit.data.texts import training_arrays
from nanolit.tokenizer.bpe import Tokenizer

OWN = {
    "data": "",  # a folder of parquet or jsonl files; empty: the sample that ships with nanolit
    "validation": "",  # its held-out file, where none is named val*
    "tokenizer": "",  # a folder that holds one; empty: one is learned from the first 50 million characters
    "vocab_size": "32768",
    "threads": "4",
    "packing": "bestfit",  # or bestfit_split, flat
    "context": "2048",
    "rows": "256",  # of a step: 524,288 tokens
    "ranks": "1",  # the first of so many is measured
    "warmup": "4",  # steps before the clock runs: the lanes fill, the encoder learns its words
    "seconds": "15",
    "commit": "",
    "results": "",
}
LEARNED_FROM_CHARACTERS = 50_000_000
PARTS_DOCUMENTS = 4096  # whose way is timed part by part


def main(arguments: list[str]) -> int:
    """Measure, print a table and a line of JSON, keep both."""
    if arguments[:1] == ["measure"]:
        print(json.dumps(measure(json.loads(arguments[1]))))
        return 0
    settings = results.own_settings(arguments, OWN)
    for key in ("threads", "context", "rows", "ranks", "warmup", "seconds"):
        results.number(settings, key, least=1)
    results.choice(settings, "packing", get_args(Packing))
    with tempfile.TemporaryDirectory() as folder:
        order = {**settings, "files": [str(path) for path in corpus_files(settings, Path(folder))]}
        if not settings["tokenizer"]:
            order["tokenizer"] = str(learn_tokenizer(order, Path(folder) / "tokenizer"))
        command = [sys.executable, "-m", "benchmarks", "loader", "measure", json.dumps(order)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise ValueError("the loader failed; the reason is in the lines above")
    entry = {
        "command": results.command_line("loader", arguments),
        **json.loads(done.stdout.splitlines()[-1]),
    }
    path = results.save(
        entry,
        commit=settings["commit"] or results.commit(),
        device=results.processor(),
        folder=settings["results"],
    )
    results.print_entry(entry, path)
    return 0


def corpus_files(settings: dict[str, str], root: Path) -> tuple[Path, ...]:
    """The train files, opened and checked; jsonl is read into parquet below `root` first."""
    dataset: Dataset = Sample()
    if settings["data"]:
        validation = settings["validation"] or None
        dataset = LocalFolder(path=settings["data"], text_column="text", validation=validation)
    return dataset.open_corpus(root).train_files


def corpus_of(order: dict[str, Any]) -> Corpus:
    files = tuple(map(Path, order["files"]))
    return Corpus(name="bench", text_column="text", train_files=files, validation_files=())


def learn_tokenizer(order: dict[str, Any], folder: Path) -> Path:
    texts = training_arrays(corpus_of(order), max_characters=LEARNED_FROM_CHARACTERS)
    Tokenizer.train(texts, vocab_size=results.number(order, "vocab_size", least=300)).save(folder)
    return folder


def measure(order: dict[str, Any]) -> dict[str, Any]:
    """The figures of one rank, in this process."""
    tokenizer, ranks = Tokenizer.load(Path(order["tokenizer"])), int(order["ranks"])
    rows, context = int(order["rows"]), int(order["context"])
    tokenizer.encode("x")  # builds the encoder
    stream = PretrainStream(
        corpus_of(order),
        tokenizer,
        context=context,
        rows=rows,
        micro_batch=max(n for n in range(1, 33) if rows // ranks % n == 0),
        seed=1,
        packing=order["packing"],
        rank=0,
        world=ranks,
        threads=int(order["threads"]),
    )
    before = peak_megabytes()
    begun, steps = time.perf_counter(), iter(stream)
    next(steps)
    first_step = time.perf_counter() - begun
    for _ in range(int(order["warmup"])):
        next(steps)
    begun, processor, num_steps = time.perf_counter(), time.process_time(), 0
    while (elapsed := time.perf_counter() - begun) < float(order["seconds"]):
        step = next(steps)
        num_steps += 1
    processor, peak = time.process_time() - processor, peak_megabytes()
    del steps
    tokens = num_steps * rows * context // ranks
    parts = time_parts(order, tokenizer)
    kept = 1 - step.cropped_fraction
    return {
        "tokens_per_second": tokens / elapsed,
        "text_megabytes_per_second": tokens / kept / elapsed * parts.pop("bytes_per_token") / 1e6,
        "threads": int(order["threads"]),
        "lanes": stream.lanes,
        "packing": order["packing"],
        "cropped_fraction": step.cropped_fraction,
        "epoch": step.epoch,
        "steps": num_steps,
        "first_step_seconds": first_step,
        "processor_seconds_per_million_tokens": processor / tokens * 1e6,
        "peak_memory_megabytes": peak,
        "peak_memory_of_data_megabytes": peak - before,
        "memory_bound_megabytes": stream.memory_bound() / 1e6,
        **parts,
    }


def time_parts(order: dict[str, Any], tokenizer: Tokenizer) -> dict[str, float]:
    """Of one thread that takes one lane's way through some thousand documents: the share of each part."""
    context, way = int(order["context"]), Way(corpus_of(order), tokenizer)
    packer = make_packer(order["packing"], capacity=context + 1, buffer=BUFFER, dtype=tokenizer.dtype)
    while way.next < PARTS_DOCUMENTS:
        before, begun = way.drawing(), time.perf_counter()
        rows = [row for _ in range(32) if (row := packer.pack(way.draw)) is not None]
        packed = time.perf_counter()
        as_batch(np.stack(rows), pin_memory=False)
        way.seconds["pack"] += packed - begun - (way.drawing() - before)
        way.seconds["tensors"] += time.perf_counter() - packed
    whole = sum(way.seconds.values())
    return {
        "bytes_per_token": way.num_bytes / way.num_tokens,
        **{f"share_of_{part}": spent / whole for part, spent in way.seconds.items()},
    }


class Way:
    """One lane's documents to their tokens, as `PretrainStream` does it, with the seconds of each part."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer) -> None:
        groups = [(shard, group) for shard in corpus.train_shards for group in range(len(shard.group_sizes))]
        self.sequence = DocumentSequence(groups, lane=0, lanes=1, seed=1)
        self.tokenizer = tokenizer
        self.seconds = dict.fromkeys(("read", "shuffle", "encode", "pack", "tensors"), 0.0)
        self.next = self.num_bytes = self.num_tokens = 0

    def drawing(self) -> float:
        """Seconds of drawing so far."""
        return sum(self.seconds[part] for part in ("read", "shuffle", "encode"))

    def draw(self) -> Documents:
        numbers = range(self.next, self.next + DRAWN_BUFFERS * BUFFER)
        self.next = numbers.stop
        marks = [time.perf_counter()]
        self.sequence.texts(numbers[:1])  # opens the row group, where it is a new one
        marks.append(time.perf_counter())
        texts = self.sequence.texts(numbers)
        marks.append(time.perf_counter())
        tokens, offsets = self.tokenizer.encode_flat(texts, threads=1, bos=True)
        marks.append(time.perf_counter())
        for part, begun, ended in zip(("read", "shuffle", "encode"), marks, marks[1:], strict=False):
            self.seconds[part] += ended - begun
        self.num_bytes, self.num_tokens = self.num_bytes + texts.nbytes, self.num_tokens + len(tokens)
        return Documents(numbers, tokens, offsets)
