"""What the blocks are computed with on a device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..backends.block_ops import select_ops
from ..checkpoints.formats import WanArchitecture
from ..kernels import ops_torch
from ..kernels.attention import Attention, SelfAttention, fits_in_place, sdpa, select_attention, select_in_place
from ..kernels.matmul import ACTIVATION_DTYPES, Linear, linear, select_matmul
from ..kernels.ops import Ops, Rotary
from ..kernels.widen import widen
from ..settings import EngineSettings
from ..system import release_memory

Weights = Mapping[str, torch.Tensor]
Inputs = tuple[torch.Tensor, torch.Tensor | None]
"""What a linear layer takes: rows [M, K] in 8 bits and their scales [M, 1], or in BF16 and None."""

# What the sizes of an 8-bit matmul must be a multiple of, on both sides.
_MULTIPLE = 16


@dataclass(frozen=True)
class NormedAttention:
    """Self-attention by a back end that takes q and k normalised and rotated; see SelfAttention."""

    ops: Ops
    attention: Attention
    in_place: SelfAttention | None = None
    """What prepares them itself, where they fit."""

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        norms: tuple[torch.Tensor, torch.Tensor],
        eps: float,
        rotary: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        if self.in_place is not None and fits_in_place(q):
            return self.in_place(q, k, v, norms, eps, rotary)
        for part, weight in zip((q, k), norms, strict=True):
            self.ops.rms_rotary(part.view(len(part), -1), weight, eps, part.shape[1], Rotary(*rotary))
        return self.attention(q[None], k[None], v[None])[0]


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Functions for the parts of a block."""

    ops: Ops
    multiply: Callable[[torch.Tensor, torch.Tensor | None, Linear, torch.Tensor], None]
    """See kernels/matmul.py linear."""
    self_attention: SelfAttention
    quantised: torch.dtype | None
    """What the linears' inputs are quantised to: float8_e4m3fn or int8; None is BF16."""
    facts: Mapping[str, Any]
    """What was chosen, for the report: attention, attention_in_place (whether it overwrites q, k and v), matmul,
    ops (triton | torch), compile (whether ops are fused)."""

    def quantise(self, x: torch.Tensor, out: torch.Tensor, scales: torch.Tensor | None) -> Inputs:
        """Return x [M, K] BF16 as the linears take it: written to `out` and `scales`, or itself where that is BF16."""
        if scales is None:
            return x, None
        self.ops.quantise(x, out, scales)
        return out, scales

    def linear(self, inputs: Inputs, weights: Weights, name: str, out: torch.Tensor) -> None:
        """Write the linear layer `name` of inputs [M, K] to out [M, N]."""
        layer = Linear(weights[f"{name}.weight"], weights.get(f"{name}.weight_scale"), weights[f"{name}.bias"])
        self.multiply(*inputs, layer, out)

    def linear_of_heads(self, heads: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
        """Return what the linear layer `name` makes of each head alone, without its bias, in BF16 [heads, M, N].

        Args: heads: [M, heads, head_dim] BF16; all of a row together are what the layer takes.
        """
        stored, scale = weights[f"{name}.weight"], weights.get(f"{name}.weight_scale")
        wide = widen(stored, heads.new_empty(stored.shape))
        out = torch.bmm(heads.transpose(0, 1), wide.view(-1, *heads.shape[1:]).permute(1, 2, 0))
        # Both 8-bit types are exact in BF16, so the scale goes on the result, which is smaller.
        return out if scale is None else out.mul_(scale.flatten())


def select_kernels(scheme: str, sizes: WanArchitecture, settings: EngineSettings, device: torch.device) -> Kernels:
    """Choose the kernels for the blocks of a checkpoint.

    Args:
        scheme: bf16 | fp8 | int8, of the blocks' linears.
        settings: attention and compile; compile "on" insists on fused operations, "off" takes none.

    Raises:
        ValueError: the settings name what is unknown.
        MissingDependencyError, UnsupportedHardwareError: what was named cannot run here.
    """
    ops_name, ops = select_ops(settings.compile, device)
    is_fused = ops_name == "triton"
    attention_name, attention = select_attention(settings.attention, device, is_fused=is_fused)
    in_place = select_in_place(attention_name, device, NormedAttention(ops_torch, sdpa)) if is_fused else None
    if scheme == "bf16":
        matmul = "bf16"
    elif sizes.dim % _MULTIPLE or sizes.ffn_dim % _MULTIPLE:
        matmul = "dequantize"
    else:
        matmul = select_matmul(scheme, device, is_fused=is_fused)
    # The trial runs compiled; what that took shall not come on top of the weights.
    release_memory(device)
    return Kernels(
        ops=ops,
        multiply=functools.partial(linear, backend=matmul),
        self_attention=NormedAttention(ops, attention, in_place),
        quantised=ACTIVATION_DTYPES.get(matmul),
        facts={
            "attention": attention_name,
            "attention_in_place": in_place is not None,
            "matmul": matmul,
            "ops": ops_name,
            "compile": is_fused,
        },
    )
