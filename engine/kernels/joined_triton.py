"""The functions of joined.py as Triton kernels.

Imports Triton: import this module only when it is to be used.
"""

# Kernels are Triton's language, not Python's: untyped, and sizes in capitals.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .fp8_rounding import to_fp8
from .joined import REST
from .quantize import LARGEST

_LARGEST = LARGEST[torch.float8_e4m3fn]
_SMALL = tl.constexpr(1 / _LARGEST)
_REST = tl.constexpr(REST)
# Rows of x that a program takes, and columns that it moves at a time: of those rows, where they shrink, and of weights.
_ROWS, _FEW_COLUMNS, _COLUMNS = 16, 128, 2048
# Columns that are left, which it fills with zeros at a time.
_FILL = 64


@triton.jit
def _exponent(values):
    """Return the exponent of positive fp32 values: 0 of 1 to 2."""
    return (values.to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def _power(exponent):
    """Return 2 to the exponent, from -126 to 127."""
    return ((tl.minimum(tl.maximum(exponent, -126), 127) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _write(place, main, second, third, is_here, rank):
    tl.store(place, main, mask=is_here)
    tl.store(place + rank, second, mask=is_here)
    tl.store(place + 2 * rank, third, mask=is_here)


@triton.jit(do_not_specialize=["num_rows"])
def _inputs_kernel(
    hidden, balance, x, scale, out, hidden_stride, stride, num_rows, rank, room,
    K: tl.constexpr, INNER: tl.constexpr, FILL: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inner = tl.arange(0, INNER)
    is_row = rows < num_rows
    is_here = is_row[:, None] & (inner < rank)[None, :]
    factors = tl.load(balance + inner, mask=inner < rank, other=1.0)
    row_scale = tl.load(scale + rows, mask=is_row, other=1.0)
    values = tl.load(hidden + rows[:, None] * hidden_stride + inner[None, :], mask=is_here, other=0.0).to(tl.float32)
    values = values / row_scale[:, None] * factors[None, :]
    exponent = tl.maximum(_exponent(tl.max(tl.abs(values), axis=1) * _SMALL) + 1, 0)
    if tl.max(exponent, axis=0) > 0:
        shrink = _power(-exponent)
        values *= shrink[:, None]
        tl.store(scale + rows, row_scale / shrink, mask=is_row)
        for start in range(0, K, COLUMNS):
            columns = start + tl.arange(0, COLUMNS)
            place = x + rows[:, None] * stride + columns[None, :]
            is_x = is_row[:, None] & (columns < K)[None, :]
            some = tl.load(place, mask=is_x, other=0.0).to(tl.float32)
            tl.store(place, to_fp8(some * shrink[:, None]), mask=is_x)
    main = to_fp8(values)
    rest = to_fp8((values - main.to(tl.float32)) * _REST)
    place = out + rows[:, None] * stride + inner[None, :]
    _write(place, main, rest, main, is_here, rank)
    zeros = tl.zeros([ROWS, FILL], tl.float32).to(out.dtype.element_ty)
    for start in range(3 * rank, room, FILL):
        more = start + tl.arange(0, FILL)
        tl.store(out + rows[:, None] * stride + more[None, :], zeros, mask=is_row[:, None] & (more < room)[None, :])


@triton.jit
def _weight_kernel(
    up, balance, weight, scale, out, out_scale, up_stride, weight_stride, out_stride, rank, room,
    K: tl.constexpr, INNER: tl.constexpr, FILL: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    inner = tl.arange(0, INNER)
    is_here = inner < rank
    factors = tl.load(balance + inner, mask=inner < rank, other=1.0)
    row_scale = tl.load(scale + row)
    values = tl.load(up + row * up_stride + inner, mask=is_here, other=0.0).to(tl.float32) / row_scale / factors
    exponent = tl.maximum(_exponent(tl.max(tl.abs(values), axis=0) * _SMALL) + 1, 0)
    shrink = _power(-exponent)
    values *= shrink
    tl.store(out_scale + row, row_scale / shrink)
    main = to_fp8(values)
    part = to_fp8(main.to(tl.float32) * (1 / _REST))
    rest = to_fp8(values - main.to(tl.float32))
    place = out + row * out_stride
    _write(place + inner, main, part, rest, is_here, rank)
    zeros = tl.zeros([FILL], tl.float32).to(out.dtype.element_ty)
    for start in range(3 * rank, room, FILL):
        more = start + tl.arange(0, FILL)
        tl.store(place + more, zeros, mask=more < room)
    for start in range(0, K, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        some = tl.load(weight + row * weight_stride + columns, mask=columns < K, other=0.0)
        if exponent > 0:
            some = to_fp8(some.to(tl.float32) * shrink)
        tl.store(place + room + columns, some, mask=columns < K)


def join_inputs(
    hidden: torch.Tensor, balance: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, out: torch.Tensor
) -> None:
    """Write the columns of a branch beside its input; see Ops.join_inputs."""
    _inputs_kernel[(triton.cdiv(len(x), _ROWS),)](
        hidden, balance, x, scale, out, hidden.stride(0), x.stride(0), len(x),
        **_sizes(hidden, x, out.shape[1]), COLUMNS=_FEW_COLUMNS, ROWS=_ROWS, num_warps=4,
    )  # fmt: skip


def join_weight(
    up: torch.Tensor,
    balance: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    out: torch.Tensor,
    out_scale: torch.Tensor,
) -> None:
    """Write a layer's weight with the columns of a branch before it; see Ops.join_weight."""
    room = out.shape[1] - weight.shape[1]
    _weight_kernel[(len(weight),)](
        up, balance, weight, scale, out, out_scale, up.stride(0), weight.stride(0), out.stride(0),
        **_sizes(up, weight, room), COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip


def _sizes(branch: torch.Tensor, wide: torch.Tensor, room: int) -> dict[str, int]:
    """Return the sizes: of the branch, of the rows that it is put beside, of the room for it."""
    rank = branch.shape[1]
    inner = max(16, triton.next_power_of_2(rank))
    return {"rank": rank, "room": room, "K": wide.shape[1], "INNER": inner, "FILL": _FILL}
