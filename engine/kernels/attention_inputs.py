"""Inputs of an attention on 8-bit q, k and v from the outputs of their linears, in few passes over memory.

q and k are normalized over the row, rotated and put in INT8 in their own memory; v goes to FP8, transposed. k is
smoothed as SageAttention does it: about its mean over the tokens is subtracted, which changes a query's scores by one
number and therefore nothing. q is read once, k and v twice; all are written once, in 8 bits.

Two neighbouring columns, which RoPE turns together, are one 32-bit word here; their codes are one of 16 bits.

Imports Triton: import this module only when it is to be used.
"""

# Kernels are in Triton's language: untyped, and sizes in capitals.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# ruff: noqa: N803

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .fp8_rounding import to_fp8

# Tokens of a block of queries and of keys: the last block is filled up, with scales too. Values are padded to whole
# blocks of keys.
QUERY_BLOCK, KEY_BLOCK = 64, 128
# Scales of a head for a block of queries: one for rows r and r + 8 of every 16.
QUERY_SCALES = 32
FP8_LARGEST = 448.0
# Adding this to a float rounds it half to even and leaves the integer in the low bits.
_ROUNDER = tl.constexpr(12582912.0)

# The mean of k comes from so many of every so many rows. Any vector near it serves; the prime number keeps runs from
# falling on the same places of every frame.
SAMPLE_ROWS, SAMPLE_STRIDE = 16, 127

# How the kernels are launched. Heads of a row that are taken at a time, where a program has whole rows. Heads that a
# program takes one after the other, of several rows: they share cosines and sines.
_ROW_HEADS, _SUM_HEADS, _KEY_HEADS = 8, 4, 8
# Rows of a program that finds factors, and words of theirs that it takes at a time.
_FACTOR_ROWS, _FACTOR_WORDS = 2, 512
# Rows and columns of a program that looks for peaks, and rows of a step.
_PEAK_ROWS, _PEAK_COLUMNS, _PEAK_STEP = 128, 512, 8
_NUM_WARPS = {"queries": 4, "factors": 4, "sums": 2, "peaks": 4, "values": 4, "statistics": 4}
# The same of the keys, by scales a block.
_KEY_WARPS = {1: 16, 4: 4}


@triton.jit
def unpack(words):
    """Return the two BF16 of each word in fp32."""
    return (words << 16).to(tl.float32, bitcast=True), (words >> 16 << 16).to(tl.float32, bitcast=True)


@triton.jit
def _codes(first, second):
    """Return pairs of values, rounded half to even to 8 bits, as one of 16 bits."""
    first = (first + _ROUNDER).to(tl.int32, bitcast=True)
    second = (second + _ROUNDER).to(tl.int32, bitcast=True)
    return ((first & 0xFF) | (second << 8)).to(tl.int16)


@triton.jit
def _squares(words):
    first, second = unpack(words)
    return first * first + second * second


@triton.jit
def rotate_pair(first, second, cos, sin):
    """Return a pair of values rotated.

    Each has one product in the fused addition, and says which: left to itself the compiler chooses by what is around,
    and some heads of a row would differ in their last bit from the same heads among all of them.
    """
    return tl.fma(first, cos, -(second * sin)), tl.fma(first, sin, second * cos)


@triton.jit
def _rotate(words, factor, weight, cos, sin):
    """Return the pairs of words, times factor and their weights, rotated."""
    first, second = unpack(words)
    first_weight, second_weight = unpack(weight)
    return rotate_pair(first * factor * first_weight, second * factor * second_weight, cos, sin)


@triton.jit
def load_angles(table, rows, is_row, columns, HALF: tl.constexpr):
    """Return cosines or sines for the words of a head."""
    return tl.load(table + rows * HALF + columns, mask=is_row, other=0.0)


