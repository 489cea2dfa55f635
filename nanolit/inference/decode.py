"""A model's forward pass as inference needs it: packed weights, ragged prompts, and logits only where asked.

`read` takes prompts, `step` one more token of every running text. Both are plain PyTorch, run on any device
and give GPT.forward's logits. kernels/decode_kernel.py implements the step again for NVIDIA GPUs and is used
where both agree. model/gpt.py and model/block.py explain the parts of the model and the shapes.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanolit.inference.sampling import (
    COLUMNS,
    FORCED,
    LOG_PROBS,
    PENALTY,
    POSITION,
    TILE,
    TILE_PARTS,
    TOP_K,
    Needs,
    needs_of,
    sample,
)
from nanolit.inference.slots import Slots
from nanolit.kernels.attention import Backend, agrees, attend, attend_by_sdpa, rotate
from nanolit.kernels.heads import split_heads
from nanolit.machine.device import triton_capability
from nanolit.model.block import Block, norm
from nanolit.model.gpt import GPT

MAX_ROWS = 1024  # of a batch
AMPERE, FUSED_DTYPE = (8, 0), torch.bfloat16  # the oldest GPU and the format that the kernels support
TRIALS, STRIDE = 16, 17  # the kernels are tried on 16 texts of 1, 18, 35 … positions
ALIGNED = 64  # products are padded to a multiple of 64 columns: torch's are far slower at odd sizes
Where = tuple[Tensor, Tensor]  # cosines and sines
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # layer, q_BTHD, k_BTKD, v_BTKD -> y_BTHD


@dataclass
class Layer:
    """A block's weights in the compute dtype."""

    qkv_XC: Tensor  # queries, keys and values, the value gate's rows where there is one, and padding
    output_CC: Tensor
    expand_FC: Tensor
    contract_CF: Tensor
    table_VX: Tensor | None  # of value embeddings
    window: int | None


