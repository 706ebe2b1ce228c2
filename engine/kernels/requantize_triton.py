"""requantize.py's in Triton, bit for bit, in one pass over memory; the second look at a row comes from the cache.

FP8 is read as bytes: Triton has no FP8 below compute capability 8.9, where this is for. Magnitudes of E4M3 are in the
order of their codes, so that the largest is found among bytes.

Imports Triton: import this module only when it is to be used.
"""

# Kernels are Triton's language, not Python's: untyped, and sizes in capitals.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .quantize import SMALLEST

# Weights of a row that a program takes at a time.
_EACH = 4096
# Adding this to a float rounds it half to even and leaves the integer in the low bits.
_ROUNDER = tl.constexpr(12582912.0)
_SMALLEST = tl.constexpr(SMALLEST)


@triton.jit
def _value(code):
    """Return fp32 of E4M3 codes in int32: their 7 bits where FP32 has its lowest exponents, times 2 ** (127 - 7)."""
    return (((code & 0x80) << 24) | ((code & 0x7F) << 20)).to(tl.float32, bitcast=True) * 1.329227995784916e36


@triton.jit
def _requantize_kernel(weight, scale, stride, K: tl.constexpr, EACH: tl.constexpr):
    """Requantize a row in place; grid: rows."""
    row = tl.program_id(0).to(tl.int64)
    weight += row * stride
    columns = tl.arange(0, EACH)
    largest = tl.zeros((EACH,), dtype=tl.int32)
    for start in tl.static_range(0, K, EACH):
        codes = tl.load(weight + start + columns, mask=start + columns < K, other=0).to(tl.int32)
        largest = tl.maximum(largest, codes & 0x7F)
    peak = tl.maximum(_value(tl.max(largest, axis=0)), _SMALLEST)
    ratio = tl.div_rn(peak * 0.0 + 127.0, peak)
    for start in tl.static_range(0, K, EACH):
        is_here = start + columns < K
        codes = tl.load(weight + start + columns, mask=is_here, other=0).to(tl.int32)
        rounded = (_value(codes) * ratio + _ROUNDER).to(tl.int32, bitcast=True).to(tl.int8)
        tl.store(weight + start + columns, rounded, mask=is_here)
    tl.store(scale + row, tl.load(scale + row) * (peak * (1.0 / 127.0)))


def requantize(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Turn weight [N, K] float8_e4m3fn into INT8 with a scale per row, in place; see requantize.requantize.

    Rows are dense; scale is fp32 [N, 1] and contiguous.
    """
    codes = weight.view(torch.int8)
    # Without fusion: products are rounded before they are rounded to codes, as torch does it. Ties are frequent here.
    _requantize_kernel[len(codes),](
        codes, scale, codes.stride(0), K=codes.shape[1], EACH=_EACH, num_warps=4, enable_fp_fusion=False
    )
    return codes
