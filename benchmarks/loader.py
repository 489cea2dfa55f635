"""Time the data loader alone: `python -m benchmarks loader data=FOLDER`, from parquet files to batches.

Measures tokens/s of one rank on N threads, MB/s of text, and memory compared with its documented limit; then,
on one thread, the share of time of each part: reading, shuffling, encoding, packing, tensors. The stream runs
in a process of its own, so that the peak memory is the stream's alone.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.tokenizer import Text, corpus_of, peak_megabytes
from nanolit.data.packing import Documents, Packing, make_packer
from nanolit.data.parquet import Corpus, training_arrays
from nanolit.data.sequence import DocumentSequence
from nanolit.data.stream import BUFFER, DRAWN_BUFFERS, PretrainStream, as_micro_batches
from nanolit.machine.arguments import read, setting
from nanolit.tokenizer.bpe import Tokenizer

LEARNED_FROM_CHARACTERS = 50_000_000
PARTS_DOCUMENTS = 4096  # whose way is timed part by part


@dataclass(frozen=True, kw_only=True)
class Settings(Text):
    """Settings of the loader benchmark."""

    tokenizer: str | None = setting(
        "folder with a tokenizer (default: one trained on the first 50 million characters)",
        None,
        value="FOLDER",
    )
    threads: int = setting("loader threads", 4, least=1)
    packing: Packing = setting("how documents are packed into rows", "bestfit")
    context: int = setting("tokens per row", 2048, least=1)
    rows: int = setting("rows per step; 256 rows of 2,048 are 524,288 tokens", 256, least=1)
    ranks: int = setting("number of ranks; the first is measured", 1, least=1)
    warmup: int = setting("untimed steps at the start, while the lanes fill", 4, least=1)
    seconds: int = setting("seconds to measure", 15, least=1)


def main(arguments: list[str]) -> int:
    """Measure, print a table and a line of JSON, keep both."""
    if arguments[:1] == ["measure"]:
        print(json.dumps(measure(json.loads(arguments[1]))))
        return 0
    settings = read(Settings, arguments, about=__doc__)
    with tempfile.TemporaryDirectory() as folder:
        files = [str(path) for path in settings.train_files(Path(folder))]
        order = {**asdict(settings), "files": files}
        if not settings.tokenizer:
            order["tokenizer"] = f"{folder}/tokenizer"
            texts = training_arrays(corpus_of(order), max_characters=LEARNED_FROM_CHARACTERS)
            Tokenizer.train(texts, vocab_size=settings.vocab_size).save(Path(order["tokenizer"]))
        text = json.dumps(order, default=str)
        command = [sys.executable, "-m", "benchmarks", "loader", "measure", text]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise ValueError("the loader failed; see the lines above")
    entry = {
        "command": results.command_line("loader", arguments),
        **json.loads(done.stdout.splitlines()[-1]),
    }
    results.print_entry(entry, results.save(entry, settings, device=results.processor()))
    return 0


def measure(order: dict[str, Any]) -> dict[str, Any]:
    """Measure one rank in this process."""
    tokenizer, ranks = Tokenizer.load(Path(order["tokenizer"])), order["ranks"]
    rows, context = order["rows"], order["context"]
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
        threads=order["threads"],
    )
    before = peak_megabytes()
    begun, steps = time.perf_counter(), iter(stream)
    next(steps)
    first_step = time.perf_counter() - begun
    for _ in range(order["warmup"]):
        next(steps)
    begun, processor, num_steps = time.perf_counter(), time.process_time(), 0
    while (elapsed := time.perf_counter() - begun) < order["seconds"]:
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
        "threads": order["threads"],
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
    """Take one lane through some thousand documents on one thread; return the share of time of each part."""
    context, way = order["context"], Way(corpus_of(order), tokenizer)
    packer = make_packer(order["packing"], capacity=context + 1, buffer=BUFFER, dtype=tokenizer.dtype)
    while way.next < PARTS_DOCUMENTS:
        before, begun = way.drawing(), time.perf_counter()
        rows = [row for _ in range(32) if (row := packer.pack(way.draw)) is not None]
        packed = time.perf_counter()
        as_micro_batches(np.stack(rows), size=len(rows), pin_memory=False)
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
        self.sequence = DocumentSequence(groups, lane=0, seed=1)
        self.tokenizer = tokenizer
        self.seconds = dict.fromkeys(("read", "shuffle", "encode", "pack", "tensors"), 0.0)
        self.next = self.num_bytes = self.num_tokens = 0

    def drawing(self) -> float:
        """Return the seconds of drawing so far."""
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
