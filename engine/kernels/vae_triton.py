"""The operations of vae_ops.py as Triton kernels, each at about the speed of its bytes.

Compiled once for a card and a width, whatever the size of the clip.

Imports Triton: import this module only when it is to be used.
"""

# Kernels are in Triton's language: untyped, sizes in capitals.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .vae_ops import SMALLEST_NORM

_SMALLEST_NORM = tl.constexpr(SMALLEST_NORM)
# Elements a program works on.
_BLOCK = 4096


@triton.jit(do_not_specialize=["pixels"])
def _norm_silu(
    x, bias, gamma, out, pixels, distance, root, HAS_BIAS: tl.constexpr,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Some pixels, each with all its channels, padded to a power of two; `distance` is that of output pixels."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, PADDED)
    is_channel = channel < CHANNELS
    is_inside = (row < pixels)[:, None] & is_channel[None, :]
    values = tl.load(x + row[:, None] * CHANNELS + channel[None, :], mask=is_inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        values += tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    length = tl.maximum(tl.sqrt(tl.sum(values * values, axis=1)), _SMALLEST_NORM)
    factor = tl.load(gamma + channel, mask=is_channel, other=0.0).to(tl.float32)
    values = values * (root / length)[:, None] * factor[None, :]
    values = values * tl.sigmoid(values)
    tl.store(out + row[:, None] * distance + channel[None, :], values.to(out.dtype.element_ty), mask=is_inside)


@triton.jit(do_not_specialize=["count"])
def _add(x, bias, shortcut, count, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_inside = index < count
    total = tl.load(x + index, mask=is_inside, other=0.0).to(tl.float32)
    total += tl.load(shortcut + index, mask=is_inside, other=0.0).to(tl.float32)
    total += tl.load(bias + index % CHANNELS, mask=is_inside, other=0.0).to(tl.float32)
    tl.store(x + index, total.to(x.dtype.element_ty), mask=is_inside)


class TritonOps:
    """VaeOps in Triton. Inputs are dense; of an output [height, width, channels] rows follow each other."""

    def norm_silu(self, x: torch.Tensor, bias: torch.Tensor | None, gamma: torch.Tensor, out: torch.Tensor) -> None:
        channels = x.shape[-1]
        pixels = x.numel() // channels
        padded = triton.next_power_of_2(channels)
        rows = max(_BLOCK // padded, 1)
        _norm_silu[(triton.cdiv(pixels, rows),)](
            x, gamma if bias is None else bias, gamma, out, pixels, out.stride(1), channels**0.5,
            bias is not None, channels, padded, rows, num_warps=4,
        )  # fmt: skip

    def add(self, x: torch.Tensor, bias: torch.Tensor, shortcut: torch.Tensor) -> None:
        count = x.numel()
        _add[(triton.cdiv(count, _BLOCK),)](x, bias, shortcut, count, x.shape[-1], _BLOCK, num_warps=8)
