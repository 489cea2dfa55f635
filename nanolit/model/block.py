"""The parts of a GPT: linear layer, norm, attention, MLP, and the block that joins them.

Each part calls a plain PyTorch function or, where one runs on this device, a fused kernel that gives the same
result (kernels/). Read the plain one first. Letters: see gpt.py.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanolit.kernels import fp8, fp8_block
from nanolit.kernels import heads as fused_heads
from nanolit.kernels import mlp as fused_mlp
from nanolit.kernels.attention import Backend, attend, choose_backend, rotate
from nanolit.model.accounting import VALUE_GATE_CHANNELS


class Linear(nn.Linear):
    """y = x Wᵀ without bias; the float32 master weight is cast to the activation's dtype at every use.

    This cast replaces autocast (nanochat, 2026-03-04): the precision of each product can be read in the code,
    and the optimizer's small updates land in float32, where bfloat16's 8 bits would round them away.
    """

    in_fp8 = False  # until GPT.use_fp8

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        if self.in_fp8 and torch.is_grad_enabled():
            return fp8.linear(input, self.weight)
        return F.linear(input, self.weight.to(input.dtype))


def norm(x: Tensor) -> Tensor:
    """Return x at RMS 1 over its last dim (RMSNorm, https://arxiv.org/abs/1910.07467), without parameters.

    eps is torch's default.
    """
    return F.rms_norm(x, (x.size(-1),))


class Attention(nn.Module):
    """Causal self-attention with rotary positions, normalised queries and keys, grouped heads, a window."""

    def __init__(
        self, *, width: int, heads: int, kv_heads: int, qk_scale: float, window: int | None, value_gate: bool
    ):
        super().__init__()
        self.qk_scale, self.window = qk_scale, window
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        self.backend: Backend = "sdpa"  # both are set by `prepare`, once the model is on its device
        self.fused = False
        self.query = Linear(width, width)
        self.key = Linear(width, kv_heads * self.head_dim)
        self.value = Linear(width, kv_heads * self.head_dim)
        self.output = Linear(width, width)
        # Only in layers with a value embedding. The gate reads 12 channels: as nanochat, which began with 32
        self.value_gate = Linear(min(VALUE_GATE_CHANNELS, width), kv_heads) if value_gate else None

    def forward(
        self, x_BTC: Tensor, cos_TE: Tensor, sin_TE: Tensor, *, value_embedding: Tensor | None
    ) -> Tensor:
        project = self._project_fused if self.fused else self._project
        q_BTHD, k_BTKD, v_BTKD = project(x_BTC, cos_TE, sin_TE)
        if value_embedding is not None and self.value_gate is not None:
            # A gate per position and key-value head decides how much of the value embedding to add: "Gate
            # helps" (nanochat, 2026-01-17); it saved modded-nanogpt 1.3 s (its PR 186). It starts at 1.5 and
            # opens up to 3, so that the table can outweigh the values. nanochat raised the 3 from 2 between
            # January and July 2026; what that alone is worth is not published.
            gate_BTK = 3 * torch.sigmoid(self.value_gate(x_BTC[..., : self.value_gate.in_features]))
            v_BTKD = v_BTKD + gate_BTK[..., None] * value_embedding.unflatten(-1, (-1, self.head_dim))
        y_BTHD = attend(q_BTHD, k_BTKD, v_BTKD, window=self.window, backend=self.backend)
        return self.output(y_BTHD.flatten(2))

    def prepare(self, dtype: torch.dtype) -> None:
        """Choose the kernels for the device the parameters are on."""
        device, is_gpu = self.query.weight.device, self.query.weight.is_cuda
        self.backend = choose_backend(device, dtype, self.head_dim) if is_gpu else "sdpa"
        self.fused = is_gpu and fused_heads.has_kernel(device, dtype, self.head_dim)

    def _project(self, x_BTC: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated, normalised and scaled queries and keys, and plain values."""
        q_BTHD, k_BTKD, v_BTKD = (
            part(x_BTC).unflatten(-1, (-1, self.head_dim)) for part in (self.query, self.key, self.value)
        )
        # QK norm (https://arxiv.org/abs/2010.04245) bounds the scores however the weights grow, so attention
        # can't saturate. A scale of 1.2 on both gives scores of up to 1.44 √D: sharper attention. nanochat
        # found it by automated sweeps (6ed7d1d with 1.15, a825e63 with 1.2), among the changes that took its
        # time to GPT-2 from 2.02 to 1.65 hours.
        q_BTHD = norm(rotate(q_BTHD, cos_TE, sin_TE)) * self.qk_scale
        k_BTKD = norm(rotate(k_BTKD, cos_TE, sin_TE)) * self.qk_scale
        return q_BTHD, k_BTKD, v_BTKD

    def _project_fused(self, x_BTC: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same by one product with all three weights, joined at each call, and one kernel.

        The weights stay three parameters: Muon of the joined matrix would be another algorithm.
        """
        parts = (self.query, self.key, self.value)
        weight_XC = torch.cat([part.weight.to(x_BTC.dtype) for part in parts])
        shape = {"heads": self.heads, "kv_heads": self.kv_heads, "qk_scale": self.qk_scale}
        in_fp8 = self.query.in_fp8 and fp8.fits(weight_XC) and fp8.whole(x_BTC)
        if in_fp8 and torch.is_grad_enabled():
            return fp8_block.project(x_BTC, weight_XC, cos_TE, sin_TE, **shape)
        return fused_heads.split_heads(F.linear(x_BTC, weight_XC), cos_TE, sin_TE, **shape)


class MLP(nn.Module):
    """Expand to four times the width, square the ReLU, and contract (Primer, https://arxiv.org/abs/2109.08668).

    At equal parameters and FLOPs SwiGLU was worse at d12 and d24 by steps, FLOPs and time (nanochat,
    2026-02-05); LeakyReLU(0.5)² was better by steps and worse by time (2026-03-24).
    """

    def __init__(self, width: int):
        super().__init__()
        self.expand = Linear(width, 4 * width)
        self.contract = Linear(4 * width, width)
        self.fused = False  # set by `prepare`, once the model is on its device

    def forward(self, x_BTC: Tensor) -> Tensor:
        weights = self.expand.weight, self.contract.weight
        if not torch.is_grad_enabled():
            return fused_mlp.relu_squared_mlp(x_BTC, *weights)
        if self.expand.in_fp8:
            return fp8_block.mlp(x_BTC, *weights, fused=self.fused)
        return (fused_mlp.fused_mlp if self.fused else fused_mlp.relu_squared_mlp)(x_BTC, *weights)

    def prepare(self, dtype: torch.dtype) -> None:
        """Choose the kernel for the device the parameters are on."""
        weight = self.expand.weight
        self.fused = weight.is_cuda and fused_mlp.has_kernel(weight.device, dtype)


class Block(nn.Module):
    """Attention, then the MLP, each reading a normalised copy of the stream and adding its output to it."""

    def __init__(self, *, width: int, **attention: Any):
        super().__init__()
        self.attention = Attention(width=width, **attention)
        self.mlp = MLP(width)

    def forward(self, x_BTC: Tensor, *where: Tensor, **context: Any) -> Tensor:
        # Pre-norm: the stream itself is never normalised between blocks, so the identity path stays open
        x_BTC = x_BTC + self.attention(norm(x_BTC), *where, **context)
        return x_BTC + self.mlp(norm(x_BTC))
