"""Measure inference: first token, time per token, tokens/s and bandwidth share by batch size; then workloads.

python -m benchmarks inference model=d20      everything but the comparison with nanochat
… work=rows,loop                              only some of: rows, kernels, rollouts, requests, loop, peer
… peer=NANOCHAT                               nanochat's own engine in the same run

rows: 1, 2, 4 … samples of one prompt. tokens/s excludes reading the prompt; the time to the first token is an
upper bound.
kernels: the kernels that take most of the GPU's time in steps of 1, 32 and 128 rows.
rollouts: `questions` prompts × `samples`, at most `new_tokens` each, of different lengths, including prefill.
requests: nano-vllm's workload, 256 requests of 100 to 1,024 tokens in and out.
loop: four of the rollouts' prompts, one after another, without decode kernels or CUDA graphs, as in nanochat.
Uses random weights; no text ends before its limit. Also takes the settings of nanolit train.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import results
from benchmarks.parts import base_plan, peer_model
from benchmarks.train import device_name, synchronize
from nanolit.config.compose import compose
from nanolit.inference.engine import Engine
from nanolit.inference.request import Request
from nanolit.inference.slots import ring_sizes
from nanolit.jobs.parts import build_gpt
from nanolit.machine.arguments import choose, names, read_some, setting
from nanolit.machine.device import pick_device
from nanolit.model.gpt import GPT
from nanolit.tokenizer.bpe import SPECIAL_TOKENS, Tokenizer

WORK = ("rows", "kernels", "rollouts", "requests", "loop", "peer")
SAMPLING = {"temperature": 1.0, "top_k": 50}
COPY_BYTES = 2**30  # of the copy whose speed counts as the memory's


@dataclass(frozen=True, kw_only=True)
class Settings(results.Kept):
    """Settings of the inference benchmark."""

    work: str = setting("parts to run: some of rows,kernels,rollouts,requests,loop,peer (default: all)", "")
    prompt: int = setting("prompt tokens in `rows`", 1024, least=1)
    new: int = setting("new tokens in `rows`", 128, least=2)
    most_rows: int = setting("largest batch size in `rows`; sizes double up to it", 1024, least=1)
    questions: int = setting("number of prompts in `rollouts`", 64, least=1)
    samples: int = setting("samples per prompt in `rollouts` and `loop`", 16, least=1)
    new_tokens: int = setting("largest number of new tokens in `rollouts`", 256, least=8)
    requests: int = setting("number of requests in the `requests` workload", 256, least=1)
    longest: int = setting("largest number of tokens in and out in `requests`", 1024, least=8)
    repeats: int = setting("timed runs; the best counts", 3, least=1)
    peer: Path | None = setting("a checkout of nanochat", None)


def main(arguments: list[str]) -> int:
    """Measure, print a table and a line of JSON, keep both."""
    settings, overrides = read_some(Settings, arguments, about=__doc__)
    work = work_of(settings)
    model, tokenizer = random_model(overrides)
    engine, rng = Engine(model, tokenizer), random.Random(0)
    engine.end_ids = frozenset()
    entry: dict[str, Any] = {
        "command": results.command_line("inference", arguments),
        "device": device_name(model.device),
        "torch": torch.__version__,
        "depth": model.config.depth,
        "attention": model.attention_backend,
        "copied_bytes_per_second": copy_speed(model.device),
    }
    prompts = [random_prompt(model, rng.randint(46, 87), rng) for _ in range(settings.questions)]
    limits = [rng.randint(settings.new_tokens // 4, settings.new_tokens) for _ in prompts]
    parts: dict[str, Callable[[], Any]] = {
        "rows": lambda: by_rows(engine, settings, rng, entry["copied_bytes_per_second"]),
        "kernels": lambda: kernel_times(engine, settings, rng),
        "rollouts": lambda: rollouts(engine, prompts, limits, settings.samples),
        "requests": lambda: served(engine, settings, rng),
        "loop": lambda: loop(engine, prompts[:4], limits[:4], settings.samples),
        "peer": lambda: peer(engine, settings, rng),
    }
    path = settings.results
    for name in work:
        measured = parts[name]()
        lines = [] if isinstance(measured, Iterator) else measured
        entry[name] = lines
        for line in measured if isinstance(measured, Iterator) else ():
            lines.append(line)
            results.save(entry, settings, device=entry["device"])  # what is there outlives a time limit
        path = results.save(entry, settings, device=entry["device"])
    results.print_entry(entry, path)
    return 0


def work_of(settings: Settings) -> list[str]:
    """Return the parts to run; ValueError for a peer that isn't there, before minutes are spent on others."""
    work = [choose(name, WORK, kind="work") for name in names(settings.work)]
    folder = settings.peer
    if folder is None:
        if "peer" in work:
            raise ValueError("work=peer needs nanochat; give peer=FOLDER, a checkout of it")
        return work or [name for name in WORK if name != "peer"]
    if not (folder / "nanochat" / "engine.py").is_file():
        raise ValueError(f"peer={folder} has no nanochat/engine.py; give a checkout of nanochat")
    return work or list(WORK)