class Decoder:
    """Runs `model` from a copy of its weights in the compute dtype; weights already in it are shared.

    The master weights are float32. Casting them at every use, as training does, would move 8 bytes per
    parameter and step instead of 2, and at few rows a step does little but read weights.
    """

    def __init__(self, model: GPT, *, plain: bool = False) -> None:
        self.model, config = model, model.config
        self.split = [config.heads * model.head_dim, *[config.kv_heads * model.head_dim] * 2]
        self.backend: Backend = model.attention_backend
        if self.backend in ("cudnn", "flex"):  # both plan or compile per shape, and prompts have any length
            has_flash = agrees("flash", model.device, model.compute_dtype, model.head_dim)
            self.backend = "flash" if has_flash else "sdpa"
        with torch.inference_mode():
            self.layers = [self._pack(layer) for layer in range(config.depth)]
            self.head_VC = model.unembedding.weight.detach().to(model.compute_dtype)
        self.scalars: list[tuple[Tensor, Tensor]] = []
        if model.residual_scalars is not None and model.x0_scalars is not None:
            r_L, s_L = model.residual_scalars.detach(), model.x0_scalars.detach()
            self.scalars = list(zip(r_L, s_L, strict=True))
        # For each row and head, the parts of its keys that are already attended to: its own in the low 16
        # bits, its tile's in the high ones; 0 between steps
        self.counts = torch.zeros(MAX_ROWS * config.heads, dtype=torch.int32, device=model.device)
        self.plain, self.marks = plain, marks_of(model)
        self.takes_tiles = model.head_dim >= 32  # tensor cores multiply halves of 16 and more

    @functools.cached_property
    def fused_rows(self) -> int:
        """The most rows that the kernels can step, 0 without kernels. The first use tries them."""
        return 0 if self.plain else MAX_ROWS * self._can(self._steps_agree, "decoding")

    @functools.cached_property
    def reads_by_kernels(self) -> bool:
        """Whether the kernels can read prompts. The first use tries them."""
        return not self.plain and self._can(self._reads_agree, "reading prompts")

    @torch.inference_mode()
    def refresh(self) -> None:
        """Copy changed weights in place, so that captured graphs keep reading the right memory."""
        for number, layer in enumerate(self.layers):
            new = self._pack(number)
            for name in ("qkv_XC", "output_CC", "expand_FC", "contract_CF"):
                getattr(layer, name).copy_(getattr(new, name))
        self.head_VC.copy_(self.model.unembedding.weight)
        self.marks = marks_of(self.model)

    def read(
        self, prompts: Sequence[Sequence[int]], slots: Slots | None = None, *, row: int = 0, start: int = 0
    ) -> Tensor:
        """Return the logits (B, V) after each prompt. With `slots`, store prompt b in slot row + b.

        A single prompt may have its first `start` positions in its slot already.
        """
        longest, device = max(map(len, prompts)), self.model.device
        ids_BT = torch.from_numpy(padded(prompts, longest, start=start)).to(device)
        ends_B = torch.tensor([len(prompt) for prompt in prompts], device=device)
        rows_B = torch.arange(row, row + len(prompts), device=device)
        return self.read_padded(ids_BT, ends_B, slots, rows_B, start=start)

    def read_padded(
        self, ids_BT: Tensor, ends_B: Tensor, slots: Slots | None, rows_B: Tensor, *, start: int = 0
    ) -> Tensor:
        """Do the same for the output of `padded`: prompts of `ends_B` positions, padded at the end.

        By causality padding changes nothing before it. Control flow depends on shapes only, so a CUDA graph
        can capture this.
        """
        longest, texts_B = ids_BT.size(1) - 1 + start, torch.arange(len(ids_BT), device=ids_BT.device)
        places = dict[int | None, tuple[Tensor, ...]]()

        def attend_and_keep(layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
            window, old = self.layers[layer].window, None
            if slots is not None:
                old = slots.read(layer, rows_B, start) if start else None
                if window not in places:
                    places[window] = slots.places(layer, rows_B, longest - start, start, ends_B)
                slots.write(layer, k_BTKD, v_BTKD, *places[window])
            if old is None:
                return attend(q_BTHD, k_BTKD, v_BTKD, window=window, backend=self.backend)
            k_BSKD, v_BSKD = (torch.cat(pair, dim=1) for pair in zip(old, (k_BTKD, v_BTKD), strict=True))
            return attend_by_sdpa(q_BTHD, k_BSKD, v_BSKD, window=window)

        x_BTC = norm(self.model.embedding(ids_BT))
        before_BTC, x_BTC = x_BTC[:, :-1], x_BTC[:, 1:]
        if not start:
            before_BTC = F.pad(before_BTC[:, 1:], (0, 0, 1, 0))
        last_B = ends_B - start - 1
        if slots is not None:
            slots.previous_BC[rows_B] = x_BTC[texts_B, last_B]
        where = self.model.cos_TE[start:longest], self.model.sin_TE[start:longest]
        ids_BT, kernels = ids_BT[:, 1:], self.reads_by_kernels
        x_BTC = self.blocks(ids_BT, x_BTC, before_BTC, where, attend_and_keep, kernels=kernels)
        return self.logits(x_BTC[texts_B, last_B])

    def step(self, slots: Slots, ids_B: Tensor, positions_B: Tensor, *, longest: int, ragged: bool) -> Tensor:
        """Return the logits (B, V) after one more token of rows 0 … B-1, at its own position each.

        No row has more than `longest` positions, including the new one. If `ragged`, some may have fewer.
        """
        texts_B, masks = torch.arange(len(ids_B), device=ids_B.device), dict[int, Tensor]()

        def attend_and_keep(layer: int, q_1BHD: Tensor, k_1BKD: Tensor, v_1BKD: Tensor) -> Tensor:
            keys, values = (buffer[: len(ids_B)] for buffer in slots.layers[layer])
            places_B, size = positions_B % keys.size(1), min(longest, keys.size(1))
            keys[texts_B, places_B], values[texts_B, places_B] = k_1BKD[0], v_1BKD[0]
            if ragged and size not in masks:
                # In a full ring every place is visible. Order does not matter: keys carry their rotation
                masks[size] = (torch.arange(size, device=ids_B.device) <= positions_B[:, None])[:, None, None]
            y_BHTD = F.scaled_dot_product_attention(
                q_1BHD[0][:, :, None],
                keys[:, :size].transpose(1, 2),
                values[:, :size].transpose(1, 2),
                attn_mask=masks.get(size),
                enable_gqa=q_1BHD.size(2) != keys.size(2),
            )
            return y_BHTD[None, :, :, 0]

        # Rows take the place of positions, (1, B, C): only attention and smear see the difference
        x_1BC = norm(self.model.embedding(ids_B))[None]
        before_1BC = slots.previous_BC[: len(ids_B)].clone()[None]
        slots.previous_BC[: len(ids_B)] = x_1BC[0]
        where = self.model.cos_TE[positions_B], self.model.sin_TE[positions_B]
        return self.logits(self.blocks(ids_B[None], x_1BC, before_1BC, where, attend_and_keep)[0])

    def blocks(
        self,
        ids_BT: Tensor,
        x_BTC: Tensor,
        before_BTC: Tensor,
        where: Where,
        mix: Attend,
        *,
        kernels: bool = False,
    ) -> Tensor:
        """Return the normalised output of the last block, as GPT._hidden does.

        `where` has the angles of each position, shared by all rows or one set per row.
        """
        model = self.model
        if model.smear_gate is not None and model.smear_scale is not None:
            gate_BT1 = torch.sigmoid(model.smear_gate(x_BTC[..., : model.smear_gate.in_features]))
            x_BTC = x_BTC + model.smear_scale.to(x_BTC.dtype) * gate_BT1 * before_BTC
        if kernels:
            return self._blocks_by_kernels(ids_BT, x_BTC.contiguous(), where, mix)
        x0_BTC = middle_BTC = x_BTC
        for number, layer in enumerate(self.layers):
            if self.scalars:
                r, s = self.scalars[number]
                x_BTC = r * x_BTC + s * x0_BTC
            y_BTHD = mix(number, *self._heads(layer, ids_BT, x_BTC, where))
            x_BTC = x_BTC + F.linear(y_BTHD.flatten(2), layer.output_CC)
            x_BTC = x_BTC + F.linear(
                F.relu(F.linear(norm(x_BTC), layer.expand_FC)).square(), layer.contract_CF
            )
            if number == model.config.depth // 2:
                middle_BTC = x_BTC
        if model.backout_scale is not None:
            x_BTC = x_BTC - model.backout_scale.to(x_BTC.dtype) * middle_BTC
        return norm(x_BTC)

    def _blocks_by_kernels(self, ids_BT: Tensor, x0_BTC: Tensor, where: Where, mix: Attend) -> Tensor:
        """Do the same with fused kernels: the operators one by one would take longer than the products."""
        from nanolit.kernels import decode_kernel as fused  # imports Triton

        config, backout = self.model.config, self.model.backout_scale
        # If each row has its own angles, the training kernel sees all rows as one long one
        rows = ids_BT.shape if where[0].dim() == 2 else (1, ids_BT.numel())
        cos_TE, sin_TE = (angles.flatten(0, -2) for angles in where)
        shape = {"heads": config.heads, "kv_heads": config.kv_heads, "qk_scale": config.qk_scale}
        x0_MC = x0_BTC.flatten(0, 1)
        x_MC, normed_MC, middle_MC = x0_MC.clone(), torch.empty_like(x0_MC), torch.empty_like(x0_MC)
        kept_MC = None
        for number, layer in enumerate(self.layers):
            scalars = (*self.scalars[number], x0_MC) if self.scalars else None
            fused.prepare(x_MC, normed_MC, mix=scalars, kept_BC=kept_MC)
            qkv_BTX = F.linear(normed_MC, layer.qkv_XC).view(*ids_BT.shape, -1)
            parts = split_heads(qkv_BTX.view(*rows, -1)[..., : sum(self.split)], cos_TE, sin_TE, **shape)
            q_BTHD, k_BTKD, v_BTKD = (part.view(*ids_BT.shape, *part.shape[2:]) for part in parts)
            v_BTKD = self._gated(layer, ids_BT, v_BTKD, qkv_BTX)
            x_MC.addmm_(mix(number, q_BTHD, k_BTKD, v_BTKD).reshape(len(x_MC), -1), layer.output_CC.T)
            fused.prepare(x_MC, normed_MC)
            hidden_MF = F.linear(normed_MC, layer.expand_FC)
            fused.square(hidden_MF)
            x_MC.addmm_(hidden_MF, layer.contract_CF.T)
            kept_MC = middle_MC if number == config.depth // 2 else None
        middle = None if backout is None else (backout, middle_MC)
        fused.prepare(x_MC, normed_MC, kept_BC=kept_MC, backout=middle)
        return normed_MC.view_as(x0_BTC)

    def _heads(self, layer: Layer, ids_BT: Tensor, x_BTC: Tensor, where: Where) -> tuple[Tensor, ...]:
        """Return rotated, normalised, scaled queries and keys, and gated values, as Attention does."""
        qkv_BTX, scale = F.linear(norm(x_BTC), layer.qkv_XC), self.model.config.qk_scale
        parts = qkv_BTX[..., : sum(self.split)].split(self.split, dim=-1)
        q_BTHD, k_BTKD, v_BTKD = (part.unflatten(-1, (-1, self.model.head_dim)) for part in parts)
        v_BTKD = self._gated(layer, ids_BT, v_BTKD, qkv_BTX)
        return norm(rotate(q_BTHD, *where)) * scale, norm(rotate(k_BTKD, *where)) * scale, v_BTKD

    def _gated(self, layer: Layer, ids_BT: Tensor, v_BTKD: Tensor, qkv_BTX: Tensor) -> Tensor:
        if layer.table_VX is None:
            return v_BTKD
        gates = slice(sum(self.split), sum(self.split) + self.model.config.kv_heads)
        gate_BTK = 3 * torch.sigmoid(qkv_BTX[..., gates])
        return v_BTKD + gate_BTK[..., None] * F.embedding(ids_BT, layer.table_VX).view_as(v_BTKD)

    def logits(self, x_BC: Tensor) -> Tensor:
        return self.capped(F.linear(x_BC, self.head_VC)[:, : self.model.config.vocab_size])

    def capped(self, logits_BV: Tensor) -> Tensor:
        """Return softcap·tanh(logits / softcap) in float32."""
        config = self.model.config
        if config.softcap_dtype == "float32":
            logits_BV = logits_BV.float()
        return (config.softcap * torch.tanh(logits_BV / config.softcap)).float()

    def fused_step(self, slots: Slots, table_BX: Tensor, *, tile_programs: int = 0) -> Tensor:
        """Do the same as `step` with kernels, without capping the logits. sampling.py describes the table.

        `tile_programs` of each head attend to what the table's tiles share; 0 if there are none.
        """
        from nanolit.kernels import decode_kernel as fused  # imports Triton

        model, config, B = self.model, self.model.config, len(table_BX)
        x_BC, x0_BC, middle_BC, y_BC = self.head_VC.new_empty(4, B, config.width)
        hidden_BF = x_BC.new_empty(B, len(self.layers[0].expand_FC))
        ids_B, smear, normed_BC = slots.drawn_B.new_empty(B), None, torch.empty_like(x_BC)
        if model.smear_gate is not None and model.smear_scale is not None:
            smear = (model.smear_gate.weight, model.smear_scale)
        states = (slots.drawn_B, model.embedding.weight, slots.previous_BC, slots.seen_BV)
        first = self.scalars[0] if self.scalars else None
        tiles = (tile_programs, TILE, TILE_PARTS) if tile_programs else None
        fused.begin(table_BX, *states, smear, first, ids_B, x0_BC, x_BC)
        between = dict[str, Any]()  # work between a layer's last product and the next layer's first
        for number, layer in enumerate(self.layers):
            qkv_BX = x_BC.new_empty(B, len(layer.qkv_XC))
            if B > fused.FEW:
                fused.prepare(x_BC, normed_BC, **between)
                torch.mm(normed_BC, layer.qkv_XC.T, out=qkv_BX)
            else:
                fused.product(x_BC, layer.qkv_XC, qkv_BX, normalized=True)
            where, buffers = (table_BX, model.cos_TE, model.sin_TE), slots.layers[number]
            values = None if layer.table_VX is None else (ids_B, layer.table_VX)
            operands = (qkv_BX, where, buffers, values, y_BC, self.counts)
            fused.attend(*operands, qk_scale=config.qk_scale, tiles=tiles)
            mix = (*self.scalars[number + 1], x0_BC) if self.scalars[number + 1 :] else None
            between = {"mix": mix, "kept_BC": middle_BC if number == config.depth // 2 else None}
            if B > fused.FEW:
                x_BC.addmm_(y_BC, layer.output_CC.T)
                fused.prepare(x_BC, normed_BC)
                torch.mm(normed_BC, layer.expand_FC.T, out=hidden_BF)
                fused.square(hidden_BF)
                x_BC.addmm_(hidden_BF, layer.contract_CF.T)
            else:
                fused.product(y_BC, layer.output_CC, x_BC, residual_BC=x_BC)
                fused.product(x_BC, layer.expand_FC, hidden_BF, normalized=True, squared=True)
                fused.product(hidden_BF, layer.contract_CF, x_BC, residual_BC=x_BC, **between)
        if B <= fused.FEW:
            between = {}
        backout = None if model.backout_scale is None else (model.backout_scale, middle_BC)
        fused.prepare(x_BC, normed_BC, backout=backout, **between)
        return torch.mm(normed_BC, self.head_VC[: config.vocab_size].T)

    def draw(
        self,
        logits_BV: Tensor,
        table_BX: Tensor,
        needs: Needs,
        *,
        seen_BV: Tensor | None,
        drawn_B: Tensor,
        softcap: float = 0.0,
        mail: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | None:
        """Fill `drawn_B` as sampling.sample does, and return log-probabilities if needed.

        Logits from `fused_step` still need the model's softcap. Only kernels can fill `mail`, see
        decode_kernel.sample.
        """
        if self.fused_rows:
            rest: dict[str, Any] = {"softcap": softcap, "mail": mail}
            log_probs_B = self._fused_draw(logits_BV, table_BX, seen_BV, drawn_B, **rest)
            return log_probs_B if needs.log_probs else None
        ids_B, log_probs_B = sample(logits_BV, table_BX, needs, seen_BV=seen_BV)
        drawn_B.copy_(ids_B)
        return log_probs_B

    def _fused_draw(
        self, logits_BV: Tensor, table_BX: Tensor, seen_BV: Tensor | None, drawn_B: Tensor, **rest: Any
    ) -> Tensor:
        from nanolit.kernels import decode_kernel  # imports Triton

        log_probs_B = logits_BV.new_empty(len(logits_BV), dtype=torch.float32)
        decode_kernel.sample(logits_BV, table_BX, seen_BV, drawn_B, log_probs_B, **rest)
        return log_probs_B

    def agrees(self, slots: Slots, table_BX: Tensor, *, longest: int, tile_programs: int = 0) -> bool:
        """Return whether both ways to step give like logits in every row. Leaves the slots unchanged."""
        forced_B, before_BC = table_BX[:, FORCED].long(), slots.previous_BC.clone()
        ids_B = torch.where(forced_B >= 0, forced_B, slots.drawn_B[: len(table_BX)]).clamp(min=0)
        positions_B = table_BX[:, POSITION].long()
        expected_BV = self.step(slots, ids_B, positions_B, longest=longest, ragged=True)
        slots.previous_BC.copy_(before_BC)
        found_BV = self.capped(self.fused_step(slots, table_BX, tile_programs=tile_programs))
        slots.previous_BC.copy_(before_BC)
        return _alike(found_BV, expected_BV)

    def _steps_agree(self) -> bool:
        """Return whether kernels decode and draw as plain PyTorch does, on made-up texts and logits."""
        model, device = self.model, self.model.device
        slots, longest = Slots(model, rows=TRIALS, capacity=TRIALS * STRIDE), TRIALS * STRIDE
        generator = torch.Generator(device).manual_seed(0)
        for buffer in slots.buffers:
            buffer.normal_(generator=generator)
        numbers = np.random.default_rng(0).random((TRIALS, COLUMNS)).astype(np.float32)
        table = numbers.view(np.int32)
        table[:, FORCED], table[:, POSITION] = np.arange(TRIALS), np.arange(TRIALS) * STRIDE
        table[:, TOP_K], table[:, LOG_PROBS], numbers[:, PENALTY] = np.arange(TRIALS) * 4, 0, 1
        table_BX, drawn_B = torch.from_numpy(table).to(device), slots.drawn_B.clone()
        logits_BV = 3 * torch.randn(TRIALS, model.vocab_size, generator=generator, device=device)
        expected_B, _ = sample(logits_BV, table_BX, needs_of(table))
        right = self.agrees(slots, table_BX, longest=longest)
        self._fused_draw(logits_BV, table_BX, None, drawn_B)
        # A sum in another order may round one draw to its neighbour
        return right and (drawn_B == expected_B).sum().item() >= TRIALS - 1

    def _reads_agree(self) -> bool:
        """Return whether kernels read made-up texts as plain PyTorch does, with shared and own angles."""
        model = self.model
        ids_BT = torch.arange(TRIALS * STRIDE, device=model.device).view(TRIALS, STRIDE) % model.vocab_size
        x_BTC, where = norm(model.embedding(ids_BT)), (model.cos_TE[:STRIDE], model.sin_TE[:STRIDE])

        def mix(layer: int, *heads: Tensor) -> Tensor:
            return attend(*heads, window=self.layers[layer].window, backend=self.backend)

        expected_BTC = self.blocks(ids_BT, x_BTC, x_BTC, where, mix)
        own = (where[0].expand(TRIALS, -1, -1), where[1].expand(TRIALS, -1, -1))
        found = (self.blocks(ids_BT, x_BTC, x_BTC, w, mix, kernels=True) for w in (where, own))
        return all(_alike(found_BTC, expected_BTC) for found_BTC in found)

    @torch.inference_mode()
    def _can(self, agree: Callable[[], bool], doing: str) -> bool:
        """Return whether the kernels run here and agree with plain PyTorch. Warns if they don't."""
        model = self.model
        fits = model.compute_dtype == FUSED_DTYPE and not model.head_dim & (model.head_dim - 1)
        if not fits or triton_capability(model.device) < AMPERE:
            return False
        try:
            problem = "" if agree() else "they give wrong results here"
        except Exception as error:  # this GPU or this Triton cannot run them
            problem = " ".join(str(error).split())
        if problem:
            warnings.warn(f"{doing} without our kernels, slower: {problem}", stacklevel=2)
        return not problem

    def _pack(self, number: int) -> Layer:
        block, dtype = self.model.blocks[number], self.model.compute_dtype
        assert isinstance(block, Block)
        attention, table = block.attention, None
        rows = [attention.query.weight, attention.key.weight, attention.value.weight]
        if (gate := attention.value_gate) is not None:
            # The gate reads a few channels. Zeros for the others spare it a product of its own
            rows.append(F.pad(gate.weight, (0, attention.query.in_features - gate.in_features)))
            table = self.model.value_embeddings.get_parameter(f"{number}.weight").detach()
        matrices = (attention.output, block.mlp.expand, block.mlp.contract)
        output_CC, expand_FC, contract_CF = (matrix.weight.detach().to(dtype) for matrix in matrices)
        qkv_XC = torch.cat([row.to(dtype) for row in rows])
        qkv_XC = F.pad(qkv_XC, (0, 0, 0, -len(qkv_XC) % ALIGNED))
        return Layer(qkv_XC, output_CC, expand_FC, contract_CF, table, attention.window)


def _alike(found: Tensor, expected: Tensor) -> bool:
    # Rounding gives 0.01 to 0.02. Rows that a GPU got wrong were off by 0.15 and more
    return bool(((found - expected).norm(dim=-1) < 0.1 * expected.norm(dim=-1)).all())


def batches_of(lengths: Sequence[int], num_tokens: int) -> Iterator[list[int]]:
    """Yield the indices of texts to read together, the longest first, so that memory runs out early or never.

    A batch has at most `num_tokens` tokens, padding included, or is a single text.
    """
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > num_tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def marks_of(model: GPT) -> list[tuple[int, int]]:
    """Return numbers that change whenever a weight is replaced or updated in place, as optimizers do."""
    return [(parameter.data_ptr(), parameter._version) for parameter in model.parameters()]


def padded(prompts: Sequence[Sequence[int]], longest: int, *, start: int = 0) -> np.ndarray:
    """Return the ids (B, T + 1) int64 of positions `start` - 1, which smear reads, to `longest`."""
    ids_BT = np.zeros((len(prompts), longest - start + 1), np.int64)
    for line, prompt in zip(ids_BT, prompts, strict=True):
        ids = prompt[max(start - 1, 0) :]
        line[not start :][: len(ids)] = ids
    return ids_BT
