"""Files for fuzz.py to damage: those of a run, a stranger's models, texts and chats in every format."""

import bz2
import csv
import filecmp
import gzip
import hashlib
import io
import itertools
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zstandard

from dev.damage import BASE, CHECKPOINT, find
from dev.damages import load, packed, parted
from dev.fuzz_inputs import INPUTS, NUMBERS, damaged, dumped, dumped_lines, edited, tampered, text
from launch.submit import read_submission
from nanolit import convert, runs
from nanolit.callbacks import checkpoint
from nanolit.callbacks.throughput import history
from nanolit.config.stored import read_job
from nanolit.data import prepare
from nanolit.data.cache import TokenCache
from nanolit.data.download import missing_shards
from nanolit.data.formats import documents
from nanolit.data.mixture import Mixture
from nanolit.data.parquet import open_shard, read_texts
from nanolit.evaluation.answers import tell_answers
from nanolit.evaluation.items import ItemFile
from nanolit.model.release import load_release, save_release
from nanolit.planning.plans import read_plan
from nanolit.report.card import write_report
from nanolit.report.folders import Run, Stage
from nanolit.tasks import bundle
from nanolit.tasks.identity_generation import Order, Partial
from nanolit.tasks.identity_prompts import Subject
from nanolit.tasks.jsonl import ConversationFile
from nanolit.tokenizer.bpe import Tokenizer
from nanolit.tokenizer.conversation import check_conversation

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
RELEASE = BASE / "release"
UNDAMAGED = FIXTURES / "run_format_1"
BYTE_TOKENIZER = Tokenizer([bytes([byte]) for byte in range(256)])
PACKERS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstandard.ZstdCompressor().compress}


class Wrong(Exception):
    """Raised if something wrong was accepted, or refused without naming it."""


class Kind(NamedTuple):
    make: Callable[[Random], Any]  # the input of a number
    feed: Callable[[Any], object]  # to the real reader


