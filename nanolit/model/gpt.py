"""The GPT of every recipe: ids to logits, with each idea behind a flag of its own.

Letters of shapes, everywhere in the repository: B rows, T positions, C width, H heads, K key-value heads,
D head dim, V vocabulary, L layers; here and in kernels/ also S positions of keys (cached ones and T new) and
E, half of D. A tensor's name ends in its letters: x_BTC, q_BTHD, logits_BTV.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanolit.kernels import fp8
from nanolit.kernels.attention import Backend, rotary_tables
from nanolit.kernels.embedding import Embedding
from nanolit.kernels.loss import IGNORED, LARGEST_SOFTCAP, summed_loss, token_losses
from nanolit.kernels.residual import mix
from nanolit.machine.device import compute_dtype
from nanolit.model.accounting import (
    SMEAR_CHANNELS,
    padded_vocab_size,
    value_embedding_layers,
    window_sizes,
)
from nanolit.model.block import Block, Linear, norm
from nanolit.model.kv_cache import KVCache

# Rotary positions are tabulated this many contexts far: evaluation prompts and chats may be longer than a
# training row. Quality beyond the context is not promised.
ROTARY_CONTEXTS = 10


class GPT(nn.Module):
    """A decoder of `depth` blocks; the constructor's arguments are what gpt.json stores.

    Building sets no weights: call `initialize`, or load a release. Works under `torch.device("meta")`,
    followed by `to_empty`. Matrices are float32 masters; embeddings, and with them all activations, are in
    the compute dtype.
    """

    cos_TE: Tensor
    sin_TE: Tensor

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        heads: int,
        kv_heads: int,
        vocab_size: int,
        context: int,
        rope_base: float,
        window_pattern: str,
        value_embeddings: bool,
        residual_scalars: bool,
        smear: bool,
        backout: bool,
        qk_scale: float,
        softcap: float,
        initialization: Literal["classic", "modern"],
        vocab_multiple: int,
        rope_dtype: Literal["compute", "bfloat16"] = "compute",
        softcap_dtype: Literal["compute", "float32"] = "float32",
    ):
        """Flags beyond a plain GPT, each as in nanochat:

        `window_pattern` of S and L, tiled (accounting.window_sizes); `value_embeddings` adds tables to the
        values of every other layer; `residual_scalars` sets x to r·x + s·x₀ before each block; `smear` mixes
        in the previous position's embedding; `backout` takes a part of the middle layer out before the head;
        `qk_scale` multiplies normalised queries and keys; `softcap`·tanh(logits / softcap) is computed in
        `softcap_dtype`; `vocab_multiple` pads the tables (the logits are cropped); `rope_dtype` is what the
        rotary tables are rounded to.
        """
        super().__init__()
        self.hyperparameters: dict[str, Any] = {
            "depth": depth,
            "width": width,
            "heads": heads,
            "kv_heads": kv_heads,
            "vocab_size": vocab_size,
            "context": context,
            "rope_base": rope_base,
            "window_pattern": window_pattern,
            "value_embeddings": value_embeddings,
            "residual_scalars": residual_scalars,
            "smear": smear,
            "backout": backout,
            "qk_scale": qk_scale,
            "softcap": softcap,
            "initialization": initialization,
            "vocab_multiple": vocab_multiple,
            "rope_dtype": rope_dtype,
            "softcap_dtype": softcap_dtype,
        }
        _check(self.hyperparameters)
        self.depth, self.width, self.heads, self.kv_heads = depth, width, heads, kv_heads
        self.head_dim = width // heads
        self.vocab_size, self.context = vocab_size, context
        self.softcap, self.softcap_in_float32 = softcap, softcap_dtype == "float32"
        self.initialization: Literal["classic", "modern"] = initialization

        rows = padded_vocab_size(vocab_size, vocab_multiple)
        tables = set(value_embedding_layers(depth)) if value_embeddings else set()
        windows = window_sizes(window_pattern, depth=depth, context=context)
        self.embedding = Embedding(rows, width)
        self.value_embeddings = nn.ModuleDict(
            {str(layer): Embedding(rows, kv_heads * self.head_dim) for layer in sorted(tables)}
        )
        self.blocks = nn.ModuleList(
            Block(
                layer=layer,
                width=width,
                heads=heads,
                kv_heads=kv_heads,
                qk_scale=qk_scale,
                window=windows[layer],
                value_gate=layer in tables,
            )
            for layer in range(depth)
        )
        self.unembedding = Linear(width, rows)
        self.residual_scalars = nn.Parameter(torch.empty(depth)) if residual_scalars else None
        self.x0_scalars = nn.Parameter(torch.empty(depth)) if residual_scalars else None
        self.smear_gate = Linear(min(SMEAR_CHANNELS, width), 1) if smear else None
        self.smear_scale = nn.Parameter(torch.empty(1)) if smear else None
        self.backout_scale = nn.Parameter(torch.empty(1)) if backout else None
        cos_TE, sin_TE = self._rotary_tables(None)
        self.register_buffer("cos_TE", cos_TE, persistent=False)
        self.register_buffer("sin_TE", sin_TE, persistent=False)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of activations, which is that of the stored embeddings."""
        return self.embedding.weight.dtype

    @property
    def attention_backend(self) -> Backend:
        """The kernel that attends in whole texts: attention.choose_backend."""
        block = self.blocks[0]
        assert isinstance(block, Block)
        return block.attention.backend

    @property
    def max_positions(self) -> int:
        """The longest text that the rotary tables reach; `context` is what it was trained on."""
        return len(self.cos_TE)

    def new_kv_cache(self, *, rows: int, capacity: int) -> KVCache:
        """An empty cache with this model's sizes, on its device, in its compute dtype."""
        if capacity > self.max_positions:
            raise ValueError(
                f"capacity is {capacity}; this model takes at most {self.max_positions} positions"
            )
        return KVCache(
            layers=self.depth,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            rows=rows,
            capacity=capacity,
            device=self.device,
            dtype=self.compute_dtype,
        )

    def forward(
        self,
        ids_BT: Tensor,
        targets_BT: Tensor | None = None,
        *,
        kv_cache: KVCache | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> Tensor:
        """Without targets: float32 logits_BTV. With them: cross-entropy in nats, 0 where the target is -1.

        mean is over learned positions (0 if there are none), none has shape (B, T). With a cache, ids_BT are
        the positions after those it holds, and it is moved on.
        """
        x_BTC = self._hidden(ids_BT, kv_cache)
        if targets_BT is None:
            return self._logits(x_BTC)
        if reduction == "none":
            return self._token_losses(x_BTC, targets_BT)
        inputs = self._head_inputs(x_BTC, targets_BT)
        total = summed_loss(*inputs, softcap=self.softcap, in_fp8=self.unembedding.in_fp8)
        return total if reduction == "sum" else total / (targets_BT != IGNORED).sum().clamp(min=1)

    def _hidden(self, ids_BT: Tensor, kv_cache: KVCache | None) -> Tensor:
        """The normalised output of the last block, (B, T, C)."""
        B, T = ids_BT.shape
        start = 0 if kv_cache is None else kv_cache.length
        if start + T > self.max_positions:
            raise ValueError(
                f"a text of {start + T} tokens; this model takes at most {self.max_positions}: shorten it"
            )
        if kv_cache is not None:
            kv_cache.check_room(B, T)
        cos_TE, sin_TE = self.cos_TE[start : start + T], self.sin_TE[start : start + T]

        x_BTC = self._smear(norm(self.embedding(ids_BT)), kv_cache)
        x0_BTC = middle_BTC = x_BTC
        for layer, block in enumerate(self.blocks):
            if self.residual_scalars is not None and self.x0_scalars is not None:
                x_BTC = mix(x_BTC, x0_BTC, self.residual_scalars[layer], self.x0_scalars[layer])
            has_table = str(layer) in self.value_embeddings
            value_embedding = self.value_embeddings[str(layer)](ids_BT) if has_table else None
            x_BTC = block(x_BTC, cos_TE, sin_TE, value_embedding=value_embedding, kv_cache=kv_cache)
            if layer == self.depth // 2:
                middle_BTC = x_BTC
        if self.backout_scale is not None:
            x_BTC = x_BTC - self.backout_scale.to(x_BTC.dtype) * middle_BTC
        if kv_cache is not None:
            kv_cache.advance(T)
        return norm(x_BTC)

    def _smear(self, x_BTC: Tensor, kv_cache: KVCache | None) -> Tensor:
        """Add to each position a gated part of the embedding before it; a text's first has none before it."""
        if self.smear_gate is None or self.smear_scale is None:
            return x_BTC
        previous_B1C = None if kv_cache is None else kv_cache.previous_B1C
        if kv_cache is not None:
            kv_cache.previous_B1C = x_BTC[:, -1:]
        if previous_B1C is None:
            previous_B1C = torch.zeros_like(x_BTC[:, :1])
        before_BTC = torch.cat((previous_B1C, x_BTC[:, :-1]), dim=1)
        gate_BT1 = torch.sigmoid(self.smear_gate(x_BTC[..., : self.smear_gate.in_features]))
        return x_BTC + self.smear_scale.to(x_BTC.dtype) * gate_BT1 * before_BTC

    def _head_inputs(self, x_BTC: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the loss takes: rows of x, the weight without its padding, a target for each row."""
        return x_BTC.flatten(0, 1), self.unembedding.weight[: self.vocab_size], targets_BT.reshape(-1).long()

    def _token_losses(self, x_BTC: Tensor, targets_BT: Tensor) -> Tensor:
        """nats_BT; where gradients are wanted all logits are held."""
        if not torch.is_grad_enabled():
            x_NC, weight_VC, targets_N = self._head_inputs(x_BTC, targets_BT)
            return token_losses(x_NC, weight_VC, targets_N, softcap=self.softcap).view(targets_BT.shape)
        logits_NV = self._logits(x_BTC).flatten(0, 1)
        nats_N = F.cross_entropy(
            logits_NV, targets_BT.reshape(-1).long(), ignore_index=IGNORED, reduction="none"
        )
        return nats_N.view(targets_BT.shape)

    def _logits(self, x_BTC: Tensor) -> Tensor:
        logits_BTV = self.unembedding(x_BTC)[..., : self.vocab_size]
        if self.softcap_in_float32:
            logits_BTV = logits_BTV.float()
        return (self.softcap * torch.tanh(logits_BTV / self.softcap)).float()

    def parameter_roles(self) -> dict[str, str]:
        """Every parameter's name and its role, by which the optimizer is told how to treat it."""
        return {name: _role(name) for name, _ in self.named_parameters()}

    @torch.no_grad()
    def prepare(self, *, dtype: torch.dtype | None = None) -> None:
        """After `to_empty`: set what no file stores, the dtype of embeddings and the rotary tables.

        dtype is the compute dtype; None takes the device's. What torch says of deterministic algorithms
        (machine.device.make_deterministic) is looked up here, for as long as the model lives.
        """
        dtype = dtype or compute_dtype(self.device)
        self.embedding.to(dtype)
        self.value_embeddings.to(dtype)
        for table in (self.embedding, *self.value_embeddings.values()):
            assert isinstance(table, Embedding)
            table.deterministic = torch.are_deterministic_algorithms_enabled()
        self.cos_TE, self.sin_TE = (table.to(dtype) for table in self._rotary_tables(self.device))
        for block in self.blocks:
            assert isinstance(block, Block)
            block.attention.prepare(dtype)
            block.mlp.prepare(dtype)

    def use_fp8(self) -> None:
        """Multiply in fp8 where gradients are wanted; ValueError where this device can't."""
        if problem := fp8.unavailable(self.device):
            raise ValueError(problem)
        for module in self.modules():
            if isinstance(module, Linear):
                module.in_fp8 = fp8.fits(module.weight)
        self.unembedding.in_fp8 &= fp8.fits(self.unembedding.weight[: self.vocab_size])

    @torch.no_grad()
    def initialize(self, generator: torch.Generator, *, dtype: torch.dtype | None = None) -> None:
        """Set every parameter and buffer.

        Random numbers are drawn on the generator's device: a CPU generator gives equal weights everywhere.
        """
        self.prepare(dtype=dtype)
        for name, parameter in self.named_parameters():
            drawn = torch.empty(parameter.shape, device=generator.device)
            _draw(name, drawn, width=self.width, initialization=self.initialization, generator=generator)
            parameter.copy_(drawn)

    def _rotary_tables(self, device: torch.device | None) -> list[Tensor]:
        tables = rotary_tables(
            ROTARY_CONTEXTS * self.context,
            head_dim=self.head_dim,
            base=self.hyperparameters["rope_base"],
            device=device,
        )
        rounded = torch.bfloat16 if self.hyperparameters["rope_dtype"] == "bfloat16" else torch.float32
        return [table.to(rounded).float() for table in tables]


def _check(hyperparameters: dict[str, Any]) -> None:
    """ValueError for what no model has; a file of strangers may say anything."""
    for name in ("depth", "width", "heads", "kv_heads", "vocab_size", "context", "vocab_multiple"):
        value = hyperparameters[name]
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be a whole number, 1 or more")
    for name in ("rope_base", "qk_scale", "softcap"):
        value, most = hyperparameters[name], LARGEST_SOFTCAP if name == "softcap" else math.inf
        if type(value) not in (int, float) or not 0 < value <= most:
            raise ValueError(f"{name} is {value!r}; it must be a number above 0 and at most {most:g}")
    width, heads, kv_heads = (hyperparameters[name] for name in ("width", "heads", "kv_heads"))
    if width % heads or width // heads % 2:
        raise ValueError(
            f"width {width} must divide into {heads} heads of an even size; change width or heads"
        )
    if heads % kv_heads:
        raise ValueError(f"heads ({heads}) must be a multiple of kv_heads ({kv_heads})")


def _role(name: str) -> str:
    top = name.split(".")[0]
    roles = {
        "embedding": "embedding",
        "value_embeddings": "value_embedding",
        "unembedding": "unembedding",
        "blocks": "matrix",
        "residual_scalars": "residual_scalar",
        "x0_scalars": "x0_scalar",
        "smear_gate": "smear",
        "smear_scale": "smear",
        "backout_scale": "smear",
    }
    return roles[top]


def _draw(
    name: str,
    tensor: Tensor,
    *,
    width: int,
    initialization: Literal["classic", "modern"],
    generator: torch.Generator,
) -> None:
    """Fill `tensor` with the initial values of the parameter `name`; the constants are nanochat's."""
    modern = initialization == "modern"
    bound = math.sqrt(3 / width)  # uniform with standard deviation 1/√width
    match name.removesuffix(".weight").split("."):
        case [*_, "output" | "contract"]:
            tensor.zero_()  # each block starts as the identity
        case ["blocks", *_, "value_gate"] | ["smear_gate"]:
            tensor.uniform_(0, 0.02, generator=generator)
        case ["blocks", *_, "expand"] if modern:
            tensor.uniform_(-0.4 * bound, 0.4 * bound, generator=generator)
        case ["blocks", *_] if modern:
            tensor.uniform_(-bound, bound, generator=generator)
        case ["blocks", *_]:
            fan_out, fan_in = tensor.shape
            # the spectral condition, https://arxiv.org/abs/2310.17813
            std = min(1, math.sqrt(fan_out / fan_in)) / math.sqrt(fan_in)
            tensor.normal_(0, std, generator=generator)
        case ["embedding"]:
            tensor.normal_(0, 0.8 if modern else 1, generator=generator)
        case ["unembedding"] if modern:
            tensor.normal_(0, 0.001, generator=generator)
        case ["unembedding"] | ["smear_scale"]:
            tensor.zero_()
        case ["value_embeddings", _]:
            tensor.uniform_(-bound, bound, generator=generator)
        case ["residual_scalars"]:
            tensor.copy_(torch.linspace(1.15, 1.05, len(tensor)))
        case ["x0_scalars"]:
            tensor.copy_(torch.linspace(0.20, 0.05, len(tensor)))
        case ["backout_scale"]:
            tensor.fill_(0.2)
        case _:
            raise AssertionError(f"no initial value is defined for {name}")
