"""FP8 matrix multiplication through torch._scaled_mm with one scale a tensor, which every card with FP8 has.

cuBLASLt runs it on compute capability 8.9 and newer, on Linux since torch 2.3 and on Windows since torch 2.4; the form
with a scale per row is missing on Windows and in older versions, see fp8_triton.py. Both scales are one here: the
product of the codes, at most 448 * 448 * K, is far inside BF16's range, and rows and columns get their scales after it.
Beside the form with a scale per row that rounds the result to BF16 once more, in plain torch twice.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

ApplyScales = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""out [M, N] BF16, row_scale fp32 [M, 1], column_scale fp32 [N], bias [N]: out * row_scale * column_scale + bias."""

# Fewer rows are filled up: cuBLASLt has no kernel for some long weights and one row.
_MIN_ROWS = 32


def apply_scales(out: torch.Tensor, row_scale: torch.Tensor, column_scale: torch.Tensor, bias: torch.Tensor) -> None:
    """Turn out [M, N] BF16 into out * row_scale * column_scale^T + bias in place, in plain torch, two passes.

    It takes no memory. row_scale is fp32 [M, 1], column_scale fp32 [N] or [N, 1], bias [N].
    """
    out.mul_(row_scale)
    torch.addcmul(bias, out, column_scale.flatten(), out=out)


def tensor_matmul(
    x: torch.Tensor,
    row_scale: torch.Tensor,
    weight: torch.Tensor,
    column_scale: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor,
    scale: ApplyScales = apply_scales,
) -> None:
    """Write (x @ weight^T) * row_scale * column_scale^T + bias to out.

    Args:
        x: float8_e4m3fn [M, K], contiguous; K is a multiple of 16.
        row_scale: fp32 [M, 1].
        weight: float8_e4m3fn [N, K], contiguous; N is a multiple of 16.
        column_scale: fp32 [N, 1].
        bias: [N].
        out: bf16 [M, N], contiguous.
        scale: this module's apply_scales or, where Triton is, fp8_triton's.
    """
    rows = len(x)
    if rows < _MIN_ROWS:
        missing = _MIN_ROWS - rows
        padded = out.new_empty(_MIN_ROWS, out.shape[1])
        x = functional.pad(x.view(torch.int8), (0, 0, 0, missing)).view(x.dtype)
        row_scale = functional.pad(row_scale, (0, 0, 0, missing))
        tensor_matmul(x, row_scale, weight, column_scale, bias, padded, scale)
        out.copy_(padded[:rows])
        return
    one = torch.ones((), device=x.device)
    torch._scaled_mm(x, weight.t(), scale_a=one, scale_b=one, out_dtype=out.dtype, use_fast_accum=True, out=out)
    scale(out, row_scale, column_scale.flatten(), bias)