Opener = Callable[[Path], Kind]  # of a folder of its own


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error about a file must name it."""
    try:
        yield
    except (ValueError, OSError) as error:
        if not any(name in str(error) for name in (path.name.split(".")[0], path.parent.name)):
            raise Wrong(f"the message doesn't name {path.name}: {error}") from error
        raise


def own_file(open_path: Callable[[Path], Path], read: Callable[[Path, bool], object]) -> Opener:
    """Return the kind of a file of ours; `read` gets the folder, and whether the file has changed."""

    def open_kind(folder: Path) -> Kind:
        path = open_path(folder)
        content, node, dump = path.read_bytes(), None, dumped
        if path.suffix in (".json", ".yaml"):
            node = load(path)
        elif path.suffix in (".jsonl", ".partial"):
            node, dump = [json.loads(line) for line in content.splitlines()], dumped_lines

        def feed(new: bytes) -> None:
            path.write_bytes(new)
            try:
                with naming(path):
                    read(folder, new != content)
                if (folder / "runs" / "tiny").is_dir():
                    runs.main([f"root={folder}"])
            finally:
                path.write_bytes(content)

        return Kind(lambda random: tampered(random, content, node, dump), feed)

    return open_kind


def of_run(file: Path, read: Callable[[Path, bool], object]) -> Opener:
    """Return the kind of a file of a run that an earlier version made, its release written anew."""

    def open_path(folder: Path) -> Path:
        shutil.copytree(UNDAMAGED, folder, dirs_exist_ok=True)
        release = folder / RELEASE
        model, meta = load_release(release, device="cpu")
        kept = shutil.copytree(release / "tokenizer", release.with_name("kept"))
        save_release(release, model, tokenizer_folder=kept, tokenizer_hash=meta["tokenizer_hash"], meta=meta)
        shutil.rmtree(kept)
        return find(folder, file)

    return own_file(open_path, read)


def of_content(name: str, node: Any, read: Callable[[Path], object]) -> Opener:
    """Return the kind of a file with this content, a JSON line for each row where its name says so."""

    def open_path(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        is_lines = path.suffix in (".jsonl", ".partial")
        path.write_text("".join(json.dumps(row) + "\n" for row in node) if is_lines else json.dumps(node))
        return path

    return own_file(open_path, lambda folder, _: read(folder / name))


def read_stage(root: Path, _changed: bool = False) -> object:
    stage, run = Stage("base", root / BASE), Run(root / BASE.parent)
    return stage.metrics, stage.columns, stage.step, stage.num_steps, stage.val_rows, run.job


def read_checkpoint(root: Path, changed: bool) -> None:
    folder = root / CHECKPOINT
    if not checkpoint.is_whole(folder):
        return
    listed = load(folder / "manifest.json")["files"]
    if not {"model.safetensors", "optimizer-00000-of-00001.safetensors"} <= listed.keys():
        raise Wrong("a checkpoint counts as whole although its manifest lacks files")
    same = [filecmp.cmp(folder / name, UNDAMAGED / CHECKPOINT / name, shallow=False) for name in listed]
    if changed and not all(same):
        raise Wrong("a changed checkpoint counts as whole")
    found = checkpoint.Checkpoint(folder)
    dict(found.model_state())
    found.positions()


def read_release(root: Path, _changed: bool) -> None:
    before, _ = load_release(UNDAMAGED / RELEASE, device="cpu")
    model, _ = load_release(root / RELEASE, device="cpu")
    for name, tensor in before.state_dict().items():
        if not torch.equal(tensor, model.state_dict()[name]):
            raise Wrong(f"{name} has changed")


def read_tokenizer(root: Path, _changed: bool) -> None:
    before = Tokenizer.load(UNDAMAGED / RELEASE / "tokenizer")
    if Tokenizer.load(root / RELEASE / "tokenizer").hash != before.hash:
        raise Wrong("the tokenizer has changed")


def open_stranger(folder: Path) -> Kind:
    """Tokenizers with a matching hash, and weights whose header lies, as only a stranger writes them."""
    release = Path(shutil.copytree(FIXTURES / "release_format_1", folder / "release"))
    weights, words = release / "model.safetensors", release / "tokenizer" / "tokenizer.json"
    content, tokens = weights.read_bytes(), load(words)
    header, data = parted(content)
    sizes = [n for n in NUMBERS if isinstance(n, int) and 0 <= n < 2**64]

    def make(random: Random) -> tuple[bytes, bytes]:
        node = edited(random, tokens) if random.random() < 0.5 else tokens
        if isinstance(node, dict):
            own = {key: node.get(key) for key in ("pattern", "special_tokens", "tokens")}
            canonical = json.dumps(own, sort_keys=True, separators=(",", ":"))
            node["hash"] = hashlib.sha256(canonical.encode()).hexdigest()
        if node is not tokens:
            return content, dumped(random, node)
        new = dumped(random, edited(random, header))
        size = random.choice(sizes) if random.random() < 0.4 else len(new)
        return packed(new, data, size), dumped(random, tokens)

    def feed(new: tuple[bytes, bytes]) -> None:
        weights.write_bytes(new[0])
        words.write_bytes(new[1])
        meta = load(release / "meta.json")
        node = json.loads(new[1].decode("utf-8-sig", "replace") if new[1][:2] != b"\xff\xfe" else "{}")
        meta["tokenizer_hash"] = node.get("hash") if isinstance(node, dict) else ""
        (release / "meta.json").write_text(json.dumps(meta))
        with naming(release):
            load_release(release, device="cpu")
            tokenizer = Tokenizer.load(release / "tokenizer")
            tokenizer.decode(tokenizer.encode("A text of 12 words, é and 😀."))

    return Kind(make, feed)


def open_nanochat(folder: Path) -> Kind:
    """Files of nanochat's: a pickled tokenizer, a checkpoint and its meta file."""
    source = Path(shutil.copytree(FIXTURES / "nanochat_2026", folder / "nanochat"))
    files = [source / "tokenizer" / "tokenizer.pkl", *sorted(source.glob("base_checkpoints/d3/*0020.*"))]
    contents = {path: path.read_bytes() for path in files}
    state = torch.load(files[2], weights_only=True)

    def make(random: Random) -> tuple[Path, bytes]:
        path = random.choice([*files, files[1]])
        if path.suffix == ".pt" and random.random() < 0.5:
            odd = (torch.zeros(2, dtype=torch.int8), torch.full((3,), float("nan")), 7, torch.zeros(0))
            key, new = random.choice([*state]), {**state}
            new.pop(key)
            new |= {random.choice((key, text(random))): random.choice(odd)} if random.random() < 0.8 else {}
            torch.save(random.choice((new, new, [*new.values()], random.choice(odd))), buffer := io.BytesIO())
            return path, buffer.getvalue()
        return path, tampered(random, contents[path], load(path) if path.suffix == ".json" else None)

    def feed(new: tuple[Path, bytes]) -> None:
        path, content = new
        path.write_bytes(content)
        shutil.rmtree(folder / "out", ignore_errors=True)
        try:
            with naming(path):
                print(convert.convert_nanochat(source, folder / "out"))
            load_release(folder / "out", device="cpu")
        finally:
            path.write_bytes(contents[path])

    return Kind(make, feed)


