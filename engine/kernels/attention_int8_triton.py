"""The pack's own self-attention in INT8 alone: scores, weights and values, with exact sums, from RTX 30 on.

FP8 is not needed, and on GeForce cards INT8 multiplies at twice the rate of FP8 with FP32 sums. Weights of a block of
keys are whole numbers up to 127, the largest of the block's being 127; the block's result, exact in INT32, is brought
to the highest score so far when it is added. v comes less its mean and gets it back at the end. What rounds to zero
counts in the sum of the weights all the same, as if it had the mean's value.

A block of keys is taken in two halves, whose products share one sum in the tensor core, and the head's columns too:
so a thread's part of all that lives at a time fits into its 255 registers. Keys are numbered as in
attention_triton.py, so that products become an operand without an exchange between threads.

Products and sums start from the bits of a large float (`_BIAS`): read as floats they are that plus an integer, which
saves every conversion.

Source of the arithmetic: SageAttention (arXiv 2410.02367) for INT8 q and k, I-BERT's and INT-FlashAttention's (arXiv
2409.16997) weights in INT8 with a scale of the block; the rest is described in attention_int8_inputs.py.

For compute capability 8.0, 8.6, 8.9 and 12.0. It runs on 9.0 too, where attention_triton.py is faster.
Imports Triton: import this module only when it is to be used.
"""

# Kernels are in Triton's language: untyped, and sizes in capitals.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# ruff: noqa: N803

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .attention_inputs import KEY_BLOCK
from .attention_int8_inputs import KEYS_A_SCALE, Int8Prepared
from .int8_triton import config_for


class Config(NamedTuple):
    """How the kernel is launched."""

    queries: int
    """Rows of a program; no fewer than the keys of a scale, or Triton shares out columns, not rows, to its warps."""
    num_warps: int
    num_stages: int


# Registers let two programs of four warps share a multiprocessor, if its shared memory does: 40 KiB each with two
# stages, 72 with three. Measured on an H200 at 32,760 tokens, compiled for 8.9 and with that card's part of shared
# memory: (64, 4, 2) 45 ms, (128, 8, 3) 51, of which one fits, (64, 4, 3) 65; with the whole of it (64, 4, 3) 41.
# Triton before 3.4 and from 3.8 on spills up to 96 bytes a thread for the first, at most 64 for the second.
_VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
_COMMON = Config(64, 4, 2) if (3, 4) <= _VERSION < (3, 8) else Config(128, 8, 3)
# By compute capability: the first row that the card reaches.
CONFIGS: tuple[tuple[tuple[int, int], Config], ...] = (
    ((9, 1), _COMMON),
    ((9, 0), Config(64, 4, 3)),
    ((8, 0), _COMMON),
)

# log2 of the largest weight.
_HEADROOM = tl.constexpr(math.log2(127.0))
# Scores' products of codes and results' products with values stay below 2**22.
_BIAS, _BIAS_BITS = tl.constexpr(12582912.0), tl.constexpr(0x4B400000)
# Less than any product.
_LOWEST = tl.constexpr(-(2**21) - 2**20)
# A score in place of none.
_NO_SCORE = tl.constexpr(-1e30)


@triton.jit
def _scores(queries, codes, is_key, QUERIES: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr):
    """Return products of codes [QUERIES, KEYS] on top of the bias."""
    bias = tl.full([QUERIES, KEYS], _BIAS_BITS, tl.int32)
    products = tl.dot(queries, codes, bias, out_dtype=tl.int32)
    if MASKED:
        products = tl.where(is_key[None, :], products, _BIAS_BITS + _LOWEST)
    return products


