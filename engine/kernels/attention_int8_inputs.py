"""Inputs of the attention that computes in INT8 alone, from the outputs of the linears, in their memory where they fit.

As attention_inputs.py with three differences, each for accuracy. q and k of every head are turned by one Hadamard
matrix before they go to 8 bits: scores stay what they are, and a channel that is far larger than the others no longer
decides the step of all. v goes to INT8 less its mean over the tokens, which the attention adds again: weights sum to
one. And every query has a scale of its own.

Source of the ideas: QuaRot (arXiv 2404.00456) for the rotation, SageAttention (arXiv 2410.02367) for INT8 q and k and
the mean of k, SageAttention 2 (arXiv 2411.10958) for the mean of v.

For compute capability 8.0, 8.6, 8.9 and 12.0; runs on 9.0 too.
Imports Triton: import this module only when it is to be used.
"""

# Kernels are in Triton's language: untyped, and sizes in capitals.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# ruff: noqa: N803

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .attention_inputs import (
    KEY_BLOCK,
    codes_of,
    load_angles,
    mean_of_sums,
    rotate_pair,
    separate_factors,
    sum_sample,
    unpack,
)

# Rows and columns of a program that finds the spread of v, and rows of a step.
_SPREAD_ROWS, _SPREAD_COLUMNS, _SPREAD_STEP = 256, 512, 8
# Heads that a program takes one after the other.
_EACH = 8
# Tokens that share a scale of k. Two such runs are a block of keys, and values are padded to whole blocks.
KEYS_A_SCALE = KEY_BLOCK // 2
_NUM_WARPS = {"codes": 4, "spread": 4, "values": 4}
# Adding this to a float rounds it half to even and leaves the integer in the low bits.
_ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def _hadamard(SIZE: tl.constexpr):
    """Return Sylvester's matrix [SIZE, SIZE] of plus and minus one: minus where row and column share an odd number of
    ones. SIZE is at most 256.
    """
    shared = tl.arange(0, SIZE)[:, None] & tl.arange(0, SIZE)[None, :]
    shared = shared ^ (shared >> 4)
    shared = shared ^ (shared >> 2)
    shared = shared ^ (shared >> 1)
    return (1 - 2 * (shared & 1)).to(tl.float32)


@triton.jit
def _rotate(x, weight, mean, factor, cosines, sines, is_row, pair, places, row_words, IS_KEY: tl.constexpr):
    """Return sums and differences of pairs of columns, normalized, rotated and, of keys, less their mean."""
    first, second = unpack(tl.load(x + places * row_words + pair, mask=is_row, other=0))
    first_weight, second_weight = unpack(tl.load(weight + pair))
    turned, second = rotate_pair(first * factor * first_weight, second * factor * second_weight, cosines, sines)
    if IS_KEY:
        turned = tl.where(is_row, turned - tl.load(mean + 2 * pair), 0.0)
        second = tl.where(is_row, second - tl.load(mean + 2 * pair + 1), 0.0)
    return turned + second, turned - second


@triton.jit
def _store_codes(codes, first, second, ratio, is_row):
    """Store pairs of values, rounded half to even to 8 bits, as words of 16."""
    low = (first * ratio + _ROUNDER).to(tl.int32, bitcast=True)
    high = (second * ratio + _ROUNDER).to(tl.int32, bitcast=True)
    tl.store(codes, ((low & 0xFF) | (high << 8)).to(tl.int16), mask=is_row)