def table_of(rows: list[Any]) -> bytes:
    pq.write_table(pa.Table.from_pylist(rows), buffer := io.BytesIO(), row_group_size=2)
    return buffer.getvalue()


def written(random: Random, rows: Any, kind: str) -> bytes:
    """Return rows as a file of a kind; where Parquet cannot hold them, another text."""
    rows = rows if isinstance(rows, list) else [rows]
    if kind == ".parquet":
        try:
            return table_of(rows)
        except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError):
            return table_of([{"text": text(random).encode("utf-8", "replace").decode()}])
    if kind in (".csv", ".tsv"):
        objects = [row for row in rows if isinstance(row, dict)]
        names = list(dict.fromkeys(name for row in objects for name in row))
        writer = csv.writer(out := io.StringIO(), delimiter="\t" if kind == ".tsv" else ",", escapechar="\\")
        writer.writerows([names, *([row.get(name, "") for name in names] for row in objects)])
        return out.getvalue().encode("utf-8", "surrogatepass")
    return dumped(random, rows) if kind == ".json" else dumped_lines(random, rows).removesuffix(b"\n")


def packed_file(random: Random, rows: list[Any], kinds: tuple[str, ...]) -> tuple[str, bytes, bool]:
    """Return a name, its bytes, and True if a compressed file was cut, which may not go unnoticed."""
    kind, ending = random.choice(kinds), random.choice([*PACKERS, "", ""])
    content, ending = written(random, edited(random, rows), kind), "" if kind == ".parquet" else ending
    if random.random() < 0.4:
        content = damaged(random, content)
    content = PACKERS[ending](content)
    if random.random() < 0.2:
        return f"given{kind}{ending}", content[: random.randrange(1, max(len(content), 2))], bool(ending)
    return f"given{kind}{ending}", damaged(random, content) if random.random() < 0.1 else content, False


TEXTS = [{"text": f"Text number {n}. It is short."} for n in range(4)]


def open_texts(folder: Path) -> Kind:
    kinds = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")

    def feed(file: tuple[str, bytes, bool]) -> None:
        path = folder / file[0]
        path.write_bytes(file[1])
        with naming(path):
            for block in itertools.chain.from_iterable(documents(path, "text")):
                if not (block is None or isinstance(block, str)):
                    raise Wrong(f"a block of {type(block).__name__}")
                (block or "").encode()
            if path.suffix == ".parquet":
                shard = open_shard(path, "text")
                [read_texts(shard, group) for group in range(len(shard.group_sizes))]
        if file[2]:
            raise Wrong("a truncated compressed file was read as if it were whole")

    return Kind(lambda random: packed_file(random, TEXTS, kinds), feed)


