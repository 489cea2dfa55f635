"""A model's forward pass as inference needs it: packed weights, ragged prompts, and logits only where asked.

`read` takes prompts and `step` one more token of every running text. Both are plain PyTorch, run on any
device, and give GPT.forward's logits; kernels/decode.py is `step` again for NVIDIA GPUs, and is tried against
it. What each part of the model is for is said in model/gpt.py and model/block.py. Shapes: see model/gpt.py.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nanolit.inference.slots import Slots
from nanolit.kernels.agreement import near
from nanolit.kernels.attention import Backend, attend, attend_by_sdpa, rotate
from nanolit.machine.device import triton_capability
from nanolit.model.block import Block, norm
from nanolit.model.gpt import GPT

MAX_ROWS = 1024  # of a batch
AMPERE = (8, 0)
TRIAL = 256  # positions of the texts that the kernels are tried on
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # layer, q_BTHD, k_BTKD, v_BTKD -> y_BTHD


@dataclass
class Layer:
    """A block's weights in the compute dtype."""

    qkv_XC: Tensor  # queries, keys and values, then the value gate's rows where there is one
    output_CC: Tensor
    expand_FC: Tensor
    contract_CF: Tensor
    table_VX: Tensor | None  # of value embeddings
    window: int | None


class Decoder:
    """Runs `model` from a copy of its weights in the compute dtype; where they have it, they are shared.

    The masters are float32: reading them and casting at every use, as training does, would move 8 bytes a
    parameter and step instead of 2, and a step at few rows is nothing but reading weights.
    """

    def __init__(self, model: GPT, *, plain: bool = False) -> None:
        self.model, config = model, model.config
        self.split = [config.heads * model.head_dim, *[config.kv_heads * model.head_dim] * 2]
        backend = model.attention_backend
        # cuDNN plans and FlexAttention compiles for each shape, and prompts have any length
        others: dict[Backend, Backend] = {"cudnn": "flash", "flex": "sdpa"}
        self.backend: Backend = others.get(backend, backend)
        with torch.inference_mode():
            self.layers = [self._pack(layer) for layer in range(config.depth)]
            self.head_VC = model.unembedding.weight.detach().to(model.compute_dtype)
        # How many parts of a text's keys are attended to already, for each row and head; 0 between two steps
        self.counts = torch.zeros(MAX_ROWS * config.heads, dtype=torch.int32, device=model.device)
        self.fused = not plain and self._has_kernels()
        self.places, self.versions = places_of(model), versions_of(model)

    @torch.inference_mode()
    def refresh(self) -> None:
        """Take over changed weights in place, so that captured graphs go on reading them."""
        for number, layer in enumerate(self.layers):
            new = self._pack(number)
            layer.qkv_XC.copy_(new.qkv_XC)
            layer.output_CC.copy_(new.output_CC)
            layer.expand_FC.copy_(new.expand_FC)
            layer.contract_CF.copy_(new.contract_CF)
        self.head_VC.copy_(self.model.unembedding.weight)
        self.versions = versions_of(self.model)

    def read(self, prompts: Sequence[Sequence[int]], slots: Slots | None = None, *, row: int = 0) -> Tensor:
        """Return the logits (B, V) after each prompt, and keep prompt b in slot row + b if there are slots.

        Prompts are padded to the longest: what follows a position doesn't change it, by causality.
        """
        ends = [len(prompt) for prompt in prompts]
        padded = [[*prompt, *[0] * (max(ends) - len(prompt))] for prompt in prompts]
        ids_BT = torch.tensor(padded, device=self.model.device)
        ends_B = torch.tensor(ends, device=self.model.device)
        rows = slice(row, row + len(prompts))

        def attend_and_keep(layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
            if slots is not None:
                slots.write(layer, rows, k_BTKD, v_BTKD, start=0, ends_B=ends_B)
            window = self.layers[layer].window
            return attend(q_BTHD, k_BTKD, v_BTKD, window=window, backend=self.backend)

        x_BTC = norm(self.model.embedding(ids_BT))
        before_BTC = F.pad(x_BTC[:, :-1], (0, 0, 1, 0))
        texts_B = torch.arange(len(prompts), device=self.model.device)
        if slots is not None:
            slots.previous_BC[rows] = x_BTC[texts_B, ends_B - 1]
        where = self.model.cos_TE[: max(ends)], self.model.sin_TE[: max(ends)]
        x_BTC = self.blocks(ids_BT, x_BTC, before_BTC, *where, attend_and_keep)
        return self.logits(x_BTC[texts_B, ends_B - 1])

    def read_on(self, prompt: Sequence[int], slots: Slots, *, row: int, start: int) -> Tensor:
        """Return the logits (1, V) after a prompt whose first `start` positions slot `row` holds already."""
        ids_BT, end = torch.tensor([prompt[start - 1 :]], device=self.model.device), len(prompt)
        ends_B = torch.tensor([end], device=self.model.device)

        def attend_and_keep(layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
            old = slots.read(layer, row, start)
            slots.write(layer, slice(row, row + 1), k_BTKD, v_BTKD, start=start, ends_B=ends_B)
            k_BSKD, v_BSKD = (torch.cat(pair, dim=1) for pair in zip(old, (k_BTKD, v_BTKD), strict=True))
            return attend_by_sdpa(q_BTHD, k_BSKD, v_BSKD, window=self.layers[layer].window)

        x_BTC = norm(self.model.embedding(ids_BT))  # of the last position before `start` too, for smear
        slots.previous_BC[row] = x_BTC[0, -1]
        where = self.model.cos_TE[start:end], self.model.sin_TE[start:end]
        x_BTC = self.blocks(ids_BT[:, 1:], x_BTC[:, 1:], x_BTC[:, :-1], *where, attend_and_keep)
        return self.logits(x_BTC[:, -1])

    def step(self, slots: Slots, ids_B: Tensor, positions_B: Tensor, reach: "Reach") -> Tensor:
        """Return the logits (B, V) after one more token of rows 0 … B-1, at its own position each."""
        if self.fused:
            return self._fused_step(slots, ids_B, positions_B)
        return self._plain_step(slots, ids_B, positions_B, reach)

    def _plain_step(self, slots: Slots, ids_B: Tensor, positions_B: Tensor, reach: "Reach") -> Tensor:
        B = len(ids_B)
        texts_B = torch.arange(B, device=ids_B.device)
        masks: dict[int, Tensor] = {}

        def attend_and_keep(layer: int, q_1BHD: Tensor, k_1BKD: Tensor, v_1BKD: Tensor) -> Tensor:
            keys, values = (buffer[:B] for buffer in slots.layers[layer])
            places_B, size = positions_B % keys.size(1), min(reach.longest, keys.size(1))
            keys[texts_B, places_B], values[texts_B, places_B] = k_1BKD[0], v_1BKD[0]
            if reach.ragged and size not in masks:
                # In a ring that is full every place is seen, in any order: keys carry their rotation
                masks[size] = (torch.arange(size, device=ids_B.device) <= positions_B[:, None])[:, None, None]
            y_BHTD = F.scaled_dot_product_attention(
                q_1BHD[0][:, :, None],
                keys[:, :size].transpose(1, 2),
                values[:, :size].transpose(1, 2),
                attn_mask=masks.get(size),
                enable_gqa=q_1BHD.size(2) != keys.size(2),
            )
            return y_BHTD[None, :, :, 0]

        x_1BC = norm(self.model.embedding(ids_B))[None]
        before_1BC = slots.previous_BC[:B].clone()[None]
        slots.previous_BC[:B] = x_1BC[0]
        where = self.model.cos_TE[positions_B], self.model.sin_TE[positions_B]
        return self.logits(self.blocks(ids_B[None], x_1BC, before_1BC, *where, attend_and_keep)[0])

    def _has_kernels(self) -> bool:
        """Try the kernels on made-up texts: whether they run here and agree with the plain step."""
        model = self.model
        if triton_capability(model.device) < AMPERE or model.compute_dtype != torch.bfloat16:
            return False
        if model.head_dim & (model.head_dim - 1) or model.head_dim < 32:
            return False
        generator = torch.Generator(model.device).manual_seed(0)
        positions = [0, 1, TRIAL // 2, TRIAL - 1]
        try:
            with torch.inference_mode():
                pair = [Slots(model, rows=len(positions), capacity=TRIAL) for _ in range(2)]
                for buffer, other in zip(pair[0].buffers, pair[1].buffers, strict=True):
                    other.copy_(buffer.normal_(generator=generator))
                positions_B = torch.tensor(positions, device=model.device)
                reach = Reach(TRIAL, ragged=True)
                expected_BV = self._plain_step(pair[0], positions_B, positions_B, reach)
                found_BV = self._fused_step(pair[1], positions_B, positions_B)
            problem = "" if near(found_BV, expected_BV, within=0.05) else "they give other logits"
        except Exception as error:  # not for this GPU or this Triton
            problem = " ".join(str(error).split())
        if problem:
            warnings.warn(f"decoding without our kernels, slower: {problem}", stacklevel=2)
        return not problem

    def _fused_step(self, slots: Slots, ids_B: Tensor, positions_B: Tensor) -> Tensor:
        """Do as the plain step by kernels: five a layer, where it has about 48 operators."""
        from nanolit.kernels import decode_kernel as fused  # imports Triton

        model, config, B = self.model, self.model.config, len(ids_B)
        x_BC, x0_BC, middle_BC, y_BC = self.head_VC.new_empty(4, B, config.width)
        scalars: list[tuple[Tensor, Tensor]] = []
        if model.residual_scalars is not None and model.x0_scalars is not None:
            scalars = list(zip(model.residual_scalars, model.x0_scalars, strict=True))
        smear = None
        if model.smear_gate is not None and model.smear_scale is not None:
            smear = (model.smear_gate.weight, model.smear_scale)
        first = scalars[0] if scalars else None
        fused.begin(ids_B, model.embedding.weight, slots.previous_BC, smear, first, x0_BC, x_BC)
        for number, layer in enumerate(self.layers):
            qkv_BX = x_BC.new_empty(B, len(layer.qkv_XC))
            fused.product(x_BC, layer.qkv_XC, qkv_BX, normalized=True)
            where = (positions_B, model.cos_TE, model.sin_TE)
            table = None if layer.table_VX is None else (ids_B, layer.table_VX)
            scale, buffers = config.qk_scale, slots.layers[number]
            fused.attend(qkv_BX, where, buffers, table, y_BC, self.counts, qk_scale=scale)
            fused.product(y_BC, layer.output_CC, x_BC, residual_BN=x_BC)
            hidden_BF = x_BC.new_empty(B, len(layer.expand_FC))
            fused.product(x_BC, layer.expand_FC, hidden_BF, normalized=True, squared=True)
            mix = (*scalars[number + 1], x0_BC) if scalars[number + 1 :] else None
            kept = middle_BC if number == config.depth // 2 else None
            fused.product(hidden_BF, layer.contract_CF, x_BC, residual_BN=x_BC, mix=mix, kept_BN=kept)
        logits_BV = x_BC.new_empty(B, config.vocab_size, dtype=torch.float32)
        backout = None if model.backout_scale is None else (model.backout_scale, middle_BC)
        head_VC, softcap = self.head_VC[: config.vocab_size], config.softcap
        fused.product(x_BC, head_VC, logits_BV, normalized=True, backout=backout, softcap=softcap)
        return logits_BV

    def blocks(
        self,
        ids_BT: Tensor,
        x_BTC: Tensor,
        before_BTC: Tensor,
        cos_TE: Tensor,
        sin_TE: Tensor,
        attend: Attend,
    ) -> Tensor:
        """Return the normalised output of the last block, as GPT._hidden does.

        In a decode step the rows stand in the place of positions, (1, B, C): only attention can tell.
        """
        model = self.model
        if model.smear_gate is not None and model.smear_scale is not None:
            gate_BT1 = torch.sigmoid(model.smear_gate(x_BTC[..., : model.smear_gate.in_features]))
            x_BTC = x_BTC + model.smear_scale.to(x_BTC.dtype) * gate_BT1 * before_BTC
        x0_BTC = middle_BTC = x_BTC
        for number, layer in enumerate(self.layers):
            if model.residual_scalars is not None and model.x0_scalars is not None:
                x_BTC = model.residual_scalars[number] * x_BTC + model.x0_scalars[number] * x0_BTC
            x_BTC = x_BTC + self._attention(number, ids_BT, norm(x_BTC), cos_TE, sin_TE, attend)
            hidden_BTF = F.relu(F.linear(norm(x_BTC), layer.expand_FC)).square()
            x_BTC = x_BTC + F.linear(hidden_BTF, layer.contract_CF)
            if number == model.config.depth // 2:
                middle_BTC = x_BTC
        if model.backout_scale is not None:
            x_BTC = x_BTC - model.backout_scale.to(x_BTC.dtype) * middle_BTC
        return norm(x_BTC)

    def _attention(
        self, number: int, ids_BT: Tensor, x_BTC: Tensor, cos_TE: Tensor, sin_TE: Tensor, attend: Attend
    ) -> Tensor:
        model, layer = self.model, self.layers[number]
        qkv_BTX = F.linear(x_BTC, layer.qkv_XC)
        q_BTHD, k_BTKD, v_BTKD = (
            part.unflatten(-1, (-1, model.head_dim))
            for part in qkv_BTX[..., : sum(self.split)].split(self.split, dim=-1)
        )
        q_BTHD = norm(rotate(q_BTHD, cos_TE, sin_TE)) * model.config.qk_scale
        k_BTKD = norm(rotate(k_BTKD, cos_TE, sin_TE)) * model.config.qk_scale
        if layer.table_VX is not None:
            gate_BTK = 3 * torch.sigmoid(qkv_BTX[..., sum(self.split) :])
            v_BTKD = v_BTKD + gate_BTK[..., None] * F.embedding(ids_BT, layer.table_VX).view_as(v_BTKD)
        return F.linear(attend(number, q_BTHD, k_BTKD, v_BTKD).flatten(2), layer.output_CC)

    def logits(self, x_BC: Tensor) -> Tensor:
        config = self.model.config
        logits_BV = F.linear(x_BC, self.head_VC)[:, : config.vocab_size]
        if config.softcap_dtype == "float32":
            logits_BV = logits_BV.float()
        return (config.softcap * torch.tanh(logits_BV / config.softcap)).float()

    def _pack(self, number: int) -> Layer:
        block, dtype = self.model.blocks[number], self.model.compute_dtype
        assert isinstance(block, Block)
        attention = block.attention
        rows = [attention.query.weight, attention.key.weight, attention.value.weight]
        table = None
        if (gate := attention.value_gate) is not None:
            # The gate reads a few channels only; with 0 for the others it needs no product of its own
            rows.append(F.pad(gate.weight, (0, attention.query.in_features - gate.in_features)))
            table = self.model.value_embeddings.get_parameter(f"{number}.weight").detach()
        return Layer(
            qkv_XC=torch.cat([row.to(dtype) for row in rows]),
            output_CC=attention.output.weight.detach().to(dtype),
            expand_FC=block.mlp.expand.weight.detach().to(dtype),
            contract_CF=block.mlp.contract.weight.detach().to(dtype),
            table_VX=table,
            window=attention.window,
        )


@dataclass(frozen=True)
class Reach:
    """What the plain step must know of its rows without asking the device."""

    longest: int  # no row has more positions, the new one included
    ragged: bool  # rows may have fewer: those behind a row's end are masked


def places_of(model: GPT) -> list[int]:
    """Return what changes when a weight moves, to another device for instance."""
    return [parameter.data_ptr() for parameter in model.parameters()]


def versions_of(model: GPT) -> list[int]:
    """Return what changes when torch changes a weight in place, as optimizers do."""
    return [parameter._version for parameter in model.parameters()]