@triton.jit(do_not_specialize=["num_rows"])
def _codes_kernel(
    x, codes, factors, mean, weight, cos, sin, scales, unit, row_words, num_rows,
    HEADS: tl.constexpr, EACH: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, IS_KEY: tl.constexpr,
):  # fmt: skip
    """Normalize, rotate, turn and quantize BLOCK rows, EACH heads one after the other; grid: blocks, groups of heads.

    A pair of columns is one word of x. Sylvester's matrix over a head is the product of one over its halves, one over
    HALF / 2 words and one over the pair; the first and the last are sums and differences. With IS_KEY mean is
    subtracted and the rows share a scale; else each has its own. codes is the same memory as x: a head's rows are read
    before its scale is known, and written after.
    """
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = (rows < num_rows)[:, None]
    places = rows.to(tl.int64)[:, None]
    left = tl.arange(0, HALF // 2)[None, :]
    right = left + HALF // 2
    factor = tl.load(factors + places, mask=is_row, other=0.0)
    left_cos, right_cos = load_angles(cos, places, is_row, left, HALF), load_angles(cos, places, is_row, right, HALF)
    left_sin, right_sin = load_angles(sin, places, is_row, left, HALF), load_angles(sin, places, is_row, right, HALF)
    turn = _hadamard(HALF // 2)
    begin = tl.program_id(1) * EACH
    for head in range(begin, tl.minimum(begin + EACH, HEADS)):
        pair = head * HALF + left
        sums, differences = _rotate(
            x, weight, mean, factor, left_cos, left_sin, is_row, pair, places, row_words, IS_KEY
        )  # fmt: skip
        pair += HALF // 2
        more_sums, more_differences = _rotate(
            x, weight, mean, factor, right_cos, right_sin, is_row, pair, places, row_words, IS_KEY
        )  # fmt: skip
        first, second = tl.dot(sums + more_sums, turn), tl.dot(differences + more_differences, turn)
        third, fourth = tl.dot(sums - more_sums, turn), tl.dot(differences - more_differences, turn)
        largest = tl.maximum(tl.maximum(tl.abs(first), tl.abs(second)), tl.maximum(tl.abs(third), tl.abs(fourth)))
        largest = tl.max(largest, axis=1)
        if IS_KEY:
            largest = tl.maximum(tl.max(largest, axis=0), 1e-12)
            tl.store(scales + head * tl.num_programs(0) + tl.program_id(0), largest * unit)
            ratio = tl.div_rn(largest * 0.0 + 127.0, largest)
        else:
            largest = tl.maximum(largest, 1e-12)
            tl.store(scales + head * num_rows + rows, largest * unit, mask=rows < num_rows)
            ratio = tl.div_rn(largest * 0.0 + 127.0, largest)[:, None]
        target = codes + places * (2 * row_words) + head * (2 * HALF) + left
        _store_codes(target, first, second, ratio, is_row)
        _store_codes(target + HALF // 2, third, fourth, ratio, is_row)


@triton.jit(do_not_specialize=["num_rows"])
def _spread_kernel(
    v, spread, v_stride, num_rows,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Find the smallest, the largest and the sum of the columns of ROWS rows; grid: runs of rows, of columns."""
    columns = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    smallest = tl.full((STEP, COLUMNS), float("inf"), dtype=tl.float32)
    largest = tl.full((STEP, COLUMNS), float("-inf"), dtype=tl.float32)
    total = tl.zeros((STEP, COLUMNS), dtype=tl.float32)
    for step in range(0, ROWS, STEP):
        rows = (tl.program_id(0).to(tl.int64) * ROWS + step + tl.arange(0, STEP))[:, None]
        is_here = (rows < num_rows) & (columns < WIDTH)
        values = tl.load(v + rows * v_stride + columns, mask=is_here, other=0.0).to(tl.float32)
        smallest = tl.minimum(smallest, tl.where(is_here, values, float("inf")))
        largest = tl.maximum(largest, tl.where(is_here, values, float("-inf")))
        total += values
    place = spread + tl.program_id(0) * (3 * WIDTH) + columns
    is_column = columns < WIDTH
    tl.store(place, tl.min(smallest, axis=0)[None, :], mask=is_column)
    tl.store(place + WIDTH, tl.max(largest, axis=0)[None, :], mask=is_column)
    tl.store(place + 2 * WIDTH, tl.sum(total, axis=0)[None, :], mask=is_column)


@triton.jit(do_not_specialize=["num_rows"])
def _values_kernel(v, means, steps, out, v_stride, num_rows, HEAD: tl.constexpr, BLOCK: tl.constexpr):
    """Transpose a block of a head, less its mean, in steps; grid: blocks, heads. Prepared.values has the order."""
    head = tl.program_id(1)
    columns = head * HEAD + tl.arange(0, HEAD)
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places % 16
    tokens = (places - inside + inside // 2 % 2 * 8 + inside // 4 * 2 + inside % 2).to(tl.int64)[:, None]
    values = tl.load(v + tokens * v_stride + columns[None, :], mask=tokens < num_rows, other=0.0).to(tl.float32)
    apart = (values - tl.load(means + columns)[None, :]) / tl.load(steps + columns)[None, :]
    codes = (tl.where(tokens < num_rows, apart, 0.0) + _ROUNDER).to(tl.int32, bitcast=True).to(tl.int8)
    length = tl.num_programs(0) * BLOCK
    tl.store(out + columns.to(tl.int64)[:, None] * length + places[None, :], tl.trans(codes))


@dataclass(frozen=True, kw_only=True)
class Int8Prepared:
    """Inputs of an attention in INT8; N tokens, H heads of 128."""

    q: torch.Tensor
    """INT8 [N, H, 128], rows and heads apart: it lies in the first half of each head's memory."""
    k: torch.Tensor
    """The same of k."""
    query_scales: torch.Tensor
    """fp32 [H, N]."""
    key_scales: torch.Tensor
    """fp32 [H, 2 a block of 128 rows]: one for 64 rows; tiny where there is no row."""
    values: torch.Tensor
    """INT8 [H, 128, N rounded up to 128], zero where there is no token: (v - value_means) / value_steps. The tokens are
    in the order of attention_inputs.Prepared.values, for the same reason."""
    value_steps: torch.Tensor
    """fp32 [H * 128]."""
    value_means: torch.Tensor
    """fp32 [H * 128]."""

    def of_heads(self, heads: slice) -> Int8Prepared:
        """Return the inputs of some of the heads."""
        steps, means = (
            part.view(len(self.values), -1)[heads].flatten() for part in (self.value_steps, self.value_means)
        )
        return Int8Prepared(
            q=self.q[:, heads],
            k=self.k[:, heads],
            query_scales=self.query_scales[heads],
            key_scales=self.key_scales[heads],
            values=self.values[heads],
            value_steps=steps,
            value_means=means,
        )


def prepare(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor],
    eps: float,
    rotary: tuple[torch.Tensor, torch.Tensor],
    *,
    factors: torch.Tensor | None = None,
) -> Int8Prepared:
    """Prepare attention from q to k and v, [N, H, 128] BF16 as the linears left them; overwrites q and k.

    New memory: N * H * 128 bytes of values, 4 bytes a row and head of scales, and 12 bytes a column for 256 rows while
    v is looked through.

    Args:
        norms: weights [H * 128] of q's and k's RMS norm over the row, BF16.
        eps: of the norms.
        rotary: cosines and sines, each fp32 [N, 64] and contiguous.
        factors: fp32 [N, 2], what the norms multiply the rows of q and k with, where these are some heads of longer
            rows; see norm_factors.
    """
    rows, heads, _ = k.shape
    of_queries, of_keys = separate_factors(q, k, eps, factors)
    query_scales = q.new_empty(heads, rows, dtype=torch.float32)
    _quantize(q, norms[0], of_queries, None, rotary, query_scales)
    sums, num_summed = sum_sample(k, norms[1], of_keys, rotary)
    key_scales = k.new_empty(heads, triton.cdiv(rows, KEY_BLOCK) * 2, dtype=torch.float32)
    _quantize(k, norms[1], of_keys, mean_of_sums(sums, num_summed), rotary, key_scales)
    means, steps = find_spread(v)
    return Int8Prepared(
        q=codes_of(q),
        k=codes_of(k),
        query_scales=query_scales,
        key_scales=key_scales,
        values=transpose_values(v, means, steps),
        value_steps=steps,
        value_means=means,
    )


def _quantize(
    x: torch.Tensor,
    weight: torch.Tensor,
    factors: torch.Tensor,
    mean: torch.Tensor | None,
    rotary: tuple[torch.Tensor, torch.Tensor],
    scales: torch.Tensor,
) -> None:
    """Put x [N, H, 128] in 8 bits in place, times factors [N] and weight [H * 128], rotated and turned.

    Args:
        mean: of keys, fp32 [H * 128], what is subtracted before x is turned; None for queries.
        scales: fp32, takes [H, runs of 64 rows] of keys, [H, N] of queries.
    """
    rows, heads, head_dim = x.shape
    words = x.view(torch.int32)
    # A row's length stays under the matrix of ones: its root goes into the scale.
    unit = 1 / (127 * math.sqrt(head_dim))
    runs = triton.cdiv(rows, KEYS_A_SCALE) if mean is None else scales.shape[1]
    _codes_kernel[runs, triton.cdiv(heads, _EACH)](
        words, x.view(torch.int16), factors, factors if mean is None else mean, weight.view(torch.int32), *rotary,
        scales, unit, words.stride(0), rows,
        HEADS=heads, EACH=_EACH, HALF=head_dim // 2, BLOCK=KEYS_A_SCALE, IS_KEY=mean is not None,
        num_warps=_NUM_WARPS["codes"],
    )  # fmt: skip


def find_spread(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean of each column of v [N, H, 128], and its largest distance from it / 127, fp32 [H * 128]."""
    rows, width = len(v), v.shape[1] * v.shape[2]
    grid = (triton.cdiv(rows, _SPREAD_ROWS), triton.cdiv(width, _SPREAD_COLUMNS))
    spread = v.new_empty(grid[0], 3, width, dtype=torch.float32)
    _spread_kernel[grid](
        v, spread, v.stride(0), rows,
        WIDTH=width, ROWS=_SPREAD_ROWS, COLUMNS=_SPREAD_COLUMNS, STEP=_SPREAD_STEP, num_warps=_NUM_WARPS["spread"],
    )  # fmt: skip
    means = mean_of_sums(spread[:, 2].contiguous(), rows)
    distance = torch.maximum(spread[:, 1].amax(0) - means, means - spread[:, 0].amin(0))
    return means, distance.clamp_(min=1e-12) / 127


def transpose_values(v: torch.Tensor, means: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Return (v [N, H, 128] - means) / steps in INT8 as [H, 128, N rounded up to whole blocks of keys]."""
    rows, heads, head_dim = v.shape
    blocks = triton.cdiv(rows, KEY_BLOCK)
    out = v.new_empty(heads, head_dim, blocks * KEY_BLOCK, dtype=torch.int8)
    _values_kernel[blocks, heads](
        v, means, steps, out, v.stride(0), rows, HEAD=head_dim, BLOCK=KEY_BLOCK, num_warps=_NUM_WARPS["values"]
    )
    return out
