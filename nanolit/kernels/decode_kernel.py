"""The parts of a decode step in Triton. Twin: inference.decode.Decoder.step.

At few rows a step is bound by reading the weights once. So up to FEW rows there are five kernels per layer,
each of which fuses the norm before a product and the activation and residual after it. With more rows
torch's products are the fastest, and small kernels do the work between them. On Hopper a kernel is launched
while the previous one still runs (programmatic dependent launch): it fetches its weights, or the keys and
values of earlier positions, waits for the previous kernel's results, and lets the next one start. Everything
that changes between steps is read past the first-level cache (".cg"), which may still hold the values of an
earlier step when a kernel starts so early. Needs Triton and an NVIDIA GPU, Ampere or newer.

Samples of one prompt share its keys and values: `attend` reads them once for a tile of rows.

Letters: see gpt.py; N columns of a product, R places of a layer's buffer, P parts of a text's keys.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

try:
    from nanolit.kernels.product_kernel import multiply
except ImportError:  # a Triton without Gluon
    multiply = None

EPSILON = torch.finfo(torch.float32).eps  # as in F.rms_norm, which computes in float32
FEW = 16 if multiply else 1  # the most rows that `product` takes
WIDE = 1280  # inner size and columns from which `multiply` takes one row too: 9% faster for d20
PROGRAMS = 132  # multiprocessors of an H200: tiles are sized to give each about one program
MOST_PARTS = 64
CHUNK = 32  # logits; a draw first chooses a chunk
SURVEYED = 64  # chunks of a program
DRAWN = 2048  # logits of a warp, if all are looked into: more would spill registers
NARROW = 128  # chunks; with a top_k a draw rarely has to look into more of them
# When a kernel lets the next one start: after its own wait, or before. Before, more than two overlap, which
# gains 2 to 3% at one row (H200) and costs up to 30% at eight, where they compete for the multiprocessors
LATE, EARLY = tl.constexpr(1), tl.constexpr(2)
FROM_TILE = tl.constexpr(65536)  # what a tile's part adds to a row's count; a part of the row's own adds 1


def begin(
    table_BX: Tensor,
    drawn_B: Tensor,
    embeddings_VC: Tensor,
    previous_BC: Tensor,
    seen_BV: Tensor | None,
    smear: tuple[Tensor, Tensor] | None,
    scalars: tuple[Tensor, Tensor] | None,
    ids_B: Tensor,
    x0_BC: Tensor,
    x_BC: Tensor,
) -> None:
    """Choose each row's token and fill `x0` and `x`, the input of the first block.

    `ids` gets the forced token from the table's first column, or else the row's newest draw; `seen` marks it.
    x0 gets the normalised, smeared embeddings, `previous` those before smear. `smear` is (gate, scale),
    `scalars` the first block's (r, s).
    """
    B, C = x_BC.shape
    gate, scale = smear or (x_BC, x_BC)
    r, s = scalars or (x_BC, x_BC)
    seen, vocab = (ids_B, 0) if seen_BV is None else (seen_BV.view(torch.uint8), seen_BV.size(1))
    _begin[(B,)](
        *(table_BX, drawn_B, embeddings_VC, previous_BC, seen, gate, scale, r, s, ids_B, x0_BC, x_BC),
        *(EPSILON, vocab, C, gate.numel() if smear else 0, table_BX.size(1), vocab > 0),
        *(smear is not None, scalars is not None, triton.next_power_of_2(C)),
        num_warps=4,
        **_launch(x_BC),
    )


def sample(
    logits_BV: Tensor,
    table_BX: Tensor,
    seen_BV: Tensor | None,
    drawn_B: Tensor,
    log_probs_B: Tensor,
    *,
    softcap: float = 0.0,
    mail: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Draw as inference.sampling.sample does, with any mix of settings.

    With `softcap` logits become softcap·tanh(logits / softcap) first. With `mail` (ids and log-probabilities
    by turn and row) the draws go there too, and the table advances by a position and a turn.

    Many programs note each chunk's largest logit and its weight; then one program per row draws. It looks
    only into chunks that may hold one of the top_k, and without a top_k and top_p into one chunk.
    """
    (B, V), seen = logits_BV.shape, drawn_B if seen_BV is None else seen_BV.view(torch.uint8)
    chunks = triton.next_power_of_2(triton.cdiv(V, CHUNK))
    notes_B3N = logits_BV.new_empty(B, 3, chunks, dtype=torch.float32)
    ids, log_probs = mail or (drawn_B.view(1, -1), log_probs_B)
    given = (logits_BV, table_BX, seen, notes_B3N, softcap, V, logits_BV.stride(0))
    shape = (table_BX.size(1), seen_BV is not None, softcap > 0, chunks, CHUNK)
    surveyed, launch = min(SURVEYED, chunks), _launch(logits_BV)
    _survey[(chunks // surveyed, B)](*given, *shape, surveyed, num_warps=4, **launch)
    _sample[(B,)](
        *(*given, drawn_B, log_probs_B, ids, log_probs, ids.size(1), *shape),
        *(min(NARROW, chunks), ids.size(0), mail is not None),
        num_warps=min(32, max(4, chunks * CHUNK // DRAWN)),
        **launch,
    )


def product(
    x_BC: Tensor,
    weight_NC: Tensor,
    out_BN: Tensor,
    *,
    normalized: bool = False,
    squared: bool = False,
    residual_BC: Tensor | None = None,
    mix: tuple[Tensor, Tensor, Tensor] | None = None,
    kept_BC: Tensor | None = None,
) -> None:
    """Fill `out` with x Wᵀ for at most FEW rows, with the element-wise work around it fused in.

    Before the product: x scaled to RMS 1. After it: relu², or + residual, with a copy in `kept`, and then
    r (…) + s x₀ for `mix` (r, s, x₀).
    """
    (B, C), N = x_BC.shape, len(weight_NC)
    r, s, x0_BN = mix or (x_BC, x_BC, x_BC)
    operands = (x_BC, weight_NC, out_BN, x_BC if residual_BC is None else residual_BC)
    operands += (r, s, x0_BN, x_BC if kept_BC is None else kept_BC, EPSILON)
    flags = (normalized, squared, residual_BC is not None, mix is not None, kept_BC is not None)
    if multiply and (B > 1 or min(N, C) >= WIDE):
        multiply(operands, B, N, C, flags, _launch(x_BC))
    else:
        multiply_a_row(operands, N, C, flags, _launch(x_BC))


def multiply_a_row(
    operands: Sequence[Any], N: int, C: int, flags: Sequence[bool], launch: dict[str, Any]
) -> None:
    """Do the same as `product` for one row."""
    columns, warps = _tile_of_a_row(N, C)
    inner = 1024 * warps // columns
    tile = (columns, inner, triton.cdiv(C, inner))
    _multiply_a_row[(triton.cdiv(N, columns),)](*operands, N, C, *flags, *tile, num_warps=warps, **launch)


def _tile_of_a_row(N: int, C: int) -> tuple[int, int]:
    """Return the columns and warps of a program, which loads all its weights at once."""
    columns = 16 if N > 16 * PROGRAMS and C <= 1536 else 4
    return columns, 4 if columns == 16 or C > 2560 else 1


def prepare(
    x_BC: Tensor,
    out_BC: Tensor,
    *,
    mix: tuple[Tensor, Tensor, Tensor] | None = None,
    kept_BC: Tensor | None = None,
    backout: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Fill `out` with x scaled to RMS 1, the input of the next product.

    Before that: copy x to `kept`; x ← r x + s x₀ in place for `mix` (r, s, x₀); x - b·middle for `backout`
    (b, middle).
    """
    B, C = x_BC.shape
    r, s, x0_BC = mix or (x_BC, x_BC, x_BC)
    b, middle_BC = backout or (x_BC, x_BC)
    _prepare[(B,)](
        *(x_BC, out_BC, r, s, x0_BC, x_BC if kept_BC is None else kept_BC, b, middle_BC, EPSILON, C),
        *(mix is not None, kept_BC is not None, backout is not None, triton.next_power_of_2(C)),
        num_warps=4,
        **_launch(x_BC),
    )


def square(hidden_BF: Tensor) -> None:
    """Replace hidden by relu(hidden)²."""
    block = 4096
    _square[(triton.cdiv(hidden_BF.numel(), block),)](
        hidden_BF, hidden_BF.numel(), block, num_warps=8, **_launch(hidden_BF)
    )


def attend(
    qkv_BX: Tensor,
    where: tuple[Tensor, Tensor, Tensor],
    buffers: tuple[Tensor, Tensor],
    value_table: tuple[Tensor, Tensor] | None,
    y_BC: Tensor,
    counts: Tensor,
    *,
    qk_scale: float,
    tiles: tuple[int, int, int] | None = None,
) -> None:
    """Rotate and normalise queries and keys, store the new key and value, and attend to all positions.

    `where` is (table, cosines, sines), with positions in the table's second column; `value_table` is (ids,
    table) where values get an embedding, whose gate is in qkv's last columns. `counts` is zero for each row
    and head, before and after.

    Samples of one prompt at the same position have equal keys and values up to the prompt's end. The first
    programs read those once for all rows of a tile; the others read the rest for each row and head. `tiles`,
    if there are any, has the number of such programs per head, and the most rows and parts of a tile.
    inference.sampling describes the columns of the table.
    """
    keys_BRKD, values_BRKD = buffers
    (B, X), (_, R, K, D), C = qkv_BX.shape, keys_BRKD.shape, y_BC.size(1)
    H = C // D
    parts, keys, warps = _split(B * H, R)
    sharing, tile, tile_parts = tiles or (0, 0, 0)
    if sharing:  # little is a row's own, and programs that find nothing to do cost time too
        parts = min(parts, 4)
    room = triton.next_power_of_2(parts + tile_parts)
    sums = qkv_BX.new_empty(B, H, room, D + 2, dtype=torch.float32)
    ids, table = value_table or (where[0], qkv_BX)
    _attend[(sharing + parts * B, H)](
        *(qkv_BX, *where, keys_BRKD, values_BRKD, ids, table, sums, counts, y_BC, qk_scale, EPSILON),
        *(sharing, parts, X, keys_BRKD.stride(0), R, H, K, where[0].size(1), D, value_table is not None),
        *(room, keys, tile),
        num_warps=warps,
        **_launch(y_BC),
    )


def _split(texts: int, places: int) -> tuple[int, int, int]:
    """Return the parts of each text's keys, the keys that a program reads at once, and its warps.

    `texts` is rows × heads. A multiprocessor of an H200 holds four programs; more parts would wait for others
    to end. Measured with 1,088 positions (LOG.md, 2026-12-01).
    """
    if texts <= 16:
        return min(MOST_PARTS, int(triton.next_power_of_2(triton.cdiv(places, 16)))), 32, 2
    parts = max(2, min(4 * PROGRAMS // texts, int(triton.cdiv(places, 16))))
    return parts, 32 if texts >= 4 * PROGRAMS else 16, 2


def _launch(x: Tensor) -> dict[str, Any]:
    """Return the launch options for the kernels of a step, whose rows `x` has."""
    if not x.is_cuda or torch.cuda.get_device_capability(x.device)[0] < 9:
        return {"DEPENDENT": 0}
    return {"DEPENDENT": (EARLY if len(x) == 1 else LATE).value, "launch_pdl": True}


@triton.jit
def _begin(
    rows, drawn, embeddings, previous, seen, gate, scale, r, s, ids, x0, x, epsilon, V, C, GATES,
    COLUMNS: tl.constexpr, SEEN: tl.constexpr, SMEAR: tl.constexpr, SCALARS: tl.constexpr,
    BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    if DEPENDENT:
        gdc_wait()
        if DEPENDENT != EARLY:  # the kernel after the next reads the ids before its wait
            gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < C
    forced = _whole(rows + row * COLUMNS).to(tl.int64)
    token = tl.where(forced >= 0, forced, tl.maximum(_whole(drawn + row), 0))
    tl.store(ids + row, token)
    if SEEN:
        tl.store(seen + row * V + token, 1)
    y = tl.load(embeddings + token * C + column, mask=inside, other=0.0).to(tl.float32)
    y = (y * tl.rsqrt(tl.sum(y * y) / C + epsilon)).to(x.dtype.element_ty)
    if SMEAR:
        before = tl.load(previous + row * C + column, mask=inside, other=0.0, cache_modifier=".cg")
        weight = tl.load(gate + column, mask=column < GATES, other=0.0).to(tl.float32)
        opened = tl.sigmoid(tl.sum(y.to(tl.float32) * weight))
        tl.store(previous + row * C + column, y, mask=inside)
        opened *= tl.load(scale).to(tl.float32)
        y = (y.to(tl.float32) + opened * before.to(tl.float32)).to(x.dtype.element_ty)
    tl.store(x0 + row * C + column, y, mask=inside)
    if SCALARS:
        y = ((tl.load(r) + tl.load(s)) * y.to(tl.float32)).to(x.dtype.element_ty)
    tl.store(x + row * C + column, y, mask=inside)


@triton.jit
def _wait(DEPENDENT: tl.constexpr):
    """Wait for the previous kernel, and let the next one start."""
    if DEPENDENT == EARLY:
        gdc_launch_dependents()
    if DEPENDENT:
        gdc_wait()
    if DEPENDENT == LATE:
        gdc_launch_dependents()


@triton.jit
def _order(x):
    """Return int32 keys in the order of these float32 numbers; -0 counts as 0."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _number(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _weights(keys, least, best, warmth):
    return tl.where(keys >= least, tl.exp((_number(keys) - best) / warmth), 0.0)


@triton.jit
def _bound(keys, target, least, highest, best, warmth, WEIGHTED: tl.constexpr):
    """Return the smallest key with fewer keys (or less weight) above it than `target`.

    Bisects the range from `least` to `highest`, moving on to the next key that occurs: 16-bit logits have few
    distinct ones. Recomputes the weights each time, because registers cannot hold them.
    """
    low, high = least - 1, highest
    while low + 1 < high:
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, without overflow
        if WEIGHTED:
            above = tl.sum(_weights(keys, middle + 1, best, warmth))
        else:
            above = tl.sum((keys > middle).to(tl.int32))
        if above < target:
            high = tl.max(tl.where(keys > middle, -(2**31), keys))
        else:
            low = tl.min(tl.where(keys > middle, keys, 2**31 - 1)) - 1
    return high


@triton.jit
def _first_bound(tops, top_k, highest, NARROW: tl.constexpr):
    """Return a key that at least top_k of the chunks' largest reach, but no more than NARROW if possible."""
    low, high = tl.min(tops), highest
    while low < high - 1:  # not low + 1: NaN is the largest key there is
        middle = (low & high) + ((low ^ high) >> 1)
        reached = tl.sum((tops >= middle).to(tl.int32))
        if reached >= top_k:
            low = middle
        if (reached < top_k) | (reached <= NARROW):
            high = tl.where(reached < top_k, middle, low)
    return low


@triton.jit
def _survey(
    logits, rows, seen, notes, softcap, V, row_stride, COLUMNS: tl.constexpr, SEEN: tl.constexpr,
    SOFTCAP: tl.constexpr, CHUNKS: tl.constexpr, CHUNK: tl.constexpr, SURVEYED: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    _wait(DEPENDENT)
    row = tl.program_id(1).to(tl.int64)
    line, logits, seen = rows + row * COLUMNS, logits + row * row_stride, seen + row * V
    temperature = _whole(line + 4).to(tl.float32, bitcast=True)
    penalty = _whole(line + 6).to(tl.float32, bitcast=True)
    warmth = tl.where(temperature == 0, 1.0, temperature)
    chunk = tl.program_id(0) * SURVEYED + tl.arange(0, SURVEYED)
    place = chunk[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    x = _penalised(logits, seen, place, V, penalty, softcap, SEEN, SOFTCAP)
    tops = _number(tl.max(_order(x), axis=1))
    weights = tl.where(x == float("-inf"), 0.0, tl.exp((x - tops[:, None]) / warmth))
    own = notes + row * 3 * CHUNKS + chunk
    tl.store(own, tops)
    tl.store(own + CHUNKS, tl.sum(weights, axis=1))


@triton.jit
def _draw_among(
    chunk, logits, seen, softcap, V, penalty, top_k, top_p, least, highest, best, warmth, uniform,
    SEEN: tl.constexpr, SOFTCAP: tl.constexpr, CHUNKS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Return the least key within top_k and top_p, and what `_pick` does, of these CHUNKS chunks."""
    place = chunk[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    # Only keys stay in registers; they convert back to numbers
    keys = _order(_penalised(logits, seen, place, V, penalty, softcap, SEEN, SOFTCAP))
    if top_k > 0:
        least = _bound(keys, top_k, least, highest, best, warmth, False)
    if top_p < 1:  # keep a token if likelier ones have less than top_p of all probability
        most = top_p * tl.sum(_weights(keys, least, best, warmth))
        least = _bound(keys, most, least, highest, best, warmth, True)
    number, point, total = _pick(tl.sum(_weights(keys, least, best, warmth), axis=1), uniform, CHUNKS)
    return least, tl.sum(tl.where(tl.arange(0, CHUNKS) == number, chunk, 0)), point, total


@triton.jit
def _pick(weights, uniform, COUNT: tl.constexpr):
    """Return the number of the drawn one, the weight between its start and the draw, and the total.

    Sums of parallel scans are not quite monotone, so a number without weight is passed over.
    """
    sums, number = tl.cumsum(weights, axis=0), tl.arange(0, COUNT)
    total = tl.sum(tl.where(number == COUNT - 1, sums, 0.0))
    point = uniform * total
    drawn = tl.min(tl.where((sums > point) & (weights > 0), number, COUNT))
    drawn = tl.minimum(drawn, tl.max(tl.where(weights > 0, number, 0)))
    return drawn, tl.maximum(point - tl.sum(tl.where(number < drawn, weights, 0.0)), 0.0), total


@triton.jit
def _sample(
    logits, rows, seen, notes, softcap, V, row_stride, drawn, log_probs, mailed_ids, mailed_log_probs, MAILED,
    COLUMNS: tl.constexpr, SEEN: tl.constexpr, SOFTCAP: tl.constexpr, CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr, NARROW: tl.constexpr, TURNS: tl.constexpr, MAIL: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    _wait(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    line, logits, seen = rows + row * COLUMNS, logits + row * row_stride, seen + row * V
    position, top_k, turn = _whole(line + 1), _whole(line + 2), _whole(line + 7)
    temperature = _whole(line + 4).to(tl.float32, bitcast=True)
    top_p = _whole(line + 5).to(tl.float32, bitcast=True)
    penalty = _whole(line + 6).to(tl.float32, bitcast=True)
    warmth, uniform = tl.where(temperature == 0, 1.0, temperature), _uniform(line, position)
    number, own = tl.arange(0, CHUNKS), notes + row * 3 * CHUNKS
    tops = _order(tl.load(own + number, cache_modifier=".cg"))
    highest = tl.max(tops)
    best = _number(highest)
    least = tl.full((), -2139095041, tl.int32)  # the key of -inf
    if (top_k > 0) & (top_k < CHUNKS):
        least = _first_bound(tops, top_k, highest, NARROW)
    # A line of zeros is not a row
    if (penalty > 0) & ((top_k > 0) | (top_p < 1)):
        inside = tops >= least
        count = tl.sum(inside.to(tl.int32))
        if count <= NARROW:
            kept, place = own + 2 * CHUNKS, tl.arange(0, NARROW)
            tl.store(kept + tl.cumsum(inside.to(tl.int32), axis=0) - 1, number.to(tl.float32), mask=inside)
            tl.debug_barrier()
            some = tl.load(kept + place, mask=place < count, other=CHUNKS, cache_modifier=".cg").to(tl.int32)
            least, chunk, point, total = _draw_among(
                some, logits, seen, softcap, V, penalty, top_k, top_p, least, highest, best, warmth, uniform,
                SEEN, SOFTCAP, NARROW, CHUNK,
            )  # fmt: skip
        else:
            least, chunk, point, total = _draw_among(
                number, logits, seen, softcap, V, penalty, top_k, top_p, least, highest, best, warmth,
                uniform, SEEN, SOFTCAP, CHUNKS, CHUNK,
            )  # fmt: skip
    else:
        sums = tl.load(own + CHUNKS + number, cache_modifier=".cg")
        chunk, point, total = _pick(sums * tl.exp((_number(tops) - best) / warmth), uniform, CHUNKS)
    if temperature == 0:
        chunk = tl.min(tl.where(tops == highest, number, CHUNKS))
    token = tl.arange(0, CHUNK)
    x = _penalised(logits, seen, chunk * CHUNK + token, V, penalty, softcap, SEEN, SOFTCAP)
    keys = _order(x)
    weights = tl.where(keys >= least, tl.exp((x - best) / warmth), 0.0)
    after = tl.min(tl.where((tl.cumsum(weights, axis=0) > point) & (weights > 0), token, CHUNK))
    # Rounding may put the point behind the chunk's last token: then take its likeliest
    likeliest = tl.min(tl.where(keys == tl.max(keys), token, CHUNK))
    after = tl.where((temperature > 0) & (after < CHUNK), after, likeliest)
    log_prob = (tl.sum(tl.where(token == after, x, 0.0)) - best) / warmth - tl.log(total)
    id = tl.where((total > 0) & (total < float("inf")), chunk * CHUNK + after, -1).to(tl.int64)
    tl.store(log_probs + row, log_prob)
    tl.store(drawn + row, id)
    if MAIL:  # noqa: SIM102 (a compile-time constant, and a run-time number)
        if penalty > 0:  # not a line of zeros, whose draw would overwrite an older turn's mail
            mailed = (turn % TURNS) * MAILED + row
            tl.store(mailed_ids + mailed, id)
            tl.store(mailed_log_probs + mailed, log_prob)
            tl.store(line, -1)
            tl.store(line + 1, position + 1)
            tl.store(line + 7, turn + 1)


@triton.jit
def _whole(at):
    return tl.load(at, cache_modifier=".cg")


@triton.jit
def _uniform(line, position):
    """Do the same as inference.sampling.uniforms."""
    low = _whole(line + 8).to(tl.uint32, bitcast=True).to(tl.uint64)
    high = _whole(line + 9).to(tl.uint32, bitcast=True).to(tl.uint64)
    hashed = (low | (high << 32)) + (position.to(tl.uint64) + 2) * 0x9E3779B97F4A7C15
    hashed = (hashed ^ (hashed >> 30)) * 0xBF58476D1CE4E5B9
    hashed = (hashed ^ (hashed >> 27)) * 0x94D049BB133111EB
    return ((hashed ^ (hashed >> 31)) >> 40).to(tl.float32) / 16777216


@triton.jit
def _penalised(logits, seen, place, V, penalty, softcap, SEEN: tl.constexpr, SOFTCAP: tl.constexpr):
    """Return the logits, penalised where their token was seen; -inf beyond the vocabulary."""
    x = tl.load(logits + place, mask=place < V, other=float("-inf"), cache_modifier=".cg").to(tl.float32)
    if SOFTCAP:  # tanh(z) = 2 / (1 + exp(-2z)) - 1
        x = tl.where(place < V, softcap * (2 / (1 + tl.exp(-2 * x / softcap)) - 1), x)
    if SEEN:
        known = tl.load(seen + place, mask=place < V, other=0, cache_modifier=".cg") != 0
        x = tl.where(known, tl.where(x > 0, x / penalty, x * penalty), x)
    return x


@triton.jit
def _multiply_a_row(
    x, weight, out, residual, r, s, x0, kept, epsilon, N, C: tl.constexpr, NORMALIZED: tl.constexpr,
    SQUARED: tl.constexpr, RESIDUAL: tl.constexpr, MIX: tl.constexpr, KEPT: tl.constexpr,
    COLUMNS: tl.constexpr, INNER: tl.constexpr, CHUNKS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    column, step = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, INNER)
    ws = ()
    for chunk in tl.static_range(CHUNKS):
        inner = chunk * INNER + step[None, :]
        known = (column[:, None] < N) & (inner < C)
        at = weight + column[:, None] * C + inner
        ws += (tl.load(at, mask=known, other=0.0, eviction_policy="evict_first"),)
    _wait(DEPENDENT)
    parts, squares = tl.zeros((COLUMNS, INNER), tl.float32), tl.zeros((INNER,), tl.float32)
    for chunk in tl.static_range(CHUNKS):
        inner = chunk * INNER + step
        a = tl.load(x + inner, mask=inner < C, other=0.0, cache_modifier=".cg").to(tl.float32)
        parts += ws[chunk].to(tl.float32) * a[None, :]
        squares += a * a
    y = tl.sum(parts, axis=1)
    if NORMALIZED:
        y *= tl.rsqrt(tl.sum(squares) / C + epsilon)
    _finish(y, column, column < N, out, residual, r, s, x0, kept, SQUARED, RESIDUAL, MIX, KEPT)


@triton.jit
def _finish(
    y, place, inside, out, residual, r, s, x0, kept, SQUARED: tl.constexpr, RESIDUAL: tl.constexpr,
    MIX: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """Apply the work after a product and store it, rounded where the plain step rounds."""
    dtype = out.dtype.element_ty
    y = y.to(dtype).to(tl.float32)
    if SQUARED:
        y = tl.maximum(y, 0.0)
        y = y * y
    if RESIDUAL:
        y += tl.load(residual + place, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
    if KEPT:
        tl.store(kept + place, y.to(dtype), mask=inside)
    if MIX:
        y = y.to(dtype).to(tl.float32)
        first = tl.load(x0 + place, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
        y = tl.load(r) * y + tl.load(s) * first
    tl.store(out + place, y.to(dtype), mask=inside)


@triton.jit
def _prepare(
    x, out, r, s, x0, kept, b, middle, epsilon, C, MIX: tl.constexpr, KEPT: tl.constexpr,
    BACKOUT: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    _wait(DEPENDENT)
    column = tl.arange(0, BLOCK)
    dtype = x.dtype.element_ty
    inside, place = column < C, tl.program_id(0).to(tl.int64) * C + column
    y = tl.load(x + place, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
    if KEPT:
        tl.store(kept + place, y.to(dtype), mask=inside)
    if MIX:
        first = tl.load(x0 + place, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
        y = tl.load(r) * y + tl.load(s) * first
        y = y.to(dtype).to(tl.float32)
        tl.store(x + place, y.to(dtype), mask=inside)
    if BACKOUT:
        less = tl.load(middle + place, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
        y = (y - tl.load(b).to(tl.float32) * less).to(dtype).to(tl.float32)
    tl.store(out + place, (y * tl.rsqrt(tl.sum(y * y) / C + epsilon)).to(dtype), mask=inside)


@triton.jit
def _square(hidden, count, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr):
    _wait(DEPENDENT)
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    y = tl.load(hidden + place, mask=place < count, cache_modifier=".cg").to(tl.float32)
    y = tl.maximum(y, 0.0)
    tl.store(hidden + place, (y * y).to(hidden.dtype.element_ty), mask=place < count)


@triton.jit
def _attend(
    qkv, rows, cosines, sines, keys, values, ids, table, sums, counts, y, qk_scale, epsilon, sharing, most, X,
    row_stride, R, H, K, COLUMNS: tl.constexpr, D: tl.constexpr, TABLE: tl.constexpr, ROOM: tl.constexpr,
    KEYS: tl.constexpr, TILE: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    index, head, of_tile = tl.program_id(0), tl.program_id(1), 1
    if TILE:
        of_tile = tl.maximum(_whole(rows + 14), 1)
    if index < sharing:
        if TILE:  # noqa: SIM102 (a compile-time constant)
            if index < _whole(rows + 13) * of_tile:
                _attend_together(
                    index // of_tile, index % of_tile, of_tile, head, qkv, rows, cosines, sines, keys, values,
                    sums, counts, qk_scale, epsilon, most, X, row_stride, R, H, K, COLUMNS, D, ROOM, TILE,
                    DEPENDENT,
                )  # fmt: skip
    else:
        _attend_alone(
            (index - sharing) // most, (index - sharing) % most, of_tile, head, qkv, rows, cosines, sines,
            keys, values, ids, table, sums, counts, y, qk_scale, epsilon, most, X, row_stride, R, H, K,
            COLUMNS, D, TABLE, ROOM, KEYS, TILE > 0, DEPENDENT,
        )  # fmt: skip


@triton.jit
def _shared(line, position, of_tile, R):
    """Return where a row's visible keys begin, where its own do, a tile's keys of a part, and its parts."""
    visible = tl.maximum(position + 1 - R, 0)
    end = tl.maximum(_whole(line + 10), visible)
    chunk = tl.maximum(tl.cdiv(tl.cdiv(end - visible, of_tile), 32), 1) * 32
    return visible, end, chunk, tl.cdiv(end - visible, chunk)


@triton.jit
def _attend_together(
    tile, part, of_tile, head, qkv, rows, cosines, sines, keys, values, sums, counts, qk_scale, epsilon,
    most, X, row_stride, R, H, K, COLUMNS: tl.constexpr, D: tl.constexpr, ROOM: tl.constexpr,
    TILE: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Attend to a part of the keys that a tile of rows shares, as the first of them holds them."""
    first, end = _whole(rows + tile * COLUMNS + 11), _whole(rows + (tile + 1) * COLUMNS + 11)
    number = tl.arange(0, TILE)
    there = number < end - first
    row = tl.load(rows + (first + number) * COLUMNS + 12, mask=there, other=0).to(tl.int64)
    leader = _whole(rows + first * COLUMNS + 12).to(tl.int64)
    line = rows + leader * COLUMNS
    position = _whole(line + 1)
    visible, end_of_shared, chunk, parts = _shared(line, position, of_tile, R)
    if part < parts:
        half = tl.arange(0, D // 2)
        start, last = visible + part * chunk, tl.minimum(visible + (part + 1) * chunk, end_of_shared)
        of_text, stride = leader * row_stride + (head // (H // K)) * D, K * D
        k1, k2 = _halves(keys + of_text, start, last, half, stride, R, D, 32)
        v1, v2 = _halves(values + of_text, start, last, half, stride, R, D, 32)
        cos = tl.load(cosines + position * (D // 2) + half).to(tl.float32)[None, :]
        sin = tl.load(sines + position * (D // 2) + half).to(tl.float32)[None, :]
        _wait(DEPENDENT)
        at = qkv + row[:, None] * X + head * D + half[None, :]
        u1 = tl.load(at, mask=there[:, None], other=0.0, cache_modifier=".cg").to(tl.float32)
        u2 = tl.load(at + D // 2, mask=there[:, None], other=0.0, cache_modifier=".cg").to(tl.float32)
        q1, q2 = u1 * cos + u2 * sin, u2 * cos - u1 * sin
        rms = tl.rsqrt(tl.sum(q1 * q1 + q2 * q2, axis=1) / D + epsilon)[:, None] * qk_scale
        q1, q2 = (q1 * rms).to(k1.dtype), (q2 * rms).to(k1.dtype)
        scale = 1.4426950408889634 / tl.sqrt(tl.cast(D, tl.float32))
        best, weights = tl.full((TILE,), -1e30, tl.float32), tl.zeros((TILE,), tl.float32)
        sum1, sum2 = tl.zeros((TILE, D // 2), tl.float32), tl.zeros((TILE, D // 2), tl.float32)
        while start < last:
            next_k1, next_k2 = _halves(keys + of_text, start + 32, last, half, stride, R, D, 32)
            next_v1, next_v2 = _halves(values + of_text, start + 32, last, half, stride, R, D, 32)
            scores = tl.dot(q1, tl.trans(k1), input_precision="ieee")
            scores = tl.dot(q2, tl.trans(k2), scores, input_precision="ieee") * scale
            scores = tl.where((start + tl.arange(0, 32) < last)[None, :], scores, -1e30)
            raised = tl.maximum(best, tl.max(scores, axis=1))
            factor, new_weights = tl.exp2(best - raised), tl.exp2(scores - raised[:, None])
            weights = weights * factor + tl.sum(new_weights, axis=1)
            new_weights = new_weights.to(v1.dtype)
            sum1 = tl.dot(new_weights, v1, sum1 * factor[:, None], input_precision="ieee")
            sum2 = tl.dot(new_weights, v2, sum2 * factor[:, None], input_precision="ieee")
            best = raised
            k1, k2, v1, v2 = next_k1, next_k2, next_v1, next_v2
            start += 32
        mine = sums + ((row * H + head) * ROOM + most + part) * (D + 2)  # after the row's own parts
        tl.store(mine[:, None] + half[None, :], sum1, mask=there[:, None])
        tl.store(mine[:, None] + D // 2 + half[None, :], sum2, mask=there[:, None])
        tl.store(mine + D, best, mask=there)
        tl.store(mine + D + 1, weights, mask=there)
        tl.debug_barrier()  # written before it is counted
        tl.atomic_add(counts + row * H + head, FROM_TILE, mask=there, sem="acq_rel")


@triton.jit
def _attend_alone(
    row, part, of_tile, head, qkv, rows, cosines, sines, keys, values, ids, table, sums, counts, y, qk_scale,
    epsilon, most, X, row_stride, R, H, K, COLUMNS: tl.constexpr, D: tl.constexpr, TABLE: tl.constexpr,
    ROOM: tl.constexpr, KEYS: tl.constexpr, SHARING: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Attend to a part of the keys that a row shares with no other, and to the new one; the last adds up."""
    row, kv_head, half = row.to(tl.int64), head // (H // K), tl.arange(0, D // 2)
    line = rows + row * COLUMNS
    position = _whole(line + 1)
    shared_parts = 0
    own = tl.maximum(position + 1 - R, 0)
    if SHARING:
        _, own, _, shared_parts = _shared(line, position, of_tile, R)
    chunk = tl.maximum(tl.cdiv(tl.cdiv(position - own, most), KEYS), 1) * KEYS
    start, last = own + part * chunk, tl.minimum(own + (part + 1) * chunk, position)
    parts = tl.maximum(tl.cdiv(position - own, chunk), 1)  # that have keys, or the new one
    if part < parts:
        of_text, stride = row * row_stride + kv_head * D, K * D
        # No other kernel of this step writes these keys and values
        k1, k2 = _halves(keys + of_text, start, last, half, stride, R, D, KEYS)
        v1, v2 = _halves(values + of_text, start, last, half, stride, R, D, KEYS)
        cos = tl.load(cosines + position * (D // 2) + half).to(tl.float32)
        sin = tl.load(sines + position * (D // 2) + half).to(tl.float32)
        added1, added2 = tl.zeros((D // 2,), tl.float32), tl.zeros((D // 2,), tl.float32)
        if TABLE:  # the previous kernel does not write the ids
            entry = table + (_whole(ids + row) * K + kv_head) * D + half
            added1, added2 = tl.load(entry).to(tl.float32), tl.load(entry + D // 2).to(tl.float32)
        _wait(DEPENDENT)
        # The new key and value are used directly, and loaded together with the query: loading one after
        # another took longer than reading the older keys
        q1, q2 = _head(qkv + row * X + head * D, half, cos, sin, qk_scale, epsilon, D)
        new_k1, new_k2 = _head(qkv + row * X + (H + kv_head) * D, half, cos, sin, qk_scale, epsilon, D)
        new = qkv + row * X + (H + K + kv_head) * D + half
        new_v1, new_v2 = tl.load(new, cache_modifier=".cg"), tl.load(new + D // 2, cache_modifier=".cg")
        if TABLE:
            gate = 3 * tl.sigmoid(
                tl.load(qkv + row * X + (H + 2 * K) * D + kv_head, cache_modifier=".cg").to(tl.float32)
            )
            new_v1 = (new_v1.to(tl.float32) + gate * added1).to(new_v1.dtype)
            new_v2 = (new_v2.to(tl.float32) + gate * added2).to(new_v2.dtype)
        scale = 1.4426950408889634 / tl.sqrt(tl.cast(D, tl.float32))  # GPUs compute exp2 natively
        q1, q2 = q1.to(tl.float32) * scale, q2.to(tl.float32) * scale
        # Each of the KEYS places has its own sums, added up last, so that warps need not wait for one another
        bests, each_weights = tl.full((KEYS,), -1e30, tl.float32), tl.zeros((KEYS,), tl.float32)
        sums1, sums2 = tl.zeros((KEYS, D // 2), tl.float32), tl.zeros((KEYS, D // 2), tl.float32)
        while start < last:
            next_k1, next_k2 = _halves(keys + of_text, start + KEYS, last, half, stride, R, D, KEYS)
            next_v1, next_v2 = _halves(values + of_text, start + KEYS, last, half, stride, R, D, KEYS)
            seen = start + tl.arange(0, KEYS) < last
            scores = tl.sum(k1.to(tl.float32) * q1[None, :] + k2.to(tl.float32) * q2[None, :], axis=1)
            scores = tl.where(seen, scores, -1e30)
            raised = tl.maximum(bests, scores)
            factor, new_weights = tl.exp2(bests - raised), tl.where(seen, tl.exp2(scores - raised), 0.0)
            each_weights = each_weights * factor + new_weights
            sums1 = sums1 * factor[:, None] + v1.to(tl.float32) * new_weights[:, None]
            sums2 = sums2 * factor[:, None] + v2.to(tl.float32) * new_weights[:, None]
            bests = raised
            k1, k2, v1, v2 = next_k1, next_k2, next_v1, next_v2
            start += KEYS
        best = tl.max(bests)
        factor = tl.exp2(bests - best)
        weights = tl.sum(each_weights * factor)
        sum1 = tl.sum(sums1 * factor[:, None], axis=0)
        sum2 = tl.sum(sums2 * factor[:, None], axis=0)

        if part == 0:
            if head % (H // K) == 0:
                slot = of_text + (position % R).to(tl.int64) * stride + half
                tl.store(keys + slot, new_k1)
                tl.store(keys + slot + D // 2, new_k2)
                tl.store(values + slot, new_v1)
                tl.store(values + slot + D // 2, new_v2)
            score = tl.sum(new_k1.to(tl.float32) * q1 + new_k2.to(tl.float32) * q2)
            higher = tl.maximum(best, score)
            shrunk, weight = tl.exp2(best - higher), tl.exp2(score - higher)
            weights = weights * shrunk + weight
            sum1 = sum1 * shrunk + new_v1.to(tl.float32) * weight
            sum2 = sum2 * shrunk + new_v2.to(tl.float32) * weight
            best = higher

        out, count = y + row * (H * D) + head * D + half, counts + row * H + head
        if ROOM == 1:
            tl.store(out, (sum1 / weights).to(y.dtype.element_ty))
            tl.store(out + D // 2, (sum2 / weights).to(y.dtype.element_ty))
        else:
            own_sums = sums + ((row * H + head) * ROOM) * (D + 2)
            mine = own_sums + part * (D + 2)
            tl.store(mine + half, sum1)
            tl.store(mine + D // 2 + half, sum2)
            tl.store(mine + D, best)
            tl.store(mine + D + 1, weights)
            tl.debug_barrier()  # this program's part is written before it is counted
            counted = tl.atomic_add(count, 1, sem="acq_rel") + 1
            if counted % FROM_TILE == parts:  # the last adds them up
                # Programs of lower index, which have begun, attend to what the row shares. Its line and that
                # of the tile's first row agree on what that is, or this would never end
                while counted // FROM_TILE < shared_parts:
                    counted = tl.atomic_add(count, 0, sem="acq_rel")
                tl.debug_barrier()
                number = tl.arange(0, ROOM)
                each, there = own_sums + number * (D + 2), number < parts
                there |= (number >= most) & (number < most + shared_parts)
                tops = tl.load(each + D, mask=there, other=-1e30, cache_modifier=".cg")
                share = tl.exp2(tops - tl.max(tops))
                norm = tl.sum(share * tl.load(each + D + 1, mask=there, other=0.0, cache_modifier=".cg"))
                at, there = each[:, None] + half[None, :], there[:, None]
                all1 = tl.load(at, mask=there, other=0.0, cache_modifier=".cg")
                all2 = tl.load(at + D // 2, mask=there, other=0.0, cache_modifier=".cg")
                tl.store(out, (tl.sum(all1 * share[:, None], axis=0) / norm).to(y.dtype.element_ty))
                tl.store(out + D // 2, (tl.sum(all2 * share[:, None], axis=0) / norm).to(y.dtype.element_ty))
                tl.store(count, 0)


@triton.jit
def _head(at, half, cos, sin, scale, epsilon, D: tl.constexpr):
    """Return the two halves of a head, rotated and scaled to RMS `scale`, in the projection's dtype."""
    u1 = tl.load(at + half, cache_modifier=".cg").to(tl.float32)
    u2 = tl.load(at + D // 2 + half, cache_modifier=".cg").to(tl.float32)
    turned1, turned2 = u1 * cos + u2 * sin, u2 * cos - u1 * sin
    rms = tl.rsqrt(tl.sum(turned1 * turned1 + turned2 * turned2) / D + epsilon)
    dtype = at.dtype.element_ty
    return (turned1 * rms * scale).to(dtype), (turned2 * rms * scale).to(dtype)


@triton.jit
def _halves(of_text, start, last, half, stride, R, D: tl.constexpr, KEYS: tl.constexpr):
    """Return the two halves of the keys or values of KEYS positions, with 0 from `last` on."""
    number = start + tl.arange(0, KEYS)[:, None]
    at = of_text + (number % R).to(tl.int64) * stride + half[None, :]
    one = tl.load(at, mask=number < last, other=0.0, cache_modifier=".cg")
    return one, tl.load(at + D // 2, mask=number < last, other=0.0, cache_modifier=".cg")