@triton.jit
def _weigh(products, scale, shift, is_key, QUERIES: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr):
    """Return weights as an INT8 operand [QUERIES, KEYS], and their sums before they were rounded."""
    weights = tl.exp2(products.to(tl.float32, bitcast=True) * scale[:, None] + shift[:, None])
    if MASKED:
        weights = tl.where(is_key[None, :], weights, 0.0)
    codes = (weights + _BIAS).to(tl.int32, bitcast=True).to(tl.int8)
    # Columns 8a + 2t + b of every 16 become 4t + 2a + b.
    parts = tl.reshape(codes, [QUERIES, KEYS // 16, 2, 4, 2])
    return tl.reshape(tl.permute(parts, [0, 1, 3, 2, 4]), [QUERIES, KEYS]), tl.sum(weights, 1)


@triton.jit
def _add(result, one, two, values, more_values, fade, unit, QUERIES: tl.constexpr, PART: tl.constexpr):
    """Return result * fade + (one @ values + two @ more_values) * unit, with one rounding of the sum to fp32."""
    bias = tl.full([QUERIES, PART], _BIAS_BITS, tl.int32)
    product = tl.dot(two, more_values, tl.dot(one, values, bias, out_dtype=tl.int32), out_dtype=tl.int32)
    return (result * fade[:, None] - (unit * _BIAS)[:, None]) + product.to(tl.float32, bitcast=True) * unit[:, None]


@triton.jit
def _attend_block(
    queries, k, values, scale, more_scale, num_keys, stride, length, highest, total, left, right,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, PART: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Take 2 * KEYS keys, of which num_keys exist, into the running softmax.

    k and values point to the first of them; scale and more_scale are of the two halves.
    """
    keys = tl.arange(0, KEYS)
    first_are, second_are = keys < num_keys, keys + KEYS < num_keys
    if MASKED:
        codes = tl.load(k, mask=first_are[None, :], other=0)
        more_codes = tl.load(k + KEYS * stride, mask=second_are[None, :], other=0)
    else:
        codes, more_codes = tl.load(k), tl.load(k + KEYS * stride)
    first = _scores(queries, codes, first_are, QUERIES, KEYS, MASKED)
    second = _scores(queries, more_codes, second_are, QUERIES, KEYS, MASKED)
    largest = (tl.max(first, 1).to(tl.float32, bitcast=True) - _BIAS) * scale
    more = (tl.max(second, 1).to(tl.float32, bitcast=True) - _BIAS) * more_scale
    if MASKED:
        more = tl.where(num_keys > KEYS, more, _NO_SCORE)
    largest = tl.maximum(largest, more)
    shift = _HEADROOM - largest
    now_highest = tl.maximum(highest, largest)
    fade, unit = tl.exp2(highest - now_highest), tl.exp2(largest - now_highest)
    one, sums = _weigh(first, scale, shift - scale * _BIAS, first_are, QUERIES, KEYS, MASKED)
    two, more_sums = _weigh(second, more_scale, shift - more_scale * _BIAS, second_are, QUERIES, KEYS, MASKED)
    total = total * fade + (sums + more_sums) * unit
    left = _add(left, one, two, tl.load(values), tl.load(values + KEYS), fade, unit, QUERIES, PART)
    values += PART * length
    right = _add(right, one, two, tl.load(values), tl.load(values + KEYS), fade, unit, QUERIES, PART)
    return now_highest, total, left, right


@triton.jit
def _store(out, result, total, steps, means, is_row):
    result = result * (1.0 / total)[:, None] * tl.load(steps)[None, :] + tl.load(means)[None, :]
    tl.store(out, result.to(out.dtype.element_ty), mask=is_row)


@triton.jit(do_not_specialize=["num_rows"])
def _int8_attention_kernel(
    q, k, values, query_scales, key_scales, value_steps, value_means, out, factor, stride, out_stride, num_rows,
    HEAD: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr, KEY_BLOCK: tl.constexpr,
):  # fmt: skip
    """Attend from QUERIES rows of a head to all keys; grid: runs of rows, heads. factor is the softmax's, * log2(e)."""
    part_size: tl.constexpr = HEAD // 2
    head = tl.program_id(1)
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    columns, part = tl.arange(0, HEAD), tl.arange(0, part_size)
    keys = tl.arange(0, KEYS)
    is_row = rows[:, None] < num_rows
    wide_rows = rows.to(tl.int64)[:, None]
    queries = tl.load(q + wide_rows * stride + head * 2 * HEAD + columns[None, :], mask=is_row, other=0)
    query_scale = tl.load(query_scales + head * num_rows + rows, mask=rows < num_rows, other=1.0) * factor
    num_blocks = tl.cdiv(num_rows, KEY_BLOCK)
    length = num_blocks * KEY_BLOCK
    key_scales += head * (length // KEYS)
    k += head * 2 * HEAD + columns[:, None] + keys[None, :] * stride
    values += (head * HEAD).to(tl.int64) * length + part[None, :] * length + keys[:, None]
    highest = tl.full([QUERIES], _NO_SCORE, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    left = tl.zeros([QUERIES, part_size], tl.float32)
    right = tl.zeros([QUERIES, part_size], tl.float32)
    whole = num_rows // (2 * KEYS) * (2 * KEYS)
    # What fills no block comes first: after the loop it would cost the loop registers.
    if whole < num_rows:
        scale = query_scale * tl.load(key_scales + whole // KEYS)
        more_scale = query_scale * tl.load(key_scales + whole // KEYS + 1)
        highest, total, left, right = _attend_block(
            queries, k + tl.cast(whole, tl.int64) * stride, values + whole, scale, more_scale, num_rows - whole, stride,
            length, highest, total, left, right, QUERIES, KEYS, part_size, True,
        )  # fmt: skip
    for start in tl.range(0, whole, 2 * KEYS, num_stages=STAGES):
        scale = query_scale * tl.load(key_scales + start // KEYS)
        more_scale = query_scale * tl.load(key_scales + start // KEYS + 1)
        highest, total, left, right = _attend_block(
            queries, k + tl.cast(start, tl.int64) * stride, values + start, scale, more_scale, 2 * KEYS, stride, length,
            highest, total, left, right, QUERIES, KEYS, part_size, False,
        )  # fmt: skip
    out += wide_rows * out_stride + head * HEAD + part[None, :]
    steps, means = value_steps + head * HEAD + part, value_means + head * HEAD + part
    _store(out, left, total, steps, means, is_row)
    _store(out + part_size, right, total, steps + part_size, means + part_size, is_row)


def attend(inputs: Int8Prepared, out: torch.Tensor, config: Config | None = None) -> None:
    """Write the attention of `inputs` to out [N, H, 128] BF16; config is the table's for this card when None."""
    rows, heads, head_dim = out.shape
    chosen = config or config_for(CONFIGS, out.device)
    _int8_attention_kernel[triton.cdiv(rows, chosen.queries), heads](
        inputs.q, inputs.k, inputs.values, inputs.query_scales, inputs.key_scales, inputs.value_steps,
        inputs.value_means, out, math.log2(math.e) / math.sqrt(head_dim), inputs.q.stride(0), out.stride(0), rows,
        HEAD=head_dim, QUERIES=chosen.queries, KEYS=KEYS_A_SCALE, STAGES=chosen.num_stages, KEY_BLOCK=KEY_BLOCK,
        num_warps=chosen.num_warps, num_stages=chosen.num_stages,
    )  # fmt: skip
