"""Losses of marked spans of many texts, where texts that begin alike are read once.

Multiple choice asks for several endings of one long prompt. A group is laid out as one row, the beginning
and then every ending, and attention lets an ending see the beginning and itself only: each token has the
place, the predecessor and the keys that it has in its own text, so the losses are the model's own.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanolit.inference.decode import Decoder, batches_of
from nanolit.kernels.attention import attend
from nanolit.model.block import norm
from nanolit.model.gpt import GPT

BATCH_TOKENS = 16_384  # read at once, padding included
# Rows are padded to whole tiles: otherwise SDPA copies its mask for every head, at every layer
TILE = 64
HEAD_TOKENS = 4_096  # whose logits are held at once: half a gigabyte in float32 at 32,768 tokens


@dataclass(frozen=True)
class Group:
    """The texts of one question, as ids from BOS on, and where each one's scored span begins (≥ 1)."""

    texts: Sequence[np.ndarray]
    starts: Sequence[int]

    def num_shared(self) -> int:
        """The ids that all texts begin with and none is scored on."""
        shortest = min([*self.starts, *(len(text) for text in self.texts)])
        first = self.texts[0][:shortest]
        for text in self.texts[1:]:
            differ = np.flatnonzero(first != text[: len(first)])
            first = first[: differ[0]] if len(differ) else first
        return len(first)


@dataclass(frozen=True)
class Span:
    """A scored span: its mean loss in nats (NaN for none), and whether all of it is the model's likeliest."""

    loss: float
    greedy: bool


class Scorer(Protocol):
    """A model that scores spans; a text has at most `max_positions` tokens."""

    @property
    def max_positions(self) -> int: ...

    def start(self, groups: Sequence[Group]) -> Callable[[], list[list[Span]]]:
        """Begin to read groups; what is returned waits for the device and gives each text's Span."""
        ...


class OwnScorer:
    """A NanoLit model as it is now: later changes of its weights need a new scorer."""

    def __init__(self, model: GPT) -> None:
        self.decoder, self.max_positions = Decoder(model), model.max_positions

    def start(self, groups: Sequence[Group]) -> Callable[[], list[list[Span]]]:
        return start_scoring(self.decoder, groups)


@dataclass(frozen=True)
class Row:
    """A group's tokens in one row. The last token of each text is predicted and never read."""

    ids: np.ndarray
    places: np.ndarray  # in the token's own text
    before: np.ndarray  # the row's index of the token before it; -1 for the first
    endings: np.ndarray  # 0 in the shared beginning, then 1, 2, …
    predictors: list[np.ndarray]  # for each text, the indices whose logits predict its span
    targets: list[np.ndarray]


def lay_out(group: Group) -> Row:
    """Put the shared beginning, which must be some, and every text's own end side by side."""
    shared = group.num_shared()
    places, before, endings = [np.arange(shared)], [np.arange(shared) - 1], [np.zeros(shared, np.int64)]
    ids, predictors, targets, length = [group.texts[0][:shared]], [], [], shared
    for number, (text, start) in enumerate(zip(group.texts, group.starts, strict=True), start=1):
        tail = np.arange(shared, len(text) - 1)
        index = np.concatenate([np.arange(shared), length + tail - shared])  # of a place, in the row
        ids.append(text[shared : len(text) - 1])
        places.append(tail)
        before.append(index[tail - 1])
        endings.append(np.full(len(tail), number))
        predictors.append(index[start - 1 : len(text) - 1])
        targets.append(text[start:])
        length += len(tail)
    id_row, place_row, before_row, ending_row = (
        np.concatenate(parts).astype(np.int64) for parts in (ids, places, before, endings)
    )
    targets = [target.astype(np.int64) for target in targets]
    return Row(id_row, place_row, before_row, ending_row, predictors, targets)


def score_groups(decoder: Decoder, groups: Sequence[Group]) -> list[list[Span]]:
    """Return a Span for every text of every group."""
    return start_scoring(decoder, groups)()


