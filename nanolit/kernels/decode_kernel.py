"""The parts of a decode step in Triton: five kernels a layer. Twin: inference.decode.Decoder.step.

At few rows a step is nothing but reading weights once, so every kernel does with them all that can be done
while they stream by: the norm before a product, the activation and the residual after it. On Hopper a kernel
is launched while the one before it still runs (programmatic dependent launch) and waits for its results only
once its own weights are on the way; it lets the next one in after that wait, and what others wrote is read
past the first-level cache (".cg"). Import this where there is Triton, on NVIDIA from Ampere on.

What is known of its speed (H200, one run, LOG.md 2026-11-30): about 30 µs a layer and 1.2 µs a MB of weights
at one row, where memory needs 0.23, probably because products had too few bytes in flight. Their tiles have
more stages since. They serve up to 64 rows: see FUSED_ROWS in inference/decode.py.

Letters: see gpt.py; N columns of a product, R places of a layer's buffer, P parts of a text's keys.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

EPSILON = torch.finfo(torch.float32).eps  # that of F.rms_norm, which computes in float32
KEYS = 64  # of one text and head, that a program reads at once
PROGRAMS = 1056  # that attention is split for: eight on each multiprocessor of an H200; untuned
MOST_PARTS = 32
CHUNK = 128  # of logits: a draw first chooses one
LINE_BYTES = 128  # that are fetched at once
# Up to so many rows: a tile's rows, columns, inner numbers, warps and stages, of a product with few columns
# (small tiles, so that most multiprocessors have one) and with more than NARROW. Sized to fit in 99 KiB of
# shared memory, an A10G's; else untuned
NARROW = 2048
TILES = (
    (16, (16, 16, 256, 4, 7), (16, 16, 256, 4, 5)),
    (64, (32, 16, 256, 4, 5), (32, 16, 256, 4, 4)),
    (256, (64, 32, 128, 4, 4), (128, 64, 64, 8, 4)),
    (1024, (128, 128, 64, 8, 3), (128, 128, 64, 8, 3)),
)


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
    """Fill `ids` with each row's forced token, in the table's first column, or else with what it drew, note
    them as seen, and fill x0 with their normalised, smeared embeddings and x with the first block's input.

    `previous` gets the embeddings before smear; `smear` is (gate, scale), `scalars` the first block's (r, s).
    """
    B, C = x_BC.shape
    gate, scale = smear or (x_BC, x_BC)
    r, s = scalars or (x_BC, x_BC)
    seen, vocab = (ids_B, 0) if seen_BV is None else (seen_BV.view(torch.uint8), seen_BV.size(1))
    _begin[(B,)](
        *(table_BX, drawn_B, embeddings_VC, previous_BC, seen, gate, scale, r, s, ids_B, x0_BC, x_BC),
        *(EPSILON, vocab, C, gate.numel() if smear else 0, table_BX.size(1), vocab > 0),
        *(smear is not None, scalars is not None, triton.next_power_of_2(C)),
        **_launch(x_BC, warps=4),
    )


def sample(
    logits_BV: Tensor, table_BX: Tensor, seen_BV: Tensor | None, drawn_B: Tensor, log_probs_B: Tensor
) -> None:
    """Draw as inference.sampling.sample does, whatever the rows ask for, a program a row."""
    (B, V), block = logits_BV.shape, triton.next_power_of_2(logits_BV.size(1))
    warps = min(32, max(4, block // 2048))  # 64 logits a thread: more would not stay in registers
    seen = drawn_B if seen_BV is None else seen_BV.view(torch.uint8)
    _sample[(B,)](
        *(logits_BV, table_BX, seen, drawn_B, log_probs_B, V, table_BX.size(1), seen_BV is not None),
        *(max(block // CHUNK, 1), min(CHUNK, block)),
        **_launch(logits_BV, warps=warps),
    )


def product(
    x_BC: Tensor,
    weight_NC: Tensor,
    out_BN: Tensor,
    *,
    normalized: bool = False,
    squared: bool = False,
    residual_BN: Tensor | None = None,
    mix: tuple[Tensor, Tensor, Tensor] | None = None,
    kept_BN: Tensor | None = None,
    backout: tuple[Tensor, Tensor] | None = None,
    softcap: float = 0.0,
) -> None:
    """Fill out with x Wᵀ, and what stands around it.

    Before: x - b·middle for `backout` (b, middle), and x at RMS 1. After: relu², or + residual, kept as
    `kept`, and r (…) + s x₀ for `mix` (r, s, x₀), or softcap·tanh(… / softcap).
    """
    (B, C), N = x_BC.shape, len(weight_NC)
    wide = N > NARROW or backout is not None
    rows, columns, inner, warps, stages = next(tiles[1 + wide] for tiles in TILES if tiles[0] >= B)
    stages = max(2, stages - 2) if backout else stages  # it streams a third operand
    line = LINE_BYTES // weight_NC.element_size()
    r, s, x0_BN = mix or (x_BC, x_BC, x_BC)
    b, middle_BC = backout or (x_BC, x_BC)
    _product[(triton.cdiv(N, columns), triton.cdiv(B, rows))](
        *(x_BC, weight_NC, out_BN, x_BC if residual_BN is None else residual_BN),
        *(r, s, x0_BN, x_BC if kept_BN is None else kept_BN, b, middle_BC, softcap, EPSILON),
        *(B, N, out_BN.stride(0), C, normalized, squared, residual_BN is not None, mix is not None),
        *(kept_BN is not None, backout is not None, softcap > 0, rows, columns, inner),
        *(triton.next_power_of_2(triton.cdiv(C, line)), line),
        **_launch(x_BC, warps=warps, stages=stages),
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
) -> None:
    """Rotate and normalise queries and keys, store the new key and value, and attend to all places.

    `where` is (table, cosines, sines), with positions in the table's second column; `value_table` is (ids,
    table) where values get an embedding, whose gate is in qkv's last columns. `counts` holds a zero for each
    row and head, and does again afterwards.
    """
    keys_BRKD, values_BRKD = buffers
    (B, X), (_, R, K, D), C = qkv_BX.shape, keys_BRKD.shape, y_BC.size(1)
    H = C // D
    parts = min(MOST_PARTS, triton.next_power_of_2(triton.cdiv(PROGRAMS, B * H)), triton.next_power_of_2(R))
    sums = qkv_BX.new_empty(B, H, parts, D + 2, dtype=torch.float32)
    ids, table = value_table or (where[0], qkv_BX)
    _attend[(parts, H, B)](
        *(qkv_BX, *where, keys_BRKD, values_BRKD, ids, table, sums, counts, y_BC, qk_scale, EPSILON),
        *(X, keys_BRKD.stride(0), R, H, K, where[0].size(1), D, value_table is not None, parts, KEYS),
        **_launch(y_BC, warps=4),
    )


def _launch(x: Tensor, *, warps: int, stages: int = 1) -> dict[str, int | bool]:
    hopper = x.is_cuda and torch.cuda.get_device_capability(x.device)[0] >= 9
    return {"DEPENDENT": hopper, "num_warps": warps, "num_stages": stages} | (
        {"launch_pdl": True} if hopper else {}
    )


@triton.jit
def _begin(
    rows, drawn, embeddings, previous, seen, gate, scale, r, s, ids, x0, x, epsilon, V, C, GATES,
    COLUMNS: tl.constexpr, SEEN: tl.constexpr, SMEAR: tl.constexpr, SCALARS: tl.constexpr,
    BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < C
    forced = tl.load(rows + row * COLUMNS).to(tl.int64)
    token = tl.where(forced >= 0, forced, tl.maximum(tl.load(drawn + row), 0))
    tl.store(ids + row, token)
    if SEEN:
        tl.store(seen + row * V + token, 1)
    y = tl.load(embeddings + token * C + column, mask=inside, other=0.0).to(tl.float32)
    y = (y * tl.rsqrt(tl.sum(y * y) / C + epsilon)).to(x.dtype.element_ty)
    if SMEAR:
        before = tl.load(previous + row * C + column, mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(gate + column, mask=column < GATES, other=0.0).to(tl.float32)
        opened = tl.sigmoid(tl.sum(y.to(tl.float32) * weight))
        tl.store(previous + row * C + column, y, mask=inside)
        y = (y.to(tl.float32) + tl.load(scale).to(tl.float32) * opened * before).to(x.dtype.element_ty)
    tl.store(x0 + row * C + column, y, mask=inside)
    if SCALARS:
        y = ((tl.load(r) + tl.load(s)) * y.to(tl.float32)).to(x.dtype.element_ty)
    tl.store(x + row * C + column, y, mask=inside)


@triton.jit
def _order(x):
    """Return whole numbers in the order of these float32 numbers."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _kth_largest(keys, k, low, high):
    """Return a bound that k keys reach, or more where some are equal; fewer than k must reach `high`."""
    count = k + 1
    while (low + 1 < high) & (count != k):
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, without overflow
        count = tl.sum((keys >= middle).to(tl.int32))
        low = tl.where(count >= k, middle, low)
        high = tl.where(count >= k, high, middle)
    return low


