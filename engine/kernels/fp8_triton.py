"""FP8 in Triton: a matrix multiplication with its scales and bias, and the scales and bias alone.

For cards whose torch has no torch._scaled_mm with a scale per row: on Windows every one (PyTorch's
aten/src/ATen/native/cuda/RowwiseScaledMM.cu is compiled without it under _WIN32), compute capability 8.9 before torch
2.7 (pytorch/pytorch#144348, #145676), 12.0 before torch 2.8 (pytorch/pytorch#155991).

Imports Triton: import this module only when it is to be used.
"""

# Kernels are Triton's language, not Python's: untyped, and sizes in capitals.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .int8_triton import Config, config_for, multiply

# By compute capability: the first row that the card reaches. Tiles fit the card's shared memory: 99 KiB on 8.9 and
# 12.0, 227 KiB on 9.0 and 10.0. Those of 8.9 and 12.0 leave room for two programs a multiprocessor.
CONFIGS: tuple[tuple[tuple[int, int], Config], ...] = (
    ((12, 0), Config(128, 128, 64, 8, 3)),
    ((9, 0), Config(128, 256, 128, 8, 4, 12)),
    ((8, 9), Config(128, 128, 64, 8, 3)),
)
# Rows and columns of a program of `apply_scales`.
_ROWS, _COLUMNS = 8, 512


def fp8_matmul(
    x: torch.Tensor,
    row_scale: torch.Tensor,
    weight: torch.Tensor,
    column_scale: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor,
    config: Config | None = None,
) -> None:
    """Write (x @ weight^T) * row_scale * column_scale^T + bias to out.

    It adds up in the tensor core, as torch._scaled_mm does with use_fast_accum. For compute capability 8.9 and newer.

    Args:
        x: float8_e4m3fn [M, K]; rows are dense.
        row_scale: fp32 [M, 1].
        weight: float8_e4m3fn [N, K]; rows are dense.
        column_scale: fp32 [N, 1].
        bias: [N].
        out: bf16 [M, N]; rows are dense.
        config: the table's for this card when None.
    """
    multiply(x, row_scale, weight, column_scale, bias, out, config or config_for(CONFIGS, x.device))


@triton.jit(do_not_specialize=["num_rows"])
def _scales_kernel(
    out, row_scale, column_scale, bias, stride, num_rows,
    N: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Scale ROWS x COLUMNS values in place and add the bias; grid: runs of rows, of columns."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_here = (rows < num_rows)[:, None] & (columns < N)[None, :]
    place = out + rows[:, None] * stride + columns[None, :]
    values = tl.load(place, mask=is_here, other=0.0).to(tl.float32)
    values *= tl.load(row_scale + rows, mask=rows < num_rows, other=0.0)[:, None]
    values *= tl.load(column_scale + columns, mask=columns < N, other=0.0)[None, :]
    values += tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    tl.store(place, values.to(out.dtype.element_ty), mask=is_here)


def apply_scales(out: torch.Tensor, row_scale: torch.Tensor, column_scale: torch.Tensor, bias: torch.Tensor) -> None:
    """Turn out [M, N] BF16 into out * row_scale * column_scale^T + bias in place, in one pass over memory.

    See fp8_tensor.apply_scales.
    """
    grid = (triton.cdiv(len(out), _ROWS), triton.cdiv(out.shape[1], _COLUMNS))
    _scales_kernel[grid](
        out, row_scale, column_scale, bias, out.stride(0), len(out),
        N=out.shape[1], ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip
