"""Time the kernels of a decode step one by one: `python -m benchmarks kernels model=d20 rows=1,8,32`.

Needs a GPU. Prints a line for each kernel: the microseconds of a launch in a CUDA graph, where each launch
uses different weights or keys, so none are cached; the floor, which is the time to read its bytes at the
speed of a large copy; and the difference from float32. `tiles=true` also tries other tile shapes, written as
COLUMNS/WARPS, WARPS/STAGES or PARTS/KEYS/WARPS, and prints the best five: the tiles in nanolit/kernels were
chosen this way. Also takes the settings of nanolit train.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import results
from benchmarks.inference import copy_speed
from benchmarks.parts import base_plan
from benchmarks.train import device_name
from nanolit.config.compose import compose
from nanolit.inference.sampling import COLUMNS, PENALTY, POSITION, TEMPERATURE, TOP_K, TOP_P
from nanolit.machine.arguments import names, read_some, setting
from nanolit.model.block import norm
from nanolit.model.gpt import GPTConfig

TOUCHED = 300_000_000  # bytes of all copies of a kernel's weights or keys: six times an H200's cache
TILES = {
    "_tile_of_a_row": [*product((4, 8, 16), (1, 2, 4, 8))],
    "tile_of": [*product((2, 4, 8), (2, 4, 6, 8, 10, 12))],
    "_split": [*product((1, 2, 4, 5, 6, 8, 11, 16, 32, 64), (16, 32), (1, 2))],
}


@dataclass(frozen=True, kw_only=True)
class Settings(results.Kept):
    """Settings of the benchmark of single kernels."""

    rows: str = setting("batch sizes, comma-separated", "1,8,32")
    positions: int = setting("keys per row", 1088, least=1)
    tiles: bool = setting("also try other tile shapes", False)
    repeats: int = setting("replays of the graph; the fastest counts", 6, least=1)


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel on one of its sets of inputs after another; `cut` names the function that chooses its tile."""

    name: str
    cut: str | None = None
    launches: list[Callable[[], object]]
    error: Callable[[], float]  # of the last launch
    bytes_read: int


def main(arguments: list[str]) -> int:
    """Time the kernels, print a line for each and a line of JSON, keep both."""
    settings, overrides = read_some(Settings, arguments, about=__doc__)
    if not torch.cuda.is_available():
        raise ValueError("benchmarks kernels needs a GPU, and this machine has no CUDA device")
    config = GPTConfig(**base_plan(compose([*overrides, "phase=base"])).gpt)
    device = torch.device("cuda")
    entry: dict[str, Any] = {"command": results.command_line("kernels", arguments)}
    entry |= {"device": device_name(device), "kernels": []}
    speed = copy_speed(device)
    with device:
        for rows in map(int, names(settings.rows)):
            for kernel in kernels_of(config, rows, settings.positions):
                line: dict[str, Any] = {"rows": rows, "kernel": kernel.name}
                line |= {"microseconds": microseconds(kernel, settings.repeats), "error": kernel.error()}
                line["floor"] = 1e6 * kernel.bytes_read / speed
                entry["kernels"].append(line)
                figures = f"{line['microseconds']:8.2f} us, floor {line['floor']:7.2f}"
                print(f"  {rows:>4} rows, {kernel.name:<9}: {figures}, error {line['error']:.0e}", flush=True)
                if settings.tiles and kernel.cut:
                    line["tiles"] = sorted(tried(kernel, settings.repeats))[:5]
                    found = (f"{'/'.join(map(str, tile))}: {time:.2f}" for time, tile in line["tiles"])
                    print(f"      {', '.join(found)}", flush=True)
    results.print_json(entry, results.save(entry, settings, device=entry["device"]))
    return 0


def kernels_of(config: GPTConfig, rows: int, positions: int) -> Iterator[Kernel]:
    """Yield the kernels of a step of `rows` rows; the weights of one are freed before the next is made."""
    from nanolit.kernels import decode_kernel as fused

    C, H, K = config.width, config.heads, config.kv_heads
    D = C // H
    shapes = {"qkv": ((H + 2 * K) * D, C), "output": (C, C), "expand": (4 * C, C), "contract": (C, 4 * C)}
    if rows <= fused.FEW:
        for name, (N, inner) in shapes.items():
            yield product_kernel(name, rows, N, inner)
    yield attention_kernel(rows, H, K, D, positions=positions, context=max(config.context, positions + 1))
    yield sampling_kernel(rows, config.vocab_size, config.softcap)