def open_chats(folder: Path) -> Kind:
    kinds = (".jsonl", ".jsonl", ".json", ".csv", ".tsv", ".parquet")

    def make(random: Random) -> tuple[tuple[str, bytes, bool], str, str]:
        rows = random.sample(INPUTS["chats"], random.choice((1, 2, 4)))
        part, malformed = (
            random.choice(("all", "train", "held_out")),
            random.choice(("error", "error", "skip")),
        )
        return packed_file(random, rows, kinds), part, malformed

    def feed(asked: tuple[tuple[str, bytes, bool], Any, Any]) -> None:
        (name, content, cut), part, malformed = asked
        path = folder / name
        path.write_bytes(content)
        with naming(path):
            task = ConversationFile(path=name, source=str(folder), part=part, malformed=malformed)
            print(task.name, len(Mixture([task], BYTE_TOKENIZER, max_tokens=200)))
        for index in range(len(task) if malformed == "error" else 0):
            check_words(task[index], task.rows[task.kept[index]])
        if cut:
            raise Wrong("a truncated compressed file was read as if it were whole")

    return Kind(make, feed)


def check_words(conversation: Any, row: Any) -> None:
    """Check that what is learned is text of the row, never the way Python shows another value."""
    every = "\n\n".join(strings(row))
    for message in conversation["messages"]:
        parts = message["content"]
        for part in [parts] if isinstance(parts, str) else [one["text"] for one in parts]:
            if not all(piece in every for piece in part.split("\n\n")):
                raise Wrong(f"{part[:60]!r} is learned but is not a text of the row")


def strings(node: Any) -> Iterator[str]:
    if isinstance(node, dict | list):
        for below in node.values() if isinstance(node, dict) else node:
            yield from strings(below)
    elif isinstance(node, str) or type(node) in (int, float):
        yield str(node)


def open_zip(folder: Path) -> Kind:
    """The archive of CORE's questions, fetched from a file: names, sizes and members that lie."""
    archive, members = folder / "bundle.zip", folder / "members"
    rows = {label.file: [item_of(label.kind, n) for n in range(12)] for label in bundle.LABELS}

    def make(random: Random) -> bytes:
        with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as new:
            for file, items in rows.items():
                lines = "\n".join(map(json.dumps, items)).encode()
                if random.random() < 0.03:
                    lines = tampered(random, dumped_lines(random, [*items, edited(random, items[0])]))
                name = f"eval_bundle/eval_data/{file}.jsonl"
                name = f"{text(random)}{name}".replace("\0", "") if random.random() < 0.02 else name
                new.writestr(name.encode("utf-8", "replace").decode()[:60_000], lines)
        content = buffer.getvalue()
        return damaged(random, content) if random.random() < 0.7 else content

    def feed(new: bytes) -> None:
        archive.write_bytes(new)
        shutil.rmtree(members, ignore_errors=True)
        bundle.URL = archive.as_uri()
        bundle.check_bundle(bundle.open_bundle(members))
        if outside := [path for path in folder.iterdir() if path not in (archive, members)]:
            raise Wrong(f"{outside} was written outside the folder")

    return Kind(make, feed)


def item_of(kind: str, number: int) -> dict[str, Any]:
    if kind == "multiple_choice":
        return {"query": "the sea", "choices": ["a", "is deep"], "gold": number % 2}
    if kind == "schema":
        return {"context_options": ["the sea", "an island"], "continuation": "is deep", "gold": number % 2}
    return {"context": "the sea", "continuation": "is deep"}


def open_cache(folder: Path) -> Kind:
    """Tokens on disk: cut, longer, or with offsets that point elsewhere."""
    (folder / "a.parquet").write_bytes(table_of([{"text": f"Text number {n}"} for n in range(40)]))
    shard = open_shard(folder / "a.parquet", "text")
    TokenCache(folder / "tokens", [shard], BYTE_TOKENIZER)
    (path,) = (folder / "tokens").glob("*.tokens")
    content = path.read_bytes()
    right = BYTE_TOKENIZER.encode_batch(read_texts(shard, 0).to_pylist(), bos=True)

    def feed(new: bytes) -> None:
        path.write_bytes(new)
        cache = TokenCache(folder / "tokens", [shard], BYTE_TOKENIZER)
        tokens, ends = cache.tokens(shard, 0)
        found = [tokens[a:b].tolist() for a, b in itertools.pairwise(ends)]
        if [*map(len, found)] != [*map(len, right)] or max(map(max, found)) >= BYTE_TOKENIZER.vocab_size:
            raise Wrong("the documents differ from the text, or ids are outside the vocabulary")

    return Kind(lambda random: damaged(random, content), feed)


