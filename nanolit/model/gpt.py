"""The GPT of every recipe: ids to logits, with each idea behind a flag of its own.

Letters of shapes, everywhere in the repository: B rows, T positions, C width, H heads, K key-value heads,
D head dim, V vocabulary, L layers; here and in kernels/ also S positions of keys (T new ones and those
before) and E, half of D. A tensor's name ends in its letters: x_BTC, q_BTHD, logits_BTV.

"nanochat, <date>" in a comment is an entry of github.com/karpathy/nanochat/blob/master/dev/LOG.md.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanolit.kernels import fp8
from nanolit.kernels.attention import Backend, rotary_tables
from nanolit.kernels.loss import IGNORED, LARGEST_SOFTCAP, summed_loss, token_losses
from nanolit.kernels.residual import Embedding, mix
from nanolit.machine.device import compute_dtype
from nanolit.model.accounting import SMEAR_CHANNELS, padded_vocab_size, value_embedding_layers, window_sizes
from nanolit.model.block import Block, Linear, norm

# Rotary positions are tabulated this many contexts far: evaluation prompts and chats may be longer than a
# training row. Quality beyond the context is not promised.
ROTARY_CONTEXTS = 10
LARGEST = {"rope_base": 1e12, "qk_scale": 1e12, "softcap": LARGEST_SOFTCAP}  # float32 holds what comes of it
LARGEST_CONTEXT = 1 << 17  # no weight tells a context: a stranger's gpt.json could ask for any memory

# The role of a parameter, by the first part of its name
ROLES = {
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
Reduction = Literal["mean", "sum", "none"]  # of the losses of all positions


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """A GPT's hyperparameters: its sizes, and a choice for each idea beyond a plain one. Stored as gpt.json.

    Raises ValueError for sizes that no model can have, because a gpt.json may come from anywhere.
    """

    depth: int  # L, the blocks
    width: int  # C, the channels of the residual stream
    heads: int  # H query heads; recipes make them 128 wide, which beat 64 (nanochat, 2026-01-17)
    kv_heads: int  # K key-value heads, each shared by H / K consecutive query heads
    vocab_size: int  # V ids, and as many logits
    context: int  # T, the positions of a training row
    rope_base: float  # of the rotary angles: attention.rotary_tables
    window_pattern: str  # of S and L, tiled over the layers: accounting.window_sizes
    value_embeddings: bool  # add a gated table to the values of every other layer
    residual_scalars: bool  # let each block read r x + s x₀
    smear: bool  # add a gated part of the previous position's embedding
    backout: bool  # take a part of the middle layer out before the head
    qk_scale: float  # multiplies normalised queries and keys
    softcap: float  # c in c·tanh(logits / c)
    initialization: Literal["classic", "modern"]  # the initial values: _draw
    vocab_multiple: int  # pads the tables' rows; the logits are cropped
    rope_dtype: Literal["compute", "bfloat16"] = "compute"  # what the rotary tables are rounded to
    softcap_dtype: Literal["compute", "float32"] = "float32"  # what the soft cap is computed in

    def __post_init__(self) -> None:
        for name in ("depth", "width", "heads", "kv_heads", "vocab_size", "context", "vocab_multiple"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number, 1 or more")
        for name, most in LARGEST.items():
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value <= most:
                raise ValueError(f"{name} is {value!r}; it must be a number above 0 and at most {most:g}")
        for name, hint in get_type_hints(type(self)).items():
            value, allowed = getattr(self, name), get_args(hint) or ((True, False) if hint is bool else ())
            if allowed and (value not in allowed or type(value) is not type(allowed[0])):
                raise ValueError(f"{name} is {value!r}; allowed are {', '.join(map(str, allowed))}")
        if self.context > LARGEST_CONTEXT:
            raise ValueError(f"context is {self.context}; it must be at most {LARGEST_CONTEXT}")
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(
                f"width {self.width} must divide into {self.heads} heads of an even size; "
                "change width or heads"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")


class GPT(nn.Module):
    """A decoder of `config.depth` blocks.

    Building sets no weights: call `initialize`, or load a release. Works under `torch.device("meta")`,
    followed by `to_empty`. Matrices are float32 masters; embeddings, and with them all activations, are in
    the compute dtype.
    """

    cos_TE: Tensor
    sin_TE: Tensor

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.hyperparameters: dict[str, Any] = asdict(config)
        self.vocab_size, self.context = config.vocab_size, config.context
        self.max_positions = ROTARY_CONTEXTS * config.context  # of a text: those of the rotary tables
        self.head_dim = config.width // config.heads
        for name, table_TE in zip(("cos_TE", "sin_TE"), self._rotary_tables(None), strict=True):
            self.register_buffer(name, table_TE, persistent=False)

        # Rows beyond the vocabulary only round the head's product up to whole GPU tiles: 64 in modern
        rows = padded_vocab_size(config.vocab_size, config.vocab_multiple)
        tables = value_embedding_layers(config.depth) if config.value_embeddings else []
        # SSSL: three layers see a quarter of the context, the fourth and the last all of it. nanochat chose
        # the pattern by quick experiments (2026-01-11), then cut S from a half to a third to a quarter.
        windows = window_sizes(config.window_pattern, depth=config.depth, context=config.context)
        self.embedding = Embedding(rows, config.width)
        self.value_embeddings = nn.ModuleDict(
            {str(layer): Embedding(rows, config.kv_heads * self.head_dim) for layer in tables}
        )
        self.blocks = nn.ModuleList(
            Block(
                width=config.width,
                heads=config.heads,
                kv_heads=config.kv_heads,
                qk_scale=config.qk_scale,
                window=windows[layer],
                value_gate=layer in tables,
            )
            for layer in range(config.depth)
        )
        # Not tied to the embedding: they start at very different sizes (`_draw`) and learn at different
        # rates, 0.3 and 0.008 in modern.
        self.unembedding = Linear(config.width, rows)
        scalars = config.residual_scalars
        self.residual_scalars = nn.Parameter(torch.empty(config.depth)) if scalars else None
        self.x0_scalars = nn.Parameter(torch.empty(config.depth)) if scalars else None
        self.smear_gate = Linear(min(SMEAR_CHANNELS, config.width), 1) if config.smear else None
        self.smear_scale = nn.Parameter(torch.empty(1)) if config.smear else None
        self.backout_scale = nn.Parameter(torch.empty(1)) if config.backout else None

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def compute_dtype(self) -> torch.dtype:
        """Return the dtype of activations, which is that of the stored embeddings."""
        return self.embedding.weight.dtype

    @property
    def attention_backend(self) -> Backend:
        """Return the attention kernel used for whole texts; see attention.choose_backend."""
        block = self.blocks[0]
        assert isinstance(block, Block)
        return block.attention.backend

    def forward(
        self, ids_BT: Tensor, targets_BT: Tensor | None = None, *, reduction: Reduction = "mean"
    ) -> Tensor:
        """Return float32 logits_BTV or, given targets, the cross-entropy in nats; a target of -1 counts 0.

        `mean` averages over learned positions (0 if there are none); `none` has shape (B, T). To continue a
        text token by token, see inference/decode.py.
        """
        x_BTC = self._hidden(ids_BT)
        if targets_BT is None:
            return self._logits(x_BTC)
        x_NC, targets_N = x_BTC.flatten(0, 1), targets_BT.reshape(-1).long()
        weight_VC, softcap = self.unembedding.weight[: self.vocab_size], self.config.softcap
        if reduction != "none":
            total = summed_loss(x_NC, weight_VC, targets_N, softcap=softcap, in_fp8=self.unembedding.in_fp8)
            return total if reduction == "sum" else total / (targets_BT != IGNORED).sum().clamp(min=1)
        if torch.is_grad_enabled():  # then the logits of all tokens are held in memory
            logits_NV = self._logits(x_BTC).flatten(0, 1)
            nats_N = F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORED, reduction="none")
        else:
            nats_N = token_losses(x_NC, weight_VC, targets_N, softcap=softcap)
        return nats_N.view(targets_BT.shape)

    def _hidden(self, ids_BT: Tensor) -> Tensor:
        """Run all blocks and return the normalised output of the last one, (B, T, C)."""
        T = ids_BT.size(1)
        if self.max_positions < T:
            raise ValueError(
                f"a text of {T} tokens; this model takes at most {self.max_positions}: shorten the text"
            )
        cos_TE, sin_TE = self.cos_TE[:T], self.sin_TE[:T]

        # Whoever reads the stream reads it at RMS 1: there is a norm here, before attention, before the MLP
        # and before the head. None has learned scales, as in nanochat since 2025.
        x_BTC = self._smear(norm(self.embedding(ids_BT)))
        x0_BTC = middle_BTC = x_BTC
        for layer, block in enumerate(self.blocks):
            # Residual scalars: the block reads r x + s x₀, so every layer can see its token again and damp
            # what came before. From modded-nanogpt. For no compute, s x₀ lowered nanochat's bits per byte by
            # 0.0103 at d8, 0.0077 at d12 and 0.0039 at d20; r added a little (nanochat, 2026-01-11).
            if self.residual_scalars is not None and self.x0_scalars is not None:
                x_BTC = mix(x_BTC, x0_BTC, self.residual_scalars[layer], self.x0_scalars[layer])
            # Value embeddings (https://arxiv.org/abs/2410.17897): a further table per layer whose row is
            # added to the values of attention. It buys capacity (151M parameters at d12) for almost no FLOPs
            # and wins by steps, FLOPs and time. Every other layer was the best placing; sharing or shrinking
            # tables always lost (nanochat, 2026-01-17).
            has_table = str(layer) in self.value_embeddings
            value_embedding = self.value_embeddings[str(layer)](ids_BT) if has_table else None
            x_BTC = block(x_BTC, cos_TE, sin_TE, value_embedding=value_embedding)
            if layer == self.config.depth // 2:
                middle_BTC = x_BTC
        # Backout: take a learned part of the middle layer out again, so that what only the first half needed
        # doesn't reach the head. From modded-nanogpt. Alone it gained nothing (nanochat, 2026-01-16);
        # nanochat took it up with smear when its time to GPT-2 fell from 1.80 to 1.65 hours, several changes
        # at once.
        if self.backout_scale is not None:
            x_BTC = x_BTC - self.backout_scale.to(x_BTC.dtype) * middle_BTC
        return norm(x_BTC)

    def _smear(self, x_BTC: Tensor) -> Tensor:
        """Add to each position a gated part of the previous embedding; the first position has none before it.

        A cheap bigram: the first layer knows the previous token before it attends. From modded-nanogpt. It
        saved nanochat 2.6% of compute at d12, 1.9% at d16 and 1.4% at d24, too little to keep it (61ac81c,
        2026); `modern` keeps July's recipe. Decoding must remember the last embedding: inference/slots.py.
        """
        if self.smear_gate is None or self.smear_scale is None:
            return x_BTC
        before_BTC = torch.cat((torch.zeros_like(x_BTC[:, :1]), x_BTC[:, :-1]), dim=1)
        # The gate reads the first 24 channels (SMEAR_CHANNELS, as nanochat, untuned here)
        gate_BT1 = torch.sigmoid(self.smear_gate(x_BTC[..., : self.smear_gate.in_features]))
        return x_BTC + self.smear_scale.to(x_BTC.dtype) * gate_BT1 * before_BTC

    def _logits(self, x_BTC: Tensor) -> Tensor:
        # Soft cap (Gemma 2, https://arxiv.org/abs/2408.00118): c·tanh(z / c) bounds the logits by ±c, which
        # also lets the loss sum exponentials without finding the largest first. The value hardly matters: of
        # 5 to 30 at d24 only 5 was bad, 20 best by 0.001 of loss (nanochat, 2026-03-02); both recipes have
        # 15. modern takes the tanh in float32, classic in the compute dtype.
        softcap, logits_BTV = self.config.softcap, self.unembedding(x_BTC)[..., : self.vocab_size]
        if self.config.softcap_dtype == "float32":
            logits_BTV = logits_BTV.float()
        return (softcap * torch.tanh(logits_BTV / softcap)).float()

    def parameter_roles(self) -> dict[str, str]:
        """Return each parameter's role by its name; the optimizer has settings for each role."""
        return {name: ROLES[name.split(".")[0]] for name, _ in self.named_parameters()}

    @torch.no_grad()
    def prepare(self, *, dtype: torch.dtype | None = None) -> None:
        """Set what no file stores, after `to_empty`: the embeddings' dtype, the rotary tables, the kernels.

        dtype is the compute dtype; None takes the device's. Whether torch wants deterministic algorithms
        (machine.device.make_deterministic) is read here, once for the life of the model.
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
        """Multiply in fp8 during training. Raises ValueError on a device that has none."""
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
            _draw(name, drawn, config=self.config, generator=generator)
            parameter.copy_(drawn)

    def _rotary_tables(self, device: torch.device | None) -> list[Tensor]:
        tables = rotary_tables(
            self.max_positions, head_dim=self.head_dim, base=self.config.rope_base, device=device
        )
        rounded = torch.bfloat16 if self.config.rope_dtype == "bfloat16" else torch.float32
        return [table.to(rounded).float() for table in tables]


def _draw(name: str, tensor: Tensor, *, config: GPTConfig, generator: torch.Generator) -> None:
    """Fill `tensor` with the initial values of the parameter `name`.

    The constants are nanochat's of October 2025 (classic) and July 2026 (modern). No effect of a single one
    is published unless a comment gives it.
    """
    modern = config.initialization == "modern"
    # Uniform with standard deviation 1/√width, like the normal of that size but without outliers
    bound = math.sqrt(3 / config.width)
    match name.removesuffix(".weight").split("."):
        case [*_, "output" | "contract"]:
            # Each block starts as the identity. The price: at step 1 the matrices before these, and the
            # scalars of the stream, have gradient zero.
            tensor.zero_()
        case ["blocks", *_, "value_gate"] | ["smear_gate"]:
            # Small and positive: sigmoids start just above a half, so value gates at about 1.5 of 3
            tensor.uniform_(0, 0.02, generator=generator)
        case ["blocks", *_, "expand"] if modern:
            # 0.4×: smaller hidden values at first; ReLU² makes them 0.16× as large
            tensor.uniform_(-0.4 * bound, 0.4 * bound, generator=generator)
        case ["blocks", *_] if modern:
            tensor.uniform_(-bound, bound, generator=generator)
        case ["blocks", *_]:
            fan_out, fan_in = tensor.shape
            # the spectral condition, https://arxiv.org/abs/2310.17813
            std = min(1, math.sqrt(fan_out / fan_in)) / math.sqrt(fan_in)
            tensor.normal_(0, std, generator=generator)
        case ["embedding"]:
            # A norm follows, so the size only decides how fast a step of AdamW turns a row
            tensor.normal_(0, 0.8 if modern else 1, generator=generator)
        case ["unembedding"] if modern:
            # Nearly uniform predictions, so the first loss is ln V. From zero, as in classic, no gradient
            # reaches the model at step 1
            tensor.normal_(0, 0.001, generator=generator)
        case ["unembedding"] | ["smear_scale"]:
            tensor.zero_()
        case ["value_embeddings", _]:
            # Drawn like the value matrix, but a looked-up row is not multiplied by anything: it starts about
            # √width smaller than the values, whose RMS is 1. nanochat found that out later and has drawn
            # N(0, 1) since September 2026; `modern` keeps July's.
            tensor.uniform_(-bound, bound, generator=generator)
        # From the first layer to the last: early layers amplify more and see more of the token. nanochat
        # began with 1 and 0 (2026-01-11)
        case ["residual_scalars"]:
            tensor.copy_(torch.linspace(1.15, 1.05, len(tensor)))
        case ["x0_scalars"]:
            tensor.copy_(torch.linspace(0.20, 0.05, len(tensor)))
        case ["backout_scale"]:
            tensor.fill_(0.2)
        case _:
            raise AssertionError(f"no initial value is defined for {name}")
