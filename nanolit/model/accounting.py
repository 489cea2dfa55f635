"""Sizes, parameters, FLOPs and memory from the hyperparameters alone: a plan needs nothing built.

Pure arithmetic: importing this never imports torch. The model takes its own layout rules (windows, padding,
which layers have value embeddings) from here, so that counts and model cannot drift apart.
"""

import math
import re
from typing import Literal, NamedTuple

from typing_extensions import TypedDict

# Input channels that the tiny gates read (nanochat, Jul 2026); narrower models use all they have.
SMEAR_CHANNELS = 24
VALUE_GATE_CHANNELS = 12

# By GPU: dense bfloat16 FLOP/s, from the vendors' data sheets, and the GiB that a program can allocate,
# torch's `total_memory`, rounded (None: unknown). Every word must occur in the device's name; the first match
# counts, so variants stand before the plain name.
GPU_FIGURES: tuple[tuple[tuple[str, ...], float, float | None], ...] = (
    (("gb200",), 2.5e15, 184.0),
    (("b300",), 2.25e15, 268.0),
    (("b200",), 2.25e15, 178.0),
    (("b100",), 1.8e15, 178.0),
    (("h200",), 989e12, 139.8),
    (("gh200",), 989e12, None),
    (("h100", "nvl"), 835e12, 93.1),
    (("h100", "pcie"), 756e12, 79.1),
    (("h100",), 989e12, 79.1),
    (("h800",), 989e12, 79.1),
    (("a100", "80gb"), 312e12, 79.1),
    (("a100",), 312e12, 39.4),
    (("a800",), 312e12, None),
    (("a40",), 149.7e12, 44.3),
    (("a30",), 165e12, 23.5),
    (("a10g",), 70e12, 22.0),
    (("a10",), 125e12, 22.0),
    (("l40s",), 362e12, 44.3),
    (("l40",), 181e12, 44.3),
    (("l4",), 121e12, 22.0),
    (("5090",), 209.5e12, 31.4),
    (("4090",), 165.2e12, 23.5),
    (("3090",), 71e12, 23.6),
    (("mi355x",), 2.5e15, None),
    (("mi325x",), 1307.4e12, 255.0),
    (("mi300x",), 1307.4e12, 191.5),
)

# What `peak_memory_gib` is made of beside the sizes of tensors. Bytes that one token leaves in one layer for
# each channel of the width, compiled, in bfloat16: fitted to `python -m benchmarks train` on one H200.
ACTIVATION_BYTES = {
    "hopper": 26.2,  # with our kernels, commit 28b42ab: d12, 32 rows, 18.19 GiB; d20, 16 rows, 29.68 GiB
    "hopper_fp8": 23.4,  # commit 8be89fe: d12, 32 rows, 16.66 GiB; d20, 16 rows, 27.41 GiB
    "other": 42.4,  # without any, commit 5c8709d: d12, 32 rows, 27.62 GiB; d20, 16 rows, 43.05 GiB
}
HOPPER = ("h100", "h200", "h800", "gh200")
WITHOUT_FP8 = ("cpu", "a100", "a800", "a40", "a30", "a10g", "a10", "3090", "t4", "v100")  # before Ada
LOGIT_CHUNK_BYTES = 1 << 29  # loss.CHUNK_BYTES of CUDA
OPTIMIZER_BYTES = 4  # of Muon's work for each matrix parameter: d20 on an H200 took 3.3


class Hyperparameters(TypedDict):
    """The arguments of the GPT's constructor, as plan.json holds them; GPTConfig explains each."""

    depth: int
    width: int
    heads: int
    kv_heads: int
    vocab_size: int
    context: int
    rope_base: float
    window_pattern: str
    value_embeddings: bool
    residual_scalars: bool
    smear: bool
    backout: bool
    qk_scale: float
    softcap: float
    initialization: Literal["classic", "modern"]
    vocab_multiple: int
    rope_dtype: Literal["compute", "bfloat16"]
    softcap_dtype: Literal["compute", "float32"]


class Size(NamedTuple):
    width: int
    heads: int
    kv_heads: int


