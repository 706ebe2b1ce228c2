"""SageAttention 2's kernel for Hopper behind a preparation of our own: an eighth of the memory, a quarter of the time.

SageAttention copies what it quantises, pads V in another copy and transposes it in a third. Here q and k are
quantised in place, V is quantised while it is transposed, and the result takes V's place. k is smoothed as there (its
mean over the tokens subtracted), in fp32.
Source of the layouts: SageAttention 2.2 csrc/qattn/qk_int_sv_f8_cuda_sm90.cu, csrc/fused/fused.cu.

Imports Triton: import this module only when it is to be used.
"""

# Kernels are in Triton's language: untyped, and sizes in capitals.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# ruff: noqa: N803

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

# Tokens of a program of Sage's kernel: queries, keys. Keys are padded to a multiple.
_QUERIES, _KEYS = 64, 128
# What a warp's and a block's tokens share scales in (Sage's "per thread"): 32 a block of queries, 4 a block of keys.
_QUERY_SCALES, _KEY_SCALES, _PER_THREAD = 32, 4, 3
# Rows and columns of a program that looks at columns.
_STATISTICS_ROWS, _STATISTICS_COLUMNS = 256, 256
_FP8_LARGEST = 448.0
# Adding this to a float rounds it half to even and leaves the integer in the low bits.
_ROUNDER = tl.constexpr(12582912.0)


