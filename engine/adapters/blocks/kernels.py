"""What the blocks are computed with on a device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...logic.checkpoint_formats import WanArchitecture
from ...settings import EngineSettings
from ..kernels.attention import Attention, is_in_place, select_attention
from ..kernels.matmul import ACTIVATION_DTYPES, Linear, linear, select_matmul
from .ops import Ops
from .select import select_ops

Weights = Mapping[str, torch.Tensor]
Inputs = tuple[torch.Tensor, torch.Tensor | None]
"""What a linear layer takes: rows [M, K] in 8 bits and their scales [M, 1], or in BF16 and None."""

# What the sizes of an 8-bit matmul must be a multiple of, on both sides.
_MULTIPLE = 16


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Functions for the parts of a block."""

    ops: Ops
    multiply: Callable[[torch.Tensor, torch.Tensor | None, Linear, torch.Tensor], None]
    """See kernels/matmul.py linear."""
    attention: Attention
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
    if scheme == "bf16":
        matmul = "bf16"
    elif sizes.dim % _MULTIPLE or sizes.ffn_dim % _MULTIPLE:
        matmul = "dequantize"
    else:
        matmul = select_matmul(scheme, device, is_fused=is_fused)
    return Kernels(
        ops=ops,
        multiply=functools.partial(linear, backend=matmul),
        attention=attention,
        quantised=ACTIVATION_DTYPES.get(matmul),
        facts={
            "attention": attention_name,
            "attention_in_place": is_in_place(attention),
            "matmul": matmul,
            "ops": ops_name,
            "compile": is_fused,
        },
    )