def show_items(path: Path) -> None:
    print(*tell_answers(path.parent, path.stem, wrong=False), sep="\n")
    ItemFile(path, INPUTS["items"][0])


def read_prepared(path: Path) -> None:
    manifest = prepare.read_manifest(path.parent)
    print(manifest.summary(), manifest.times([1.0]), manifest.parts("validation"))


ORDER = Order(Subject.of("Ada", None), "writer", 1, 3)
TALK = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]
PARTIAL = [{"format": 1, **ORDER.settings()}, *({"number": n, "messages": TALK} for n in range(2))]
CHOICES = next(label for label in bundle.LABELS if label.kind == "multiple_choice" and label.shots == 0)
QUESTIONS = [item_of(CHOICES.kind, n) for n in range(3)]
JOB, METRICS = BASE / "job.yaml", BASE / "metrics.csv"

FILES: dict[str, Opener] = {
    "job.yaml": of_run(JOB, lambda root, _: (read_job(root / JOB), read_stage(root))),
    "plan.json": of_run(BASE / "plan.json", lambda root, _: (read_plan(root / BASE), read_stage(root))),
    "result.json": of_run(BASE / "result.json", read_stage),
    "metrics.csv": of_run(
        METRICS, lambda root, _: (history(root / METRICS, 8, log_every=1), read_stage(root))
    ),
    "report": of_run(BASE / "result.json", lambda root, _: write_report(root, "tiny")),
    "samples.md": of_run(BASE / "samples.md", lambda root, _: write_report(root, "tiny")),
    "manifest.json": of_run(CHECKPOINT / "manifest.json", read_checkpoint),
    "progress.json": of_run(CHECKPOINT / "progress.json", read_checkpoint),
    "position": of_run(CHECKPOINT / "data-00000-of-00001.json", read_checkpoint),
    "optimizer": of_run(CHECKPOINT / "optimizer-00000-of-00001.safetensors", read_checkpoint),
    "gpt.json": of_run(RELEASE / "gpt.json", read_release),
    "meta.json": of_run(RELEASE / "meta.json", read_release),
    "weights": of_run(RELEASE / "model.safetensors", read_release),
    "tokenizer.json": of_run(RELEASE / "tokenizer" / "tokenizer.json", read_tokenizer),
    "stranger": open_stranger,
    "nanochat": open_nanochat,
    "texts": open_texts,
    "chats": open_chats,
    "items": of_content("GSM8K.jsonl", INPUTS["items"], show_items),
    "identity": of_content(
        "identity.jsonl.partial", PARTIAL, lambda path: Partial(path, ORDER, check=check_conversation)
    ),
    "core questions": of_content(
        f"eval_data/{CHOICES.file}.jsonl",
        QUESTIONS,
        lambda path: bundle.read_items(path.parents[2], CHOICES),
    ),
    "core archive": open_zip,
    "token cache": open_cache,
    "hub.json": of_content(
        "hub.json", INPUTS["hub.json"], lambda path: missing_shards(path.parent, ["x", "y"])
    ),
    "prepared": of_content("manifest.json", INPUTS["prepared"], read_prepared),
    "submission.json": of_content(  # as far as `python -m launch status` gets without an account
        "runs/a/submission.json",
        INPUTS["submission.json"],
        lambda path: read_submission(path.parents[2], path.parent.name),
    ),
    "core.json": of_content(
        "base/evaluation/core.json",
        INPUTS["core.json"],
        lambda path: Stage("base", path.parents[1]).metrics,
    ),
    "chat.json": of_content(
        "sft/evaluation/chat.json", INPUTS["chat.json"], lambda path: Stage("sft", path.parents[1]).metrics
    ),
}