@triton.jit(do_not_specialize=["num_rows"])
def _queries_kernel(
    q, codes, factors, weight, cos, sin, scales, row_words, num_rows,
    HEADS: tl.constexpr, EACH: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Normalize, rotate and quantize two rows that share scales, EACH heads one after the other.

    codes is the same memory as q: a head's part of both rows is read before its scale is known, and written after.
    """
    group = tl.program_id(0)
    rows = (group // 8 * 16 + group % 8 + 8 * tl.arange(0, 2)).to(tl.int64)[:, None, None]
    is_row = rows < num_rows
    heads = tl.arange(0, EACH)
    pairs = tl.arange(0, HALF)[None, None, :]
    columns = heads[None, :, None] * HALF + pairs
    factor = tl.load(factors + rows, mask=is_row, other=0.0)
    cosines = load_angles(cos, rows, is_row, pairs, HALF)
    sines = load_angles(sin, rows, is_row, pairs, HALF)
    for start in range(0, HEADS, EACH):
        is_head = (start + heads < HEADS)[None, :, None]
        words = tl.load(q + rows * row_words + start * HALF + columns, mask=is_row & is_head, other=0)
        weights = tl.load(weight + start * HALF + columns, mask=is_head, other=0)
        first, second = _rotate(words, factor, weights, cosines, sines)
        largest = tl.max(tl.max(tl.maximum(tl.abs(first), tl.abs(second)), axis=2), axis=0)
        largest = tl.maximum(largest, 1e-12)
        place = (start + heads).to(tl.int64) * tl.num_programs(0) + group
        tl.store(scales + place, largest * (1.0 / 127.0), mask=start + heads < HEADS)
        ratio = tl.div_rn(largest * 0.0 + 127.0, largest)[None, :, None]
        target = codes + rows * (2 * row_words) + (start + heads)[None, :, None] * (2 * HALF) + pairs
        tl.store(target, _codes(first * ratio, second * ratio), mask=is_row & is_head)


@triton.jit(do_not_specialize=["num_rows"])
def _factors_kernel(
    x, factors, eps, row_words, num_rows,
    WORDS: tl.constexpr, EACH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Find the RMS factors of ROWS rows of WORDS, EACH at a time."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    is_row = rows < num_rows
    columns = tl.arange(0, EACH)[None, :]
    squares = tl.zeros((ROWS, EACH), dtype=tl.float32)
    for start in tl.static_range(0, WORDS, EACH):
        is_here = is_row & (start + columns < WORDS)
        squares += _squares(tl.load(x + rows * row_words + start + columns, mask=is_here, other=0))
    factor = tl.rsqrt(tl.sum(squares, axis=1) / (2 * WORDS) + eps)
    tl.store(factors + rows, factor[:, None], mask=is_row)


@triton.jit(do_not_specialize=["num_rows"])
def _sums_kernel(
    k, factors, weight, cos, sin, sums, row_words, num_rows,
    HEADS: tl.constexpr, EACH: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, STRIDE: tl.constexpr,
):  # fmt: skip
    """Sum the columns of ROWS of every STRIDE rows, normalized and rotated, EACH heads one after the other."""
    rows = (tl.program_id(0).to(tl.int64) * STRIDE + tl.arange(0, ROWS))[:, None]
    is_row = rows < num_rows
    factor = tl.load(factors + rows, mask=is_row, other=0.0)
    pairs = tl.arange(0, HALF)
    columns = pairs[None, :]
    start = tl.program_id(1) * EACH
    for head in range(start, tl.minimum(start + EACH, HEADS)):
        first, second = _rotate(
            tl.load(k + rows * row_words + head * HALF + columns, mask=is_row, other=0),
            factor,
            tl.load(weight + head * HALF + columns),
            load_angles(cos, rows, is_row, columns, HALF),
            load_angles(sin, rows, is_row, columns, HALF),
        )
        place = sums + (tl.program_id(0) * HEADS + head) * (2 * HALF) + 2 * pairs
        tl.store(place, tl.sum(first, axis=0))
        tl.store(place + 1, tl.sum(second, axis=0))


@triton.jit(do_not_specialize=["num_rows"])
def _peaks_kernel(
    v, peaks, v_stride, num_rows,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Find the largest magnitude of each column over ROWS rows."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    peak = tl.zeros((STEP, COLUMNS), dtype=tl.float32)
    for start in range(0, ROWS, STEP):
        rows = tl.program_id(0).to(tl.int64) * ROWS + start + tl.arange(0, STEP)
        mask = (rows[:, None] < num_rows) & (columns[None, :] < WIDTH)
        values = tl.load(v + rows[:, None] * v_stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        peak = tl.maximum(peak, tl.abs(values))
    tl.store(peaks + tl.program_id(0) * WIDTH + columns, tl.max(peak, axis=0), mask=columns < WIDTH)


@triton.jit(do_not_specialize=["num_rows", "num_sums", "num_peaks"])
def _statistics_kernel(
    sums, peaks, mean, peak, num_rows, num_sums, num_peaks,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Divide the sum of rows of sums by num_rows, and find the largest of rows of peaks, but no less than 1e-12."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, num_sums, ROWS):
        rows = start + tl.arange(0, ROWS)[:, None]
        total += tl.load(sums + rows * WIDTH + columns[None, :], mask=rows < num_sums, other=0.0)
    tl.store(mean + columns, tl.sum(total, axis=0) / num_rows)
    largest = tl.full((ROWS, COLUMNS), 1e-12, dtype=tl.float32)
    for start in range(0, num_peaks, ROWS):
        rows = start + tl.arange(0, ROWS)[:, None]
        largest = tl.maximum(
            largest, tl.load(peaks + rows * WIDTH + columns[None, :], mask=rows < num_peaks, other=0.0)
        )
    tl.store(peak + columns, tl.max(largest, axis=0))


@triton.jit(do_not_specialize=["num_rows"])
def _keys_kernel(
    k, codes, factors, mean, weight, cos, sin, scales, row_words, num_rows,
    HEADS: tl.constexpr, EACH: tl.constexpr, HALF: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Normalize, rotate, smooth and quantize the rows that share a scale, EACH heads one after the other.

    Of every 2 * GROUPS rows of a block, neighbours 2t and 2t + 1 belong to scale t. codes is the same memory as k: a
    head's rows are read before its scale is known, and written after.
    """
    block = tl.program_id(0) // GROUPS
    members = tl.arange(0, BLOCK // GROUPS)
    tokens = block * BLOCK + tl.program_id(0) % GROUPS * 2 + members // 2 * (2 * GROUPS) + members % 2
    rows = tokens.to(tl.int64)[:, None]
    is_row = rows < num_rows
    factor = tl.load(factors + rows, mask=is_row, other=0.0)
    columns = tl.arange(0, HALF)[None, :]
    start = tl.program_id(1) * EACH
    for head in range(start, tl.minimum(start + EACH, HEADS)):
        place = head * HALF + columns
        first, second = _rotate(
            tl.load(k + rows * row_words + place, mask=is_row, other=0),
            factor,
            tl.load(weight + place),
            load_angles(cos, rows, is_row, columns, HALF),
            load_angles(sin, rows, is_row, columns, HALF),
        )
        first = tl.where(is_row, first - tl.load(mean + 2 * place), 0.0)
        second = tl.where(is_row, second - tl.load(mean + 2 * place + 1), 0.0)
        largest = tl.maximum(tl.max(tl.max(tl.maximum(tl.abs(first), tl.abs(second)), axis=1), axis=0), 1e-12)
        tl.store(scales + head * tl.num_programs(0) + tl.program_id(0), largest * (1.0 / 127.0))
        ratio = tl.div_rn(largest * 0.0 + 127.0, largest)
        pairs = _codes(first * ratio, second * ratio)
        tl.store(codes + rows * (2 * row_words) + head * (2 * HALF) + columns, pairs, mask=is_row)


@triton.jit(do_not_specialize=["num_rows"])
def _values_kernel(
    v, peaks, out, v_stride, num_rows,
    HEAD: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Transpose a block of a head and scale it; see Prepared.values for the order of its tokens."""
    head = tl.program_id(1)
    columns = head * HEAD + tl.arange(0, HEAD)
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places % 16
    tokens = (places - inside + inside // 2 % 2 * 8 + inside // 4 * 2 + inside % 2).to(tl.int64)
    values = tl.load(v + tokens[:, None] * v_stride + columns[None, :], mask=tokens[:, None] < num_rows, other=0.0)
    factor = LARGEST / tl.load(peaks + columns)
    codes = values.to(tl.float32) * factor[None, :]
    if out.dtype.element_ty == tl.float8e4nv:
        codes = to_fp8(codes)
    length = tl.num_programs(0) * BLOCK
    tl.store(out + columns.to(tl.int64)[:, None] * length + places[None, :], tl.trans(codes))


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Inputs of an attention; N tokens, H heads of 128."""

    q: torch.Tensor
    """INT8 [N, H, 128], rows and heads apart: it lies in the first half of each head's memory."""
    k: torch.Tensor
    """The same of k."""
    query_scales: torch.Tensor
    """fp32 [H, 32 a block of 64 rows]; rows r and r + 8 of the 16s share one."""
    key_scales: torch.Tensor
    """fp32 [H, key_groups a block of 128 rows]; of four, neighbours 2t and 2t + 1 of every 8 rows have number t."""
    values: torch.Tensor
    """FP8 [H, 128, N rounded up to 128], zero where there is no token: v * 448 / value_peaks. Of every 16 tokens the
    order is 0 1 8 9 2 3 10 11 4 5 12 13 6 7 14 15: a thread that holds products with keys 2t, 2t + 1 of every 8 has
    what the FP8 product with v takes from it."""
    value_peaks: torch.Tensor
    """fp32 [H * 128]: the largest magnitude of each column of v."""

    def of_heads(self, heads: slice) -> Prepared:
        """Return the inputs of some of the heads."""
        return Prepared(
            q=self.q[:, heads],
            k=self.k[:, heads],
            query_scales=self.query_scales[heads],
            key_scales=self.key_scales[heads],
            values=self.values[heads],
            value_peaks=self.value_peaks.view(len(self.values), -1)[heads].flatten(),
        )


def prepare(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor],
    eps: float,
    rotary: tuple[torch.Tensor, torch.Tensor],
    *,
    key_groups: int,
    factors: torch.Tensor | None = None,
) -> Prepared:
    """Prepare attention from q to k and v, [N, H, 128] BF16 as the linears left them; overwrites q and k.

    Args:
        norms: weights [H * 128] of q's and k's RMS norm over the row, BF16.
        eps: of the norms.
        rotary: cosines and sines, each fp32 [N, 64] and contiguous.
        key_groups: scales of a block of keys, 4 or 1.
        factors: fp32 [N, 2], what the norms multiply the rows of q and k with, where these are some heads of longer
            rows; see norm_factors.
    """
    of_queries, of_keys = separate_factors(q, k, eps, factors)
    query_scales = quantize_queries(q, norms[0], of_queries, rotary)
    sums, num_summed = sum_sample(k, norms[1], of_keys, rotary)
    mean, peaks = column_statistics(sums, num_summed, find_peaks(v))
    key_scales = quantize_keys(k, norms[1], of_keys, mean, rotary, groups=key_groups)
    values = transpose_values(v, peaks, torch.float8_e4m3fn)
    return Prepared(
        q=codes_of(q),
        k=codes_of(k),
        query_scales=query_scales,
        key_scales=key_scales,
        values=values,
        value_peaks=peaks,
    )


def quantize_queries(
    q: torch.Tensor, weight: torch.Tensor, factors: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Normalize q [N, H, 128] by factors [N], rotate it and put it in 8 bits in place.

    Returns:
        The scales fp32 [H, 32 a block].
    """
    rows, heads, head_dim = q.shape
    groups = triton.cdiv(rows, QUERY_BLOCK) * QUERY_SCALES
    scales = q.new_empty(heads, groups, dtype=torch.float32)
    words, codes = _words(q), q.view(torch.int16)
    _queries_kernel[groups,](
        words, codes, factors, _words(weight), *rotary, scales, words.stride(0), rows,
        HEADS=heads, EACH=_chunk(heads), HALF=head_dim // 2, num_warps=_NUM_WARPS["queries"],
    )  # fmt: skip
    return scales


def find_factors(x: torch.Tensor, eps: float, out: torch.Tensor) -> None:
    """Write what the RMS norm of each row of x [N, D] BF16 multiplies it with to out, fp32 [N]."""
    words = _words(x)
    rows, width = words.shape
    _factors_kernel[triton.cdiv(rows, _FACTOR_ROWS),](
        words, out, eps, words.stride(0), rows,
        WORDS=width, EACH=_FACTOR_WORDS, ROWS=_FACTOR_ROWS, num_warps=_NUM_WARPS["factors"],
    )  # fmt: skip


def factors_of(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Return what find_factors writes, of x [N, H, 128]."""
    factors = x.new_empty(len(x), dtype=torch.float32)
    find_factors(x.flatten(1), eps, factors)
    return factors


def norm_factors(q: torch.Tensor, k: torch.Tensor, eps: float) -> torch.Tensor:
    """Return what the RMS norms multiply the rows of q and k [N, H, 128] with, fp32 [N, 2]."""
    return torch.stack([factors_of(part, eps) for part in (q, k)], dim=1)


def separate_factors(
    q: torch.Tensor, k: torch.Tensor, eps: float, factors: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return norm_factors of q and of k, each fp32 [N] in memory of its own, whose alignment depends on nothing.

    Args: factors: [N, 2], where they are known.
    """
    if factors is None:
        return factors_of(q, eps), factors_of(k, eps)
    of_queries, of_keys = factors.unbind(1)
    return of_queries.clone(), of_keys.clone()


def sum_sample(
    k: torch.Tensor, weight: torch.Tensor, factors: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, int]:
    """Return sums fp32 [some, D] of rows of k [N, H, 128], normalized and rotated, and how many rows that are."""
    rows, heads, head_dim = k.shape
    words = _words(k)
    runs = triton.cdiv(rows, SAMPLE_STRIDE)
    sums = k.new_empty(runs, heads * head_dim, dtype=torch.float32)
    _sums_kernel[runs, triton.cdiv(heads, _SUM_HEADS)](
        words, factors, _words(weight), *rotary, sums, words.stride(0), rows,
        HEADS=heads, EACH=_SUM_HEADS, HALF=head_dim // 2, ROWS=SAMPLE_ROWS, STRIDE=SAMPLE_STRIDE,
        num_warps=_NUM_WARPS["sums"],
    )  # fmt: skip
    last_run = min(rows - (runs - 1) * SAMPLE_STRIDE, SAMPLE_ROWS)
    return sums, (runs - 1) * SAMPLE_ROWS + last_run


def find_peaks(v: torch.Tensor) -> torch.Tensor:
    """Return the largest magnitudes fp32 [some, D] of the columns of v [N, H, 128]."""
    rows, width = len(v), v.shape[1] * v.shape[2]
    grid = (triton.cdiv(rows, _PEAK_ROWS), triton.cdiv(width, _PEAK_COLUMNS))
    peaks = v.new_empty(grid[0], width, dtype=torch.float32)
    _peaks_kernel[grid](
        v, peaks, v.stride(0), rows,
        WIDTH=width, ROWS=_PEAK_ROWS, COLUMNS=_PEAK_COLUMNS, STEP=_PEAK_STEP, num_warps=_NUM_WARPS["peaks"],
    )  # fmt: skip
    return peaks


def column_statistics(sums: torch.Tensor, rows: int, peaks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean [D] from the sums [some, D] of so many rows, and the largest peaks, but no less than 1e-12."""
    width = sums.shape[1]
    mean, peak = sums.new_empty(2, width)
    _statistics_kernel[width // 32,](
        sums, peaks, mean, peak, rows, len(sums), len(peaks),
        WIDTH=width, ROWS=32, COLUMNS=32, num_warps=_NUM_WARPS["statistics"],
    )  # fmt: skip
    return mean, peak


def mean_of_sums(sums: torch.Tensor, rows: int) -> torch.Tensor:
    """Return the mean [D] from the sums [some, D] of so many rows.

    Torch's own sum depends on how many columns there are, in its last bit: some heads would have another mean alone.
    """
    return column_statistics(sums, rows, sums[:0])[0]


def quantize_keys(
    k: torch.Tensor,
    weight: torch.Tensor,
    factors: torch.Tensor,
    mean: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    *,
    groups: int,
) -> torch.Tensor:
    """Normalize k [N, H, 128] by factors [N], rotate it, subtract mean [D] and put it in 8 bits in place.

    Returns:
        The scales fp32 [H, groups a block].
    """
    rows, heads, head_dim = k.shape
    count = triton.cdiv(rows, KEY_BLOCK) * groups
    scales = k.new_empty(heads, count, dtype=torch.float32)
    words, codes = _words(k), k.view(torch.int16)
    _keys_kernel[count, triton.cdiv(heads, _KEY_HEADS)](
        words, codes, factors, mean, _words(weight), *rotary, scales, words.stride(0), rows,
        HEADS=heads, EACH=_KEY_HEADS, HALF=head_dim // 2, GROUPS=groups, BLOCK=KEY_BLOCK,
        num_warps=_KEY_WARPS[groups],
    )  # fmt: skip
    return scales


def transpose_values(v: torch.Tensor, peaks: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return v [N, H, 128] * 448 / peaks [D] as [H, 128, N rounded up to whole blocks of keys]."""
    rows, heads, head_dim = v.shape
    blocks = triton.cdiv(rows, KEY_BLOCK)
    out = v.new_empty(heads, head_dim, blocks * KEY_BLOCK, dtype=dtype)
    _values_kernel[blocks, heads](
        v, peaks, out, v.stride(0), rows,
        HEAD=head_dim, BLOCK=KEY_BLOCK, LARGEST=FP8_LARGEST, num_warps=_NUM_WARPS["values"],
    )  # fmt: skip
    return out


def codes_of(x: torch.Tensor) -> torch.Tensor:
    """Return where the 8-bit codes of x [N, H, 128] BF16 go: the first half of every head's memory."""
    return x.view(torch.int8)[..., : x.shape[-1]]


def _words(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int32)


def _chunk(heads: int) -> int:
    """Return how many heads of a row a kernel over whole rows takes at a time: a power of two."""
    return _ROW_HEADS if heads > _ROW_HEADS // 2 else int(triton.next_power_of_2(heads))
