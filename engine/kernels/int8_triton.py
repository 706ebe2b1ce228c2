"""INT8 matrix multiplication in Triton, with the scales and the bias applied before the result leaves the registers.

torch._int_mm writes its int32 product to memory, which is four times the traffic of the bf16 result.

Imports Triton: import this module only when it is to be used.
"""

# Kernels are Triton's language, not Python's: untyped, and sizes in capitals.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# ruff: noqa: N803

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
import triton
import triton.language as tl

Row = TypeVar("Row")


class Config(NamedTuple):
    """Tile sizes and launch options."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    group_m: int = 8


# Triton from 3.8 on spills 692 bytes a thread for the largest tile.
_VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
_COMMON = Config(128, 128, 64, 8, 3)
# By compute capability: the first row that the card reaches. Tiles fit the card's shared memory: 99 KiB on 8.6, 8.9 and
# 12.0, 163 KiB on 8.0, 227 KiB on 9.0 and 10.0.
_CONFIGS: tuple[tuple[tuple[int, int], Config], ...] = (
    ((12, 0), _COMMON),
    ((9, 0), Config(128, 128, 128, 4, 3)),
    ((8, 6), _COMMON),
    ((8, 0), Config(128, 256, 64, 8, 3) if _VERSION < (3, 8) else _COMMON),
)


@triton.jit(do_not_specialize=["num_rows"])
def _matmul_kernel(
    x, weight, row_scale, column_scale, bias, out, x_stride, weight_stride, out_stride, num_rows,
    N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):  # fmt: skip
    # Tiles in groups of GROUP_M rows, so that those which run at the same time share operands in the L2 cache.
    tile = tl.program_id(0)
    tiles_m = tl.cdiv(num_rows, BLOCK_M)
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    group = tile // (GROUP_M * tiles_n)
    group_size = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    tile_m = group * GROUP_M + (tile % (GROUP_M * tiles_n)) % group_size
    tile_n = (tile % (GROUP_M * tiles_n)) // group_size

    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    # Rows and columns beyond the end repeat earlier ones and are not stored.
    safe_rows = tl.where(rows < num_rows, rows, 0).to(tl.int64)
    safe_columns = tl.where(columns < N, columns, 0).to(tl.int64)
    x_tile = x + safe_rows[:, None] * x_stride + inner[None, :]
    weight_tile = weight + safe_columns[None, :] * weight_stride + inner[:, None]
    sum_type: tl.constexpr = tl.int32 if x.dtype.element_ty == tl.int8 else tl.float32
    product = tl.zeros((BLOCK_M, BLOCK_N), dtype=sum_type)
    for start in range(0, K, BLOCK_K):
        if K % BLOCK_K == 0:
            a = tl.load(x_tile)
            b = tl.load(weight_tile)
        else:
            a = tl.load(x_tile, mask=inner[None, :] < K - start, other=0.0)
            b = tl.load(weight_tile, mask=inner[:, None] < K - start, other=0.0)
        product = tl.dot(a, b, product, out_dtype=sum_type)
        x_tile += BLOCK_K
        weight_tile += BLOCK_K

    scale_m = tl.load(row_scale + safe_rows)
    scale_n = tl.load(column_scale + safe_columns)
    offset = tl.load(bias + safe_columns).to(tl.float32)
    result = product.to(tl.float32) * scale_m[:, None] * scale_n[None, :] + offset[None, :]
    target = out + rows.to(tl.int64)[:, None] * out_stride + columns[None, :]
    mask = (rows[:, None] < num_rows) & (columns[None, :] < N)
    tl.store(target, result.to(out.dtype.element_ty), mask=mask)


def int8_matmul(
    x: torch.Tensor,
    row_scale: torch.Tensor,
    weight: torch.Tensor,
    column_scale: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor,
    config: Config | None = None,
) -> None:
    """Write (x @ weight^T) * row_scale * column_scale^T + bias to out.

    Args:
        x: int8 [M, K]; rows are dense.
        row_scale: fp32 [M, 1].
        weight: int8 [N, K]; rows are dense.
        column_scale: fp32 [N, 1].
        bias: [N].
        out: bf16 [M, N]; rows are dense.
        config: the table's for this card when None.
    """
    multiply(x, row_scale, weight, column_scale, bias, out, config or config_for(_CONFIGS, x.device))


def multiply(
    x: torch.Tensor,
    row_scale: torch.Tensor,
    weight: torch.Tensor,
    column_scale: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor,
    chosen: Config,
) -> None:
    """Launch the kernel on INT8, added up in INT32, or on FP8, added up in FP32; see int8_matmul."""
    rows, columns = len(x), len(weight)
    grid = (triton.cdiv(rows, chosen.block_m) * triton.cdiv(columns, chosen.block_n),)
    _matmul_kernel[grid](
        x, weight, row_scale, column_scale, bias, out, x.stride(0), weight.stride(0), out.stride(0), rows,
        N=columns, K=x.shape[1], BLOCK_M=chosen.block_m, BLOCK_N=chosen.block_n, BLOCK_K=chosen.block_k,
        GROUP_M=chosen.group_m, num_warps=chosen.num_warps, num_stages=chosen.num_stages,
    )  # fmt: skip


def config_for(table: Sequence[tuple[tuple[int, int], Row]], device: torch.device) -> Row:
    """Return the first row of a table that the card reaches."""
    capability = torch.cuda.get_device_capability(device)
    return next(config for lowest, config in table if capability >= lowest)