def size_from_depth(depth: int, *, sizing: Literal["classic", "modern"]) -> Size:
    """Width and heads of a depth: width is 64 * depth.

    classic keeps that width and takes ceil(width / 128) heads, whose size then drifts; modern rounds the
    width up to a multiple of 128. Raises ValueError where classic's heads do not divide the width.
    """
    if depth < 1:
        raise ValueError(f"depth is {depth}; it must be 1 or more")
    width = 64 * depth
    heads = -(-width // 128)
    if sizing == "modern":
        return Size(heads * 128, heads, heads)
    if width % heads or width // heads % 2:
        raise ValueError(
            f"depth {depth} gives width {width}, which does not divide into {heads} heads of an even size; "
            f"try depth {depth + 1} or recipe=modern"
        )
    return Size(width, heads, heads)


def padded_vocab_size(vocab_size: int, vocab_multiple: int) -> int:
    """The rows of the embedding tables: the vocabulary, rounded up."""
    return -(-vocab_size // vocab_multiple) * vocab_multiple


def value_embedding_layers(depth: int) -> list[int]:
    """Every other layer, counted so that the last one has a table."""
    return [layer for layer in range(depth) if layer % 2 == (depth - 1) % 2]


def window_sizes(window_pattern: str, *, depth: int, context: int) -> list[int | None]:
    """Return the number of positions back that each layer sees besides its own; None is all of them.

    The pattern is tiled over the layers and the last layer is always L. S is a quarter of the context,
    rounded up to a multiple of 128. In a pattern with S, L reaches one context back (which matters only
    beyond the context); a pattern of L alone has no windows.
    """
    if not window_pattern or set(window_pattern) - set("SL"):
        raise ValueError(f"window_pattern is {window_pattern!r}; it may only have the letters S and L")
    if "S" not in window_pattern:
        return [None] * depth
    quarter = math.ceil(context / 4)
    short = math.ceil(quarter / 128) * 128
    reach = {"S": short, "L": context}
    return [*(reach[window_pattern[layer % len(window_pattern)]] for layer in range(depth - 1)), context]


def parameter_counts(hyperparameters: Hyperparameters) -> dict[str, int]:
    """Parameters by role, of a GPT with these constructor arguments; only roles that it has."""
    h = hyperparameters
    depth, width = h["depth"], h["width"]
    kv_width = width // h["heads"] * h["kv_heads"]
    vocab = padded_vocab_size(h["vocab_size"], h["vocab_multiple"])
    tables = len(value_embedding_layers(depth)) if h["value_embeddings"] else 0
    gate = min(VALUE_GATE_CHANNELS, width) * h["kv_heads"]
    counts = {
        "embedding": vocab * width,
        "value_embedding": tables * vocab * kv_width,
        "unembedding": vocab * width,
        # query and output, key and value, the two of the MLP
        "matrix": depth * (2 * width * width + 2 * width * kv_width + 8 * width * width) + tables * gate,
        "residual_scalar": depth if h["residual_scalars"] else 0,
        "x0_scalar": depth if h["residual_scalars"] else 0,
        "smear": (min(SMEAR_CHANNELS, width) + 1 if h["smear"] else 0) + (1 if h["backout"] else 0),
    }
    return {role: count for role, count in counts.items() if count}


def flops_per_token(hyperparameters: Hyperparameters) -> int:
    """FLOPs of one training token (forward and backward) in a row of a whole context.

    6 per weight of every matrix product, and 12 * width * min(window, context) per layer for attention
    (PaLM, appendix B, https://arxiv.org/abs/2204.02311: the causal half is not taken off). This is nanochat's
    formula of Jul 2026; that of Oct 2025, 6 * (all parameters but the embedding) + 12 * depth * width *
    context, gives the same number for a classic model.
    """
    h = hyperparameters
    counts = parameter_counts(h)
    smear_gate = min(SMEAR_CHANNELS, h["width"]) if h["smear"] else 0
    weights = counts["matrix"] + counts["unembedding"] + smear_gate
    context = h["context"]
    windows = window_sizes(h["window_pattern"], depth=h["depth"], context=context)
    seen = sum(context if window is None else min(window, context) for window in windows)
    return 6 * weights + 12 * h["width"] * seen


def peak_memory_gib(
    hyperparameters: Hyperparameters,
    *,
    micro_batch: int,
    ranks: int = 1,
    compute_bytes: int = 2,
    activation_bytes: float = ACTIVATION_BYTES["other"],
) -> dict[str, float]:
    """Return the peak memory of one GPU by part, for micro-batches of `micro_batch` rows of a whole context.

    Embeddings, and with them activations, are of the compute dtype (2 bytes for bfloat16); the other
    parameters and all that is kept for them of float32. The optimizer's state is dealt out over the ranks.
    Activations and the head's chunk of logits are gone when the optimizer works, so that only the larger
    counts. Of a compiled model: an eager one needs more.
    """
    h, counts = hyperparameters, parameter_counts(hyperparameters)
    tables = counts["embedding"] + counts.get("value_embedding", 0)
    wide = sum(counts.values()) - tables
    tokens = micro_batch * h["context"]
    parameters = 4 * wide + compute_bytes * tables
    muon, adamw = 4 * counts["matrix"], 2 * (parameters - 4 * counts["matrix"])  # momentum; two moments
    activations = activation_bytes * compute_bytes / 2 * tokens * h["depth"] * h["width"]
    logits = min(LOGIT_CHUNK_BYTES, compute_bytes * tokens * h["vocab_size"])
    gradients_of_head = compute_bytes * tokens * h["width"] + (4 + compute_bytes) * counts["unembedding"]
    parts = {
        "parameters": parameters,
        "gradients": parameters,
        "optimizer": (muon + adamw) / ranks,
        "activations": activations,
        "head": logits + gradients_of_head,
        "optimizer_work": OPTIMIZER_BYTES * counts["matrix"],
    }
    kept = parts["parameters"] + parts["gradients"] + parts["optimizer"]
    parts["peak"] = kept + max(parts["activations"] + parts["head"], parts["optimizer_work"])
    return {name: size / 2**30 for name, size in parts.items()}


def peak_bf16_flops(gpu_name: str) -> float | None:
    """Peak dense bfloat16 FLOP/s of a GPU by the name that torch or a cloud gives it; None if unknown."""
    return _figures(gpu_name)[0]


def gpu_memory_gib(gpu_name: str) -> float | None:
    """GiB that a program can allocate on a GPU, by the same name; None if unknown."""
    return _figures(gpu_name)[1]


def activation_bytes(gpu_name: str, precision: str | None) -> float:
    """ACTIVATION_BYTES of a GPU by the same name, for the job's precision; None is bf16 on a GPU."""
    if precision == "fp32" or not _words(gpu_name) & set(HOPPER):
        return ACTIVATION_BYTES["other"]
    return ACTIVATION_BYTES["hopper_fp8" if precision == "fp8" else "hopper"]


def multiplies_in_fp8(gpu_name: str) -> bool:
    """False for a CPU and GPUs known to be older than Ada; a GPU of another name is asked when it trains."""
    return not _words(gpu_name) & set(WITHOUT_FP8)


def _figures(gpu_name: str) -> list[float | None]:
    words = _words(gpu_name)
    return next((figures for needed, *figures in GPU_FIGURES if words.issuperset(needed)), [None, None])


def _words(gpu_name: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", gpu_name.lower()))
