"""Attention and matmul ops of LightX2V for back ends of the pack's tables; registers what LightX2V lacks.

Attention functions are the pack's own (engine/kernels), so that a name means the same kernel in both engines;
LightX2V's op `sage_attn2` is SageAttention's Triton kernel on some cards. Matmuls are LightX2V's where it has them.
Imports LightX2V: import this module after bootstrap.import_lightx2v().
"""

from __future__ import annotations

from typing import Any

import torch
from lightx2v.common.ops.attn.template import AttnWeightTemplate
from lightx2v.common.ops.mm.mm_weight import MMWeightQuantTemplate
from lightx2v.utils.registry_factory import ATTN_WEIGHT_REGISTER, MM_WEIGHT_REGISTER

from ...kernels import attention, matmul
from .config import MATMUL_OPS, OURS

# What the sizes of an 8-bit matmul of the pack must be a multiple of.
_MULTIPLE = 16


def attention_op(name: str) -> str:
    """Return the op that runs an attention back end of the pack."""
    op = f"{OURS}{name}"
    if op not in ATTN_WEIGHT_REGISTER:
        ATTN_WEIGHT_REGISTER[op] = _attention_class(attention.KERNELS[name])
    return op


def matmul_op(precision: str, name: str) -> str:
    """Return the op that runs a matmul back end on weights of a precision."""
    _register_matmuls()
    return MATMUL_OPS[precision, name]


def multiply(precision: str, name: str, device: torch.device) -> torch.Tensor:
    """Return a small product with random weights in 8 bits: what backends/trials.py compares."""
    dtype = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}[precision]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 128, generator=generator).to(device, torch.bfloat16)
    weight = (torch.randn(256, 128, generator=generator) * 20).round().to(device).to(dtype)
    scale = torch.rand(256, 1, generator=generator).to(device) + 0.5
    bias = torch.zeros(256, device=device, dtype=torch.bfloat16)
    module = MM_WEIGHT_REGISTER[matmul_op(precision, name)]("x.weight", "x.bias")
    module.load({"x.weight": weight, "x.weight_scale": scale, "x.bias": bias})
    product: torch.Tensor = module.apply(x)
    return product


def _register_matmuls() -> None:
    for op in set(MATMUL_OPS.values()):
        if op.startswith(OURS) and op not in MM_WEIGHT_REGISTER:
            MM_WEIGHT_REGISTER[op] = _matmul_class(op.removeprefix(OURS))


def _attention_class(kernel: attention.Attention) -> type[Any]:
    class KernelAttention(AttnWeightTemplate):  # type: ignore[misc]
        """An attention function of engine/kernels as an op: q, k, v [S, H, D] -> [S, H * D]."""

        def __init__(self) -> None:
            self.config: dict[str, Any] = {}

        def apply(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: Any) -> torch.Tensor:
            return kernel(q[None], k[None], v[None])[0].flatten(1)

    return KernelAttention


def _matmul_class(name: str) -> type[Any]:
    class KernelLinear(MMWeightQuantTemplate):  # type: ignore[misc]
        """A matmul function of engine/kernels as an op: x [M, K] -> [M, N]."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.weight_need_transpose = False
            self.scale_force_fp32 = True

        def apply(self, input_tensor: torch.Tensor) -> torch.Tensor:
            # Sizes that a kernel cannot take are dequantized.
            fits = not any(size % _MULTIPLE for size in self.weight.shape)
            product = matmul.MATMULS[name if fits else "dequantize"]
            return product(input_tensor, self.weight, self.weight_scale, self.bias)

    return KernelLinear