@triton.jit
def _sample(
    logits, rows, seen, drawn, log_probs, V, COLUMNS: tl.constexpr, SEEN: tl.constexpr, CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    line, logits, seen = rows + row * COLUMNS, logits + row * V, seen + row * V
    top_k, uniform = tl.load(line + 2), tl.load(line + 4).to(tl.float32, bitcast=True)
    temperature = tl.load(line + 5).to(tl.float32, bitcast=True)
    top_p = tl.load(line + 6).to(tl.float32, bitcast=True)
    penalty = tl.load(line + 7).to(tl.float32, bitcast=True)
    place = tl.arange(0, CHUNKS)[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    x = _penalised(logits, seen, place, V, penalty, SEEN)
    keys = _order(x)
    best = tl.max(tl.max(x, axis=1), axis=0)
    id = tl.min(tl.min(tl.where(x == best, place, CHUNKS * CHUNK), axis=1), axis=0)
    largest = tl.max(keys, axis=1)
    high = tl.max(largest, axis=0) + 1
    least = tl.min(tl.min(keys, axis=1), axis=0)
    if top_k > 0:
        if top_k < CHUNKS:  # a bound to begin with: the k-th of the chunks' largest keys
            least = _kth_largest(largest, top_k, least, high)
        least = _kth_largest(keys, top_k, least, high)
    warmth = tl.where(temperature == 0, 1.0, temperature)
    weights = tl.where(keys >= least, tl.exp((x - best) / warmth), 0.0)
    if top_p < 1:  # keep a token if those likelier than it have less than top_p of all probability
        most = top_p * tl.sum(tl.sum(weights, axis=1), axis=0)
        low = least - 1
        while low + 1 < high:
            middle = (low & high) + ((low ^ high) >> 1)
            likelier = tl.sum(tl.sum(tl.where(keys > middle, weights, 0.0), axis=1), axis=0)
            high = tl.where(likelier < most, middle, high)
            low = tl.where(likelier < most, low, middle)
        least = high
        weights = tl.where(keys >= least, weights, 0.0)
    chunks = tl.sum(weights, axis=1)
    sums, number = tl.cumsum(chunks, axis=0), tl.arange(0, CHUNKS)
    total = tl.max(sums, axis=0)
    if temperature > 0:
        point = uniform * total
        chunk = tl.minimum(tl.sum((sums <= point).to(tl.int32), axis=0), CHUNKS - 1)
        point -= tl.sum(tl.where(number < chunk, chunks, 0.0), axis=0)
        inside = tl.arange(0, CHUNK)
        some = _penalised(logits, seen, chunk * CHUNK + inside, V, penalty, SEEN)
        few = tl.where(_order(some) >= least, tl.exp((some - best) / warmth), 0.0)
        after = tl.sum((tl.cumsum(few, axis=0) <= point).to(tl.int32), axis=0)
        # Rounding may leave the point behind the chunk's last token: then its likeliest is taken
        likeliest = tl.min(tl.where(few == tl.max(few, axis=0), inside, CHUNK), axis=0)
        id = chunk * CHUNK + tl.where(after < CHUNK, after, likeliest)
    one = tl.arange(0, 1)
    chosen = _penalised(logits, seen, id + one, V, penalty, SEEN)
    tl.store(log_probs + row + one, (chosen - best) / warmth - tl.log(total))
    tl.store(drawn + row, tl.where((total > 0) & (total < float("inf")), id, -1).to(tl.int64))


@triton.jit
def _penalised(logits, seen, place, V, penalty, SEEN: tl.constexpr):
    """Return logits, weakened where their token was seen; -inf beyond the vocabulary."""
    x = tl.load(logits + place, mask=place < V, other=float("-inf"), cache_modifier=".cg")
    if SEEN:
        known = tl.load(seen + place, mask=place < V, other=0) != 0
        x = tl.where(known, tl.where(x > 0, x / penalty, x * penalty), x)
    return x


@triton.jit
def _product(
    x, weight, out, residual, r, s, x0, kept, b, middle, softcap, epsilon, B, N, out_stride, C: tl.constexpr,
    NORMALIZED: tl.constexpr, SQUARED: tl.constexpr, RESIDUAL: tl.constexpr, MIX: tl.constexpr,
    KEPT: tl.constexpr, BACKOUT: tl.constexpr, SOFTCAP: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, INNER: tl.constexpr, LINES: tl.constexpr, LINE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    step = tl.arange(0, INNER)
    rows_in, columns_in = row[:, None] < B, column[None, :] < N
    if DEPENDENT:
        _fetch_ahead(weight, column, N, C, COLUMNS, LINES, LINE)
        gdc_wait()
        gdc_launch_dependents()
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    squares = tl.zeros((ROWS,), tl.float32)
    part = tl.load(b).to(tl.float32) if BACKOUT else 0.0
    # A tile of 64 rows or more goes to Hopper's asynchronous matrix units. With a second reader of the tile
    # Triton 3.6 keeps one buffer too few for it and copies the next tile over the one being multiplied: the
    # norm's sum has a loop of its own there.
    if NORMALIZED and ROWS >= 64:
        for start in range(0, C, INNER):
            wide = _input(x, middle, part, row, start + step, B, C, BACKOUT).to(tl.float32)
            squares += tl.sum(wide * wide, axis=1)
    for start in range(0, C, INNER):
        inner = start + step
        a = _input(x, middle, part, row, inner, B, C, BACKOUT)
        known = columns_in & (inner[:, None] < C)
        w = tl.load(weight + column[None, :] * C + inner[:, None], mask=known, other=0.0)
        total = tl.dot(a, w, total, input_precision="ieee")
        if NORMALIZED and ROWS < 64:
            wide = a.to(tl.float32)
            squares += tl.sum(wide * wide, axis=1)
    if NORMALIZED:
        total *= tl.rsqrt(squares / C + epsilon)[:, None]
    # Rounded where the plain step rounds
    y = total.to(x.dtype.element_ty).to(tl.float32)
    place = row[:, None] * out_stride + column[None, :]
    inside = rows_in & columns_in
    if SQUARED:
        y = tl.maximum(y, 0.0)
        y = y * y
    if RESIDUAL:
        y += tl.load(residual + place, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
    if KEPT:
        tl.store(kept + place, y.to(kept.dtype.element_ty), mask=inside)
    if MIX:
        y = y.to(x.dtype.element_ty).to(tl.float32)
        y = tl.load(r) * y + tl.load(s) * tl.load(x0 + place, mask=inside, other=0.0).to(tl.float32)
    if SOFTCAP:  # tanh(z) = 2 / (1 + exp(-2z)) - 1
        y = softcap * (2 / (1 + tl.exp(-2 * y / softcap)) - 1)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _input(x, middle, part, row, inner, B, C: tl.constexpr, BACKOUT: tl.constexpr):
    at, there = row[:, None] * C + inner[None, :], (row[:, None] < B) & (inner[None, :] < C)
    a = tl.load(x + at, mask=there, other=0.0, cache_modifier=".cg")
    if BACKOUT:
        less = tl.load(middle + at, mask=there, other=0.0, cache_modifier=".cg")
        a = (a.to(tl.float32) - part * less.to(tl.float32)).to(a.dtype)
    return a


@triton.jit
def _fetch_ahead(weight, column, N, C, COLUMNS: tl.constexpr, LINES: tl.constexpr, LINE: tl.constexpr):
    """Ask for these rows of a weight, so that they are in the second level's cache when they are needed."""
    rows = tl.minimum(column, N - 1)[:, None]
    inner = tl.minimum(tl.arange(0, LINES) * LINE, C - 1)[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
        "=r,l",
        [weight + rows * C + inner],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _attend(
    qkv, rows, cosines, sines, keys, values, ids, table, sums, counts, y, qk_scale, epsilon, X, row_stride,
    R, H, K, COLUMNS: tl.constexpr, D: tl.constexpr, TABLE: tl.constexpr, PARTS: tl.constexpr,
    KEYS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    part, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    kv_head = head // (H // K)
    half = tl.arange(0, D // 2)
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    position = tl.load(rows + row * COLUMNS + 1)
    cos = tl.load(cosines + position * (D // 2) + half).to(tl.float32)
    sin = tl.load(sines + position * (D // 2) + half).to(tl.float32)
    q1, q2 = _head(qkv + row * X + head * D, half, cos, sin, qk_scale, epsilon, D)
    scale = 1.4426950408889634 / tl.sqrt(tl.cast(D, tl.float32))  # exp2 is the GPU's own exponential
    q1, q2 = q1.to(tl.float32) * scale, q2.to(tl.float32) * scale

    stored, new_place = tl.minimum(position, R), position % R
    chunk = tl.cdiv(tl.cdiv(stored, PARTS), KEYS) * KEYS
    first, last = part * chunk, tl.minimum((part + 1) * chunk, stored)
    best, weights = -1e30, 0.0
    sum1, sum2 = tl.zeros((D // 2,), tl.float32), tl.zeros((D // 2,), tl.float32)
    start_of_text = row * row_stride + kv_head * D
    start = first
    while start < last:
        place = start + tl.arange(0, KEYS)
        seen = (place < last) & (place != new_place)
        at = start_of_text + place[:, None].to(tl.int64) * (K * D) + half[None, :]
        k1 = tl.load(keys + at, mask=seen[:, None], other=0.0).to(tl.float32)
        k2 = tl.load(keys + at + D // 2, mask=seen[:, None], other=0.0).to(tl.float32)
        v1 = tl.load(values + at, mask=seen[:, None], other=0.0).to(tl.float32)
        v2 = tl.load(values + at + D // 2, mask=seen[:, None], other=0.0).to(tl.float32)
        scores = tl.sum(k1 * q1[None, :] + k2 * q2[None, :], axis=1)
        scores = tl.where(seen, scores, -1e30)
        higher = tl.maximum(best, tl.max(scores))
        shrunk, seen_weights = tl.exp2(best - higher), tl.where(seen, tl.exp2(scores - higher), 0.0)
        weights = weights * shrunk + tl.sum(seen_weights)
        sum1 = sum1 * shrunk + tl.sum(v1 * seen_weights[:, None], axis=0)
        sum2 = sum2 * shrunk + tl.sum(v2 * seen_weights[:, None], axis=0)
        best = higher
        start += KEYS

    if part == 0:  # the new key and value never come from memory
        k1, k2 = _head(qkv + row * X + (H + kv_head) * D, half, cos, sin, qk_scale, epsilon, D)
        new = qkv + row * X + (H + K + kv_head) * D + half
        v1, v2 = tl.load(new, cache_modifier=".cg"), tl.load(new + D // 2, cache_modifier=".cg")
        if TABLE:
            gate = 3 * tl.sigmoid(
                tl.load(qkv + row * X + (H + 2 * K) * D + kv_head, cache_modifier=".cg").to(tl.float32)
            )
            entry = table + (tl.load(ids + row) * K + kv_head) * D + half
            v1 = (v1.to(tl.float32) + gate * tl.load(entry).to(tl.float32)).to(v1.dtype)
            v2 = (v2.to(tl.float32) + gate * tl.load(entry + D // 2).to(tl.float32)).to(v2.dtype)
        if head % (H // K) == 0:
            slot = start_of_text + new_place.to(tl.int64) * (K * D) + half
            tl.store(keys + slot, k1)
            tl.store(keys + slot + D // 2, k2)
            tl.store(values + slot, v1)
            tl.store(values + slot + D // 2, v2)
        score = tl.sum(k1.to(tl.float32) * q1 + k2.to(tl.float32) * q2)
        higher = tl.maximum(best, score)
        shrunk, weight = tl.exp2(best - higher), tl.exp2(score - higher)
        weights = weights * shrunk + weight
        sum1 = sum1 * shrunk + v1.to(tl.float32) * weight
        sum2 = sum2 * shrunk + v2.to(tl.float32) * weight
        best = higher

    out = y + row * (H * D) + head * D + half
    if PARTS == 1:
        tl.store(out, (sum1 / weights).to(y.dtype.element_ty))
        tl.store(out + D // 2, (sum2 / weights).to(y.dtype.element_ty))
    else:
        own = sums + ((row * H + head) * PARTS) * (D + 2)
        mine = own + part * (D + 2)
        tl.store(mine + half, sum1)
        tl.store(mine + D // 2 + half, sum2)
        tl.store(mine + D, best)
        tl.store(mine + D + 1, weights)
        tl.debug_barrier()  # all of this program's parts are written before it is counted
        if tl.atomic_add(counts + row * H + head, 1, sem="acq_rel") == PARTS - 1:  # the last one sums up
            tl.debug_barrier()
            each = own + tl.arange(0, PARTS) * (D + 2)
            bests = tl.load(each + D, cache_modifier=".cg")
            share = tl.exp2(bests - tl.max(bests))
            norm = tl.sum(share * tl.load(each + D + 1, cache_modifier=".cg"))
            all1 = tl.load(each[:, None] + half[None, :], cache_modifier=".cg")
            all2 = tl.load(each[:, None] + D // 2 + half[None, :], cache_modifier=".cg")
            tl.store(out, (tl.sum(all1 * share[:, None], axis=0) / norm).to(y.dtype.element_ty))
            tl.store(out + D // 2, (tl.sum(all2 * share[:, None], axis=0) / norm).to(y.dtype.element_ty))
            tl.store(counts + row * H + head, 0)


@triton.jit
def _head(at, half, cos, sin, scale, epsilon, D: tl.constexpr):
    """Return the two halves of a head, rotated and at RMS `scale`, in the projection's dtype."""
    u1 = tl.load(at + half, cache_modifier=".cg").to(tl.float32)
    u2 = tl.load(at + D // 2 + half, cache_modifier=".cg").to(tl.float32)
    turned1, turned2 = u1 * cos + u2 * sin, u2 * cos - u1 * sin
    rms = tl.rsqrt(tl.sum(turned1 * turned1 + turned2 * turned2) / D + epsilon)
    dtype = at.dtype.element_ty
    return (turned1 * rms * scale).to(dtype), (turned2 * rms * scale).to(dtype)