def product_kernel(name: str, rows: int, N: int, C: int) -> Kernel:
    from nanolit.kernels import decode_kernel as fused

    weights = [0.02 * brain(N, C) for _ in range(2 + TOUCHED // (2 * N * C))]
    x_BC, out_BN, residual_BN = brain(rows, C), brain(rows, N), brain(rows, N)
    begins, squared = name in ("qkv", "expand"), name == "expand"
    around = {"normalized": begins, "squared": squared, "residual_BC": None if begins else residual_BN}

    def error() -> float:
        y = (norm(x_BC.float()) if begins else x_BC.float()) @ weights[-1].float().T
        return distance(out_BN, y.relu().square() if squared else y if begins else y + residual_BN.float())

    return Kernel(
        name=name,
        cut="_tile_of_a_row" if rows == 1 and min(N, C) < fused.WIDE else "tile_of",
        launches=[lambda w=weight: fused.product(x_BC, w, out_BN, **around) for weight in weights],
        error=error,
        bytes_read=2 * N * C,
    )


def attention_kernel(rows: int, H: int, K: int, D: int, *, positions: int, context: int) -> Kernel:
    from nanolit.kernels import decode_kernel as fused

    shape = (rows, context, K, D)
    buffers = [(brain(*shape), brain(*shape)) for _ in range(2 + TOUCHED // (4 * rows * positions * K * D))]
    qkv_BX, y_BC = brain(rows, (H + 2 * K) * D), brain(rows, H * D)
    where = (table_of(rows, positions), torch.ones(context, D // 2), torch.zeros(context, D // 2))
    counts = torch.zeros(rows * H, dtype=torch.int32)

    def error() -> float:
        k_BRHD, v_BRHD = (
            part[:, : positions + 1].repeat_interleave(H // K, 2).float() for part in buffers[-1]
        )
        q_BHD = norm(qkv_BX[:, : H * D].view(rows, H, D).float())
        y = F.scaled_dot_product_attention(q_BHD[:, :, None], k_BRHD.transpose(1, 2), v_BRHD.transpose(1, 2))
        return distance(y_BC, y.reshape(rows, -1))

    return Kernel(
        name="attention",
        cut="_split",
        launches=[
            lambda b=pair: fused.attend(qkv_BX, where, b, None, y_BC, counts, qk_scale=1.0)
            for pair in buffers
        ],
        error=error,
        bytes_read=4 * rows * positions * K * D,
    )


def sampling_kernel(rows: int, V: int, softcap: float) -> Kernel:
    from nanolit.kernels import decode_kernel as fused

    logits_BV, table_BX = 2 * brain(rows, V), table_of(rows, 0)
    drawn_B, log_probs_B = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows)

    def error() -> float:
        capped_BV = softcap * torch.tanh(logits_BV.float() / softcap)
        kept_BV = capped_BV.masked_fill(capped_BV < capped_BV.topk(50).values[:, -1:], -torch.inf)
        return distance(log_probs_B, kept_BV.log_softmax(-1).gather(1, drawn_B[:, None])[:, 0])

    def draw() -> None:
        fused.sample(logits_BV, table_BX, None, drawn_B, log_probs_B, softcap=softcap)

    return Kernel(name="sampling", launches=[draw] * 10, error=error, bytes_read=2 * rows * V)


def table_of(rows: int, position: int) -> Tensor:
    """Return a step's table of rows that draw from the 50 likeliest at temperature 1."""
    table_BX = torch.zeros(rows, COLUMNS, dtype=torch.int32)
    table_BX[:, POSITION], table_BX[:, TOP_K] = position, 50
    table_BX.view(torch.float32)[:, [TEMPERATURE, TOP_P, PENALTY]] = 1.0
    return table_BX


def brain(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.bfloat16)


def distance(found: Tensor, expected: Tensor) -> float:
    return ((found.float() - expected).norm() / expected.norm()).item()


def microseconds(kernel: Kernel, repeats: int) -> float:
    """Return the time of a launch, from replays of a graph of all of them."""
    for launch in kernel.launches[:2]:
        launch()  # compiles
    torch.cuda.synchronize()
    graph, best = torch.cuda.CUDAGraph(), float("inf")
    with torch.cuda.graph(graph):
        for launch in kernel.launches:
            launch()
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        best = min(best, 1000 * begin.elapsed_time(end) / len(kernel.launches))
    return best


def tried(kernel: Kernel, repeats: int) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Yield the time of each tile that fits and gives the right answer."""
    assert kernel.cut
    allowed = max(0.01, 2 * kernel.error())
    for tile in TILES[kernel.cut]:
        with cut_into(kernel.cut, tile):
            try:
                time = microseconds(kernel, repeats)
            except Exception as error:  # too large for the GPU
                print(f"      {'/'.join(map(str, tile))}: {' '.join(str(error).split())[:80]}", flush=True)
                continue
            if kernel.error() < allowed:
                yield time, tile


@contextmanager
def cut_into(cut: str, tile: tuple[int, ...]) -> Iterator[None]:
    from nanolit.kernels import decode_kernel, product_kernel

    module = product_kernel if cut == "tile_of" else decode_kernel
    before = getattr(module, cut)
    setattr(module, cut, lambda *_: tile)
    yield
    setattr(module, cut, before)