def start_scoring(decoder: Decoder, groups: Sequence[Group]) -> Callable[[], list[list[Span]]]:
    """Begin to score; see Scorer. Groups are read by length, which changes no result.

    A GPU has all its work when this returns, and the host is free to lay out the next groups.
    """
    longest = max((len(text) for group in groups for text in group.texts), default=0)
    if longest > decoder.model.max_positions:
        raise ValueError(
            f"a prompt has {longest:,} tokens; this model takes at most {decoder.model.max_positions:,}: "
            f"give crop={decoder.model.max_positions}"
        )
    # Texts that begin alike are a row; cropped ones may share nothing, and are rows of their own
    parts = [(index, part) for index, group in enumerate(groups) for part in parts_of(group)]
    rows = [lay_out(part) for _, part in parts]
    read = [
        (batch, _read(decoder, [rows[place] for place in batch]))
        for batch in batches_of([len(row.ids) for row in rows], BATCH_TOKENS)
    ]

    def finish() -> list[list[Span]]:
        scored, spans = list[list[Span]]([[] for _ in parts]), list[list[Span]]([[] for _ in groups])
        for batch, tensors in read:
            lengths = [len(target) for place in batch for target in rows[place].targets]
            of_batch = spans_of(*tensors, lengths)
            for place in batch:
                scored[place] = [next(of_batch) for _ in rows[place].targets]
        for (index, _), of_row in zip(parts, scored, strict=True):
            spans[index] += of_row
        return spans

    return finish


def parts_of(group: Group) -> list[Group]:
    """Return the group, or its texts alone where they share no beginning."""
    if group.num_shared():
        return [group]
    return [Group([text], [start]) for text, start in zip(group.texts, group.starts, strict=True)]


