"""FP32 to FP8 as torch rounds it, in Triton kernels: once, to the nearest, ties to even, at most 448.

Below compute capability 9.0 Triton's own conversion goes through FP16 and so rounds twice: about 0.4 % of normal values
become the neighbour of the nearest code there. The instruction used here exists from compute capability 8.9 on.

Imports Triton: import this module only when it is to be used.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def to_fp8(values):
    """Return fp32 values as float8e4nv; larger ones than 448 become 448. The tensor has a multiple of 4 values."""
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b16 low, high;
        cvt.rn.satfinite.e4m3x2.f32 low, $2, $1;
        cvt.rn.satfinite.e4m3x2.f32 high, $4, $3;
        mov.b32 $0, {low, high};
        }
        """,
        "=r,r,r,r,r",
        [values],
        dtype=tl.float8e4nv,
        is_pure=True,
        pack=4,
    )