@triton.jit(do_not_specialize=["num_rows"])
def _statistics_kernel(
    k, v, sums, peaks, k_stride, v_stride, num_rows,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Sum k's columns, and find the largest magnitude of v's, over ROWS rows."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((STEP, COLUMNS), dtype=tl.float32)
    peak = tl.zeros((STEP, COLUMNS), dtype=tl.float32)
    for start in range(0, ROWS, STEP):
        rows = tl.program_id(0).to(tl.int64) * ROWS + start + tl.arange(0, STEP)
        mask = (rows[:, None] < num_rows) & (columns[None, :] < WIDTH)
        total += tl.load(k + rows[:, None] * k_stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        values = tl.load(v + rows[:, None] * v_stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        peak = tl.maximum(peak, tl.abs(values))
    place = tl.program_id(0) * WIDTH + columns
    tl.store(sums + place, tl.sum(total, axis=0), mask=columns < WIDTH)
    tl.store(peaks + place, tl.max(peak, axis=0), mask=columns < WIDTH)


@triton.jit
def _quantise_groups(x, codes, mean, scales, tokens, x_stride, num_rows, HEAD: tl.constexpr, SMOOTH: tl.constexpr):
    """Quantise the rows `tokens` [groups, size of a group], a scale per group.

    codes is the same memory as x: a group's rows are read before its scale is known, and written after.
    """
    columns = tl.arange(0, HEAD)[None, None, :]
    rows = tokens.to(tl.int64)[:, :, None]
    mask = rows < num_rows
    values = tl.load(x + rows * x_stride + columns, mask=mask, other=0.0).to(tl.float32)
    if SMOOTH:
        values = tl.where(mask, values - tl.load(mean + columns), 0.0)
    largest = tl.maximum(tl.max(tl.max(tl.abs(values), axis=2), axis=1), 1e-12)
    tl.store(scales, largest * (1.0 / 127.0))
    factor = tl.div_rn(largest * 0.0 + 127.0, largest)
    rounded = (values * factor[:, None, None] + _ROUNDER).to(tl.int32, bitcast=True).to(tl.int8)
    tl.store(codes + rows * (2 * x_stride) + columns, rounded, mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def _queries_kernel(q, codes, scales, q_stride, num_rows, HEAD: tl.constexpr, BLOCK: tl.constexpr):
    """Rows r and r + 8 of 16 share a scale."""
    block, head = tl.program_id(0), tl.program_id(1)
    groups = tl.arange(0, BLOCK // 2)
    tokens = block * BLOCK + (groups // 8 * 16 + groups % 8)[:, None] + 8 * tl.arange(0, 2)[None, :]
    place = scales + (head * tl.num_programs(0) + block) * (BLOCK // 2) + groups
    _quantise_groups(q + head * HEAD, codes + head * HEAD * 2, q, place, tokens, q_stride, num_rows, HEAD, False)


@triton.jit(do_not_specialize=["num_rows"])
def _keys_kernel(k, codes, mean, scales, k_stride, num_rows, HEAD: tl.constexpr, BLOCK: tl.constexpr):
    """Of every 8 rows, neighbours 2t and 2t + 1 belong to scale t of the block."""
    block, head = tl.program_id(0), tl.program_id(1)
    groups, members = tl.arange(0, 4), tl.arange(0, BLOCK // 4)
    tokens = block * BLOCK + 2 * groups[:, None] + (members // 2 * 8 + members % 2)[None, :]
    place = scales + (head * tl.num_programs(0) + block) * 4 + groups
    start = head * HEAD
    _quantise_groups(k + start, codes + 2 * start, mean + start, place, tokens, k_stride, num_rows, HEAD, True)


@triton.jit(do_not_specialize=["num_rows"])
def _values_kernel(v, peaks, out, v_stride, num_rows, HEAD: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr):
    """Transpose a block of a head, scale it and put the tokens of every 16 in the order of the FP8 matmul's operand."""
    head = tl.program_id(1)
    columns = head * HEAD + tl.arange(0, HEAD)
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places % 16
    tokens = (places - inside + inside // 2 % 2 * 8 + inside // 4 * 2 + inside % 2).to(tl.int64)
    values = tl.load(v + tokens[:, None] * v_stride + columns[None, :], mask=tokens[:, None] < num_rows, other=0.0)
    factor = LARGEST / tl.load(peaks + columns)
    codes = (values.to(tl.float32) * factor[None, :]).to(out.dtype.element_ty)
    length = tl.num_programs(0) * BLOCK
    tl.store(out + columns.to(tl.int64)[:, None] * length + places[None, :], tl.trans(codes))


def can_attend(q: torch.Tensor) -> bool:
    """Tell whether q [1, N, H, 128] has the form that `attend` takes; offsets are 32-bit in Sage's kernel."""
    return q.shape[0] == 1 and q.shape[3] == 128 and q.stride(2) == 128 and 2 * q.shape[1] * q.stride(1) < 2**31


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attend from q to k and v, [1, N, H, 128] BF16; heads lie side by side. Overwrites all three, returns v."""
    from sageattention import _qattn_sm90

    width = v.shape[2] * v.shape[3]
    mean, peaks = column_statistics(k[0].flatten(1), v[0].flatten(1))
    query_scales = quantise_queries(q[0])
    key_scales = quantise_keys(k[0], mean)
    values = transpose_values(v[0], peaks, torch.float8_e4m3fn)
    _qattn_sm90.qk_int8_sv_f8_accum_f32_fuse_v_scale_attn_inst_buf(
        _codes(q[0])[None],
        _codes(k[0])[None],
        values.transpose(0, 1)[None],
        v,
        query_scales[None],
        key_scales[None],
        (peaks / _FP8_LARGEST).view(1, -1, width // v.shape[2]),
        0,
        0,
        _PER_THREAD,
        1 / math.sqrt(v.shape[3]),
        0,
    )
    return v


def column_statistics(k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean of k's and the largest magnitude (no less than 1e-12) of v's columns, [N, D] -> fp32 [D]."""
    rows, width = k.shape
    grid = (triton.cdiv(rows, _STATISTICS_ROWS), triton.cdiv(width, _STATISTICS_COLUMNS))
    sums, peaks = torch.empty(2, grid[0], width, dtype=torch.float32, device=k.device)
    _statistics_kernel[grid](
        k, v, sums, peaks, k.stride(0), v.stride(0), rows,
        WIDTH=width, ROWS=_STATISTICS_ROWS, COLUMNS=_STATISTICS_COLUMNS, STEP=16,
    )  # fmt: skip
    return sums.sum(0).div_(rows), peaks.amax(0).clamp_(min=1e-12)


def quantise_queries(q: torch.Tensor) -> torch.Tensor:
    """Put q [N, H, 128] in 8 bits, in the first half of its own memory; returns the scales fp32 [H, 32 a block]."""
    rows, heads, head_dim = q.shape
    blocks = triton.cdiv(rows, _QUERIES)
    scales = q.new_empty(heads, blocks * _QUERY_SCALES, dtype=torch.float32)
    _queries_kernel[blocks, heads](q, _codes(q), scales, q.stride(0), rows, HEAD=head_dim, BLOCK=_QUERIES)
    return scales


def quantise_keys(k: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Subtract mean [D] from k [N, H, 128] and put it in 8 bits as `quantise_queries` does; scales [H, 4 a block]."""
    rows, heads, head_dim = k.shape
    blocks = triton.cdiv(rows, _KEYS)
    scales = k.new_empty(heads, blocks * _KEY_SCALES, dtype=torch.float32)
    _keys_kernel[blocks, heads](k, _codes(k), mean, scales, k.stride(0), rows, HEAD=head_dim, BLOCK=_KEYS, num_warps=8)
    return scales


def transpose_values(v: torch.Tensor, peaks: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return v [N, H, 128] * 448 / peaks [D] as [H, 128, tokens, padded to whole blocks and in order of their use]."""
    rows, heads, head_dim = v.shape
    blocks = triton.cdiv(rows, _KEYS)
    out = v.new_empty(heads, head_dim, blocks * _KEYS, dtype=dtype)
    _values_kernel[blocks, heads](
        v, peaks, out, v.stride(0), rows, HEAD=head_dim, BLOCK=_KEYS, LARGEST=_FP8_LARGEST, num_warps=8
    )
    return out


def _codes(x: torch.Tensor) -> torch.Tensor:
    """Return where the 8-bit codes of x [N, H, 128] BF16 go: the first half of every head's memory."""
    return x.view(torch.int8)[..., : x.shape[-1]]