def random_model(overrides: list[str]) -> tuple[GPT, Tokenizer]:
    """Return the job's model with random weights, all of them alive, and a made-up tokenizer of its size."""
    job = compose([*overrides, "phase=base"])
    model = build_gpt(base_plan(job).gpt, pick_device(), seed=job["seed"], precision=job["precision"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    extra = model.vocab_size - 256 - len(SPECIAL_TOKENS)
    tokens = [bytes([byte]) for byte in range(256)]
    return model.eval(), Tokenizer([*tokens, *(b"\0" + n.to_bytes(3, "big") for n in range(extra))])


def random_prompt(model: GPT, length: int, rng: random.Random) -> list[int]:
    """Return ordinary tokens."""
    return [rng.randrange(256, model.vocab_size - len(SPECIAL_TOKENS)) for _ in range(length)]


def copy_speed(device: torch.device) -> float:
    """Return the bytes that a large copy reads and writes in a second."""
    source = torch.ones(
        COPY_BYTES if device.type == "cuda" else COPY_BYTES // 16, dtype=torch.uint8, device=device
    )
    target, best = torch.empty_like(source), float("inf")
    for _ in range(5):
        synchronize(device)
        begun = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return 2 * len(source) / best


def by_rows(
    engine: Engine, settings: Settings, rng: random.Random, bytes_per_second: float
) -> Iterator[dict[str, Any]]:
    """Yield a line for 1, 2, 4 … samples of one prompt, until memory or `most_rows` end it."""
    prompt, rows = random_prompt(engine.model, settings.prompt, rng), 1
    while rows <= settings.most_rows:
        request = Request(prompt_ids=prompt, num_samples=rows, max_tokens=settings.new, **SAMPLING)
        run(engine, [request])  # captures what there is to capture
        engine_rows = engine.launcher.slots.rows if engine.launcher else 0
        if engine_rows < rows:
            print(f"  {rows} rows don't fit: the engine has {engine_rows} slots", flush=True)
            return
        measured = [run(engine, [request]) for _ in range(settings.repeats)]
        first = min(times["first_seconds"] for times in measured)
        step = min(times["decode_seconds"] for times in measured) / (settings.new - 1)
        needed = step_bytes(engine.model, rows, settings.prompt, settings.new // 2)
        line = line_of(rows, first, step) | {"bandwidth_share": needed / step / bytes_per_second}
        print(f"  {results.in_words(line)}", flush=True)
        yield line
        rows *= 2


def line_of(rows: int, first: float, step: float) -> dict[str, Any]:
    """Return the figures of a number of rows from the seconds until the first token and of a step."""
    speed = {"first_ms": 1000 * first, "step_ms": 1000 * step, "tokens_per_second": rows / step}
    return {"rows": rows, **speed}


def step_bytes(model: GPT, rows: int, prompt: int, own: int) -> float:
    """Return what a step must read: matrices, head, the prompt's keys and values once, each row's own."""
    roles, config = model.parameter_roles(), model.config
    read = [p.numel() for name, p in model.named_parameters() if roles[name] in ("matrix", "unembedding")]
    sizes = ring_sizes(model, prompt + own)
    places = sum(max(size - own, 0) + rows * min(own, size) for size in sizes)
    return (sum(read) + 2 * places * config.kv_heads * model.head_dim) * model.compute_dtype.itemsize


def kernel_times(engine: Engine, settings: Settings, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Yield the kernels that steps of 1, 32 and 128 rows spend the GPU's time on, in microseconds a step."""
    if engine.model.device.type != "cuda":
        return
    prompt, steps = random_prompt(engine.model, settings.prompt, rng), 20
    for rows in (1, 32, 128):
        handle = engine.submit(Request(prompt_ids=prompt, num_samples=rows, max_tokens=2 * steps, **SAMPLING))
        for _ in range(4):
            engine.step()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            for _ in range(steps):
                engine.step()
            torch.cuda.synchronize()
        engine.cancel(handle)
        spent = sorted(
            (e.self_device_time_total / steps, e.count / steps, e.key) for e in profiler.key_averages()
        )
        for microseconds, count, name in reversed(spent[-14:]):
            print(f"  {rows} rows: {microseconds:9.1f} us, {count:6.1f} launches of {name[:90]}", flush=True)
        yield {
            "rows": rows,
            "microseconds": {name[:90]: microseconds for microseconds, _, name in spent[-14:]},
        }


def run(engine: Engine, requests: Sequence[Request]) -> dict[str, float]:
    """Serve requests to the end; return the seconds until all have a token, and those after that."""
    synchronize(engine.model.device)
    begun, first = time.perf_counter(), 0.0
    handles = [engine.submit(request) for request in requests]
    completions = [completion for handle in handles for completion in handle.completions]
    while not all(handle.done for handle in handles):
        engine.step()
        if not first and all(completion.ids for completion in completions):
            first = time.perf_counter() - begun
            at_first = sum(len(completion.ids) for completion in completions)
    seconds, tokens = time.perf_counter() - begun, sum(len(completion.ids) for completion in completions)
    return {
        "first_seconds": first,
        "decode_seconds": seconds - first,
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "decoded_per_second": (tokens - at_first) / (seconds - first),
    }


def rollouts(
    engine: Engine, prompts: Sequence[list[int]], limits: Sequence[int], samples: int
) -> dict[str, float]:
    """Return the speed of a whole rollout, and of its steady state: while every sample is still written."""
    requests = [
        Request(prompt_ids=prompt, max_tokens=limit, num_samples=samples, seed=place, **SAMPLING)
        for place, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
    ]
    run(engine, requests)
    whole = run(engine, requests)
    even = [Request(prompt_ids=p, max_tokens=min(limits), num_samples=samples, **SAMPLING) for p in prompts]
    steady = run(engine, even)["decoded_per_second"]
    print(f"  rollouts: {whole['tokens_per_second']:,.0f} tokens/s, steady {steady:,.0f}", flush=True)
    return {**whole, "steady_per_second": steady}


def served(engine: Engine, settings: Settings, rng: random.Random) -> dict[str, float]:
    """Return the speed of requests of random lengths, all there at the beginning."""
    shortest = max(1, settings.longest * 100 // 1024)
    lengths = [rng.randint(shortest, settings.longest) for _ in range(2 * settings.requests)]
    requests = [
        Request(prompt_ids=random_prompt(engine.model, read, rng), max_tokens=written, seed=read, **SAMPLING)
        for read, written in zip(lengths[::2], lengths[1::2], strict=True)
    ]
    run(engine, requests)
    measured = run(engine, requests)
    print(f"  requests: {measured['tokens_per_second']:,.0f} tokens/s generated", flush=True)
    return measured


def loop(
    engine: Engine, prompts: Sequence[list[int]], limits: Sequence[int], samples: int
) -> dict[str, float]:
    """Return the speed of prompts one after another by the plain step, without graphs."""
    tokens, seconds = 0.0, 0.0
    for prompt, limit in zip(prompts, limits, strict=True):
        request = Request(prompt_ids=prompt, max_tokens=limit, num_samples=samples, **SAMPLING)
        with plain_steps(engine):
            measured = run(engine, [request])
        tokens, seconds = tokens + measured["tokens"], seconds + measured["seconds"]
        print(f"  loop: {measured['tokens_per_second']:,.0f} tokens/s", flush=True)
    return {"tokens_per_second": tokens / seconds}


@contextmanager
def plain_steps(engine: Engine) -> Iterator[None]:
    """Let the engine's launchers decode without kernels and graphs for a while."""
    engine.release()
    engine.plain = True
    yield
    engine.release()
    engine.plain = False


def peer(ours: Engine, settings: Settings, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Yield the same lines for nanochat's own engine, with a model of the same sizes."""
    assert settings.peer is not None
    ours.release()  # its slots may hold most of the memory
    model, config, rows = ours.model, ours.model.config, 1
    other = peer_model(settings.peer, config, model.device, seed=0)
    from nanochat import engine as theirs  # pyright: ignore[reportMissingImports]
    from nanochat import flash_attention  # pyright: ignore[reportMissingImports]

    engine = theirs.Engine(other.eval(), NoSpecials(config.vocab_size))
    prompt = random_prompt(model, settings.prompt, rng)
    while rows <= min(settings.most_rows, 128):
        for _ in range(2):
            synchronize(model.device)
            begun = time.perf_counter()
            steps = engine.generate(prompt, num_samples=rows, max_tokens=settings.new, **SAMPLING)
            next(steps)
            synchronize(model.device)
            first, count = time.perf_counter() - begun, sum(1 for _ in steps)
            synchronize(model.device)
            step = (time.perf_counter() - begun - first) / count
        line = line_of(rows, first, step)
        print(f"  nanochat: {results.in_words(line)}", flush=True)
        yield {**line, "attention": "flash3" if flash_attention.USE_FA3 else "sdpa"}
        rows *= 2


class NoSpecials:
    """The part of a tokenizer that nanochat's engine needs; its special ids are never drawn."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode_special(self, _name: str) -> int:
        """Return an id beyond the vocabulary."""
        return self.vocab_size

    def get_bos_token_id(self) -> int:
        """Return the same."""
        return self.vocab_size