@torch.inference_mode()
def _read(decoder: Decoder, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Return the losses (M,) of all spans' tokens, and whether each is the likeliest."""
    hidden_BTC = _hidden(decoder, rows)
    T, losses, hits = hidden_BTC.size(1), [], []
    places = [b * T + where for b, row in enumerate(rows) for where in row.predictors]
    at_M = _on(hidden_BTC.device, np.concatenate(places))
    targets_M = _on(at_M.device, np.concatenate([target for row in rows for target in row.targets]))
    for at, targets in zip(at_M.split(HEAD_TOKENS), targets_M.split(HEAD_TOKENS), strict=True):
        logits_MV = decoder.logits(hidden_BTC.flatten(0, 1)[at])
        losses.append(F.cross_entropy(logits_MV, targets, reduction="none"))
        hits.append(logits_MV.argmax(-1) == targets)
    return torch.cat(losses), torch.cat(hits)


def _on(device: torch.device, numbers: np.ndarray) -> Tensor:
    """Copy to the device without waiting for what it has to do before."""
    tensor = torch.from_numpy(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def spans_of(losses_M: Tensor, hits_M: Tensor, lengths: Sequence[int]) -> Iterator[Span]:
    """Yield the spans of these lengths, whose tokens follow one another; ValueError where a loss is NaN."""
    nats, right, begin = losses_M.tolist(), hits_M.tolist(), 0
    for length in lengths:
        end = begin + length
        mean = sum(nats[begin:end]) / length if length else math.nan
        if length and not math.isfinite(mean):
            raise ValueError(
                "the model's losses are not finite numbers; evaluate another checkpoint or release"
            )
        yield Span(mean, all(right[begin:end]))
        begin = end


def _hidden(decoder: Decoder, rows: Sequence[Row]) -> Tensor:
    """Return the last hidden states (B, T, C); what pads a row is never looked at."""
    model, device = decoder.model, decoder.model.device
    T = -(-max(len(row.ids) for row in rows) // TILE) * TILE

    def padded(name: str, filler: int) -> Tensor:
        numbers = np.full((len(rows), T), filler, np.int64)
        for line, row in zip(numbers, rows, strict=True):
            line[: len(row.ids)] = getattr(row, name)
        return _on(device, numbers)

    ids_BT, places_BT, before_BT = padded("ids", 0), padded("places", 0), padded("before", -1)
    x_BTC = norm(model.embedding(ids_BT))
    before_BTC = x_BTC.gather(1, before_BT.clamp(min=0)[..., None].expand_as(x_BTC))
    before_BTC = before_BTC * (before_BT >= 0)[..., None]
    several = any(len(row.targets) > 1 for row in rows)
    endings = _Endings(rows, padded("endings", 0), places_BT, dtype=x_BTC.dtype) if several else None

    def attend_in_row(layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        window = decoder.layers[layer].window
        y_BTHD = attend(q_BTHD, k_BTKD, v_BTKD, window=window, backend=decoder.backend)
        return endings.attend(y_BTHD, q_BTHD, k_BTKD, v_BTKD, window) if endings else y_BTHD

    angles = model.cos_TE[places_BT], model.sin_TE[places_BT]
    kernels = decoder.reads_by_kernels
    return decoder.blocks(ids_BT, x_BTC, before_BTC, angles, attend_in_row, kernels=kernels)


class _Endings:
    """Attention of the endings alone, the last E tokens of each row at most; the beginnings' is causal.

    Endings are short: their scores take E × T and not T × T, and the rest of a row is left to the kernels
    that need no mask.
    """

    def __init__(
        self, rows: Sequence[Row], endings_BT: Tensor, places_BT: Tensor, dtype: torch.dtype
    ) -> None:
        T, device = endings_BT.size(1), endings_BT.device
        shared = np.array([int((row.endings == 0).sum()) for row in rows])[:, None]
        lengths = np.array([len(row.ids) for row in rows])[:, None]
        E = -(-int((lengths - shared).max()) // 8) * 8
        at_BE = np.minimum(shared + np.arange(E), T - 1)
        ending_BE = shared + np.arange(E) < lengths
        self.at_BE = _on(device, at_BE)
        # Of the endings' tokens, in all rows one after another: their places in (B, E) and in (B, T)
        self.from_N = _on(device, np.flatnonzero(ending_BE))
        self.to_N = _on(device, (np.arange(len(rows))[:, None] * T + at_BE)[ending_BE])
        key_B1T, query_BE1 = endings_BT[:, None], endings_BT.gather(1, self.at_BE)[..., None]
        earlier_BET = torch.arange(T, device=device) <= self.at_BE[..., None]
        self.keep_BET = earlier_BET & ((key_B1T == 0) | (key_B1T == query_BE1))
        self.distance_BET = places_BT.gather(1, self.at_BE)[..., None] - places_BT[:, None]
        self.dtype = dtype
        self.masks = dict[int | None, Tensor]()  # by window, as SDPA adds them to scores

    def attend(
        self, y_BTHD: Tensor, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, window: int | None
    ) -> Tensor:
        """Return the rows' attention; `y_BTHD`, causal over whole rows, is right in their beginnings."""
        if not len(self.to_N):
            return y_BTHD
        q_BEHD = q_BTHD.gather(1, self.at_BE[..., None, None].expand(-1, -1, *q_BTHD.shape[2:]))
        y_BHED = F.scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in (q_BEHD, k_BTKD, v_BTKD)),
            attn_mask=self._mask(window),
            enable_gqa=q_BTHD.size(2) != k_BTKD.size(2),
        )
        ending_NHD = y_BHED.transpose(1, 2).flatten(0, 1)[self.from_N]
        return y_BTHD.flatten(0, 1).index_copy(0, self.to_N, ending_NHD).view_as(y_BTHD)

    def _mask(self, window: int | None) -> Tensor:
        if window not in self.masks:
            keep_BET = self.keep_BET if window is None else self.keep_BET & (self.distance_BET <= window)
            dropped_BET = keep_BET.new_zeros(keep_BET.shape, dtype=self.dtype)
            self.masks[window] = dropped_BET.masked_fill_(~keep_BET, -torch.inf)[:, None]
        return self.masks[window]
