"""The pack's own self-attention on 8-bit inputs: INT8 scores, FP8 values, needs nothing but Triton.

The arithmetic is SageAttention 2's (arXiv 2411.10958): smoothed keys, INT8 q and k, weights in FP8 scaled to its range,
and the product with v of each block of keys added up in FP32, since FP8 tensor cores keep fewer bits of a sum.

A thread of a tensor core's result holds columns 2t and 2t + 1 of every 8, and of an FP8 operand 4t to 4t + 3 of every
16. Keys that are renumbered accordingly (attention_inputs.py writes v in that order) need no exchange between threads.

Imports Triton: import this module only when it is to be used.
"""

# Kernels are in Triton's language: untyped, and sizes in capitals.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# ruff: noqa: N803

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .attention_inputs import FP8_LARGEST, KEY_BLOCK, QUERY_BLOCK, QUERY_SCALES, Prepared
from .int8_triton import config_for

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # Triton before 3.4
    TensorDescriptor = None


# Scales of a block of keys.
KEY_GROUPS = 1


class _Config(NamedTuple):
    """How the kernel is launched."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int
    max_registers: int | None
    is_tiled: bool = False
    """Codes and values come through tensor descriptors, where this Triton has them."""


# On Hopper three programs of at most 168 registers a thread share a multiprocessor: one multiplies while another takes
# exponentials. Measured on an H200 at 32,760 tokens: 27 ms a call, with two programs 30. Ada's is the largest that
# compiles without spilling there. By compute capability: the first row that the card reaches.
_ADA = _Config(128, 64, 8, 3, None)
_CONFIGS: tuple[tuple[tuple[int, int], _Config], ...] = (
    ((9, 1), _ADA),
    ((9, 0), _Config(64, 128, 4, 2, 168, is_tiled=True)),
    ((8, 9), _ADA),
)
# log2 of FP8_LARGEST: weights are at most that.
_HEADROOM = tl.constexpr(math.log2(FP8_LARGEST))
# Products n of codes, which stay below 2**22, are added up on top of the bits of _BIAS: read as a float that is
# _BIAS + n. It saves converting each, and such floats compare as their bits do.
_BIAS, _BIAS_BITS = tl.constexpr(12582912.0), tl.constexpr(0x4B400000)
# Less than any product.
_LOWEST = tl.constexpr(-(2**21) - 2**20)


@triton.jit
def _attend_block(
    queries, codes, values, scale, is_key, highest, total, result,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Take KEYS keys into the running softmax of QUERIES rows; returns highest score, sum of weights, result."""
    bias = tl.full([QUERIES, KEYS], _BIAS_BITS, tl.int32)
    products = tl.dot(queries, codes, bias, out_dtype=tl.int32)
    if MASKED:
        products = tl.where(is_key[None, :], products, _BIAS_BITS + _LOWEST)
    largest = tl.max(products, 1).to(tl.float32, bitcast=True) - _BIAS
    now_highest = tl.maximum(highest, largest * scale)
    shift = 0.0 - now_highest + _HEADROOM - scale * _BIAS
    weights = tl.exp2(products.to(tl.float32, bitcast=True) * scale[:, None] + shift[:, None])
    if MASKED:
        weights = tl.where(is_key[None, :], weights, 0.0)
    fade = tl.exp2(highest - now_highest)
    total = total * fade + tl.sum(weights, 1)
    # Columns 8a + 2t + b of every 16 become 4t + 2a + b.
    parts = tl.reshape(weights.to(values.dtype), [QUERIES, KEYS // 16, 2, 4, 2])
    operand = tl.reshape(tl.permute(parts, [0, 1, 3, 2, 4]), [QUERIES, KEYS])
    result = result * fade[:, None] + tl.dot(operand, values, max_num_imprecise_acc=KEYS)
    return now_highest, total, result


@triton.jit(do_not_specialize=["num_rows"])
def _attention_kernel(
    q, k, values, k_tiles, value_tiles, query_scales, key_scales, value_peaks, out,
    factor, stride, out_stride, num_rows,
    HEAD: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr, TILED: tl.constexpr,
    QUERY_BLOCK: tl.constexpr, QUERY_SCALES: tl.constexpr, KEY_BLOCK: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Attend from QUERIES rows of a head to all keys; factor is the softmax's, times log2(e).

    With TILED, codes and values come through tensor descriptors.
    """
    head = tl.program_id(1)
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    columns = tl.arange(0, HEAD)
    keys = tl.arange(0, KEYS)
    is_row = rows[:, None] < num_rows
    wide_rows = rows.to(tl.int64)[:, None]
    queries = tl.load(q + wide_rows * stride + head * 2 * HEAD + columns[None, :], mask=is_row, other=0)
    group = rows // QUERY_BLOCK * QUERY_SCALES + rows % QUERY_BLOCK // 16 * 8 + rows % 8
    num_groups = tl.cdiv(num_rows, QUERY_BLOCK) * QUERY_SCALES
    query_scale = tl.load(query_scales + head * num_groups + group, mask=rows < num_rows, other=1.0) * factor
    num_blocks = tl.cdiv(num_rows, KEY_BLOCK)
    length = num_blocks * KEY_BLOCK
    key_scales += head * num_blocks
    k += head * 2 * HEAD
    values += (head * HEAD).to(tl.int64) * length
    k_places = columns[:, None] + keys[None, :] * stride
    value_places = columns[None, :] * length + keys[:, None]
    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    result = tl.zeros([QUERIES, HEAD], tl.float32)
    whole = num_rows // KEYS * KEYS
    for start in tl.range(0, whole, KEYS, num_stages=STAGES):
        if TILED:
            codes = k_tiles.load([start, head * 2 * HEAD]).T
            some_values = value_tiles.load([head * HEAD, start]).T
        else:
            codes = tl.load(k + tl.cast(start, tl.int64) * stride + k_places)
            some_values = tl.load(values + start + value_places)
        scale = query_scale * tl.load(key_scales + start // KEY_BLOCK)
        highest, total, result = _attend_block(
            queries, codes, some_values, scale, keys, highest, total, result, QUERIES, KEYS, False
        )
    if whole < num_rows:
        is_key = keys < num_rows - whole
        codes = tl.load(k + tl.cast(whole, tl.int64) * stride + k_places, mask=is_key[None, :], other=0)
        some_values = tl.load(values + whole + value_places)
        scale = query_scale * tl.load(key_scales + whole // KEY_BLOCK)
        highest, total, result = _attend_block(
            queries, codes, some_values, scale, is_key, highest, total, result, QUERIES, KEYS, True
        )
    unit = tl.load(value_peaks + head * HEAD + columns) * (1.0 / LARGEST)
    result = result * (1.0 / total)[:, None] * unit[None, :]
    place = out + wide_rows * out_stride + head * HEAD + columns[None, :]
    tl.store(place, result.to(out.dtype.element_ty), mask=is_row)


def attend(inputs: Prepared, out: torch.Tensor) -> None:
    """Write the attention of `inputs`, which have one scale a block of keys, to out [N, H, 128] BF16."""
    rows, heads, head_dim = out.shape
    config = config_for(_CONFIGS, out.device)
    is_tiled = config.is_tiled and TensorDescriptor is not None
    k_tiles, value_tiles = _tiles(inputs, config) if is_tiled else (inputs.k, inputs.values)
    _attention_kernel[triton.cdiv(rows, config.queries), heads](
        inputs.q, inputs.k, inputs.values, k_tiles, value_tiles, inputs.query_scales, inputs.key_scales,
        inputs.value_peaks, out, math.log2(math.e) / math.sqrt(head_dim), inputs.q.stride(0), out.stride(0), rows,
        HEAD=head_dim, QUERIES=config.queries, KEYS=config.keys, STAGES=config.num_stages, TILED=is_tiled,
        QUERY_BLOCK=QUERY_BLOCK, QUERY_SCALES=QUERY_SCALES, KEY_BLOCK=KEY_BLOCK, LARGEST=FP8_LARGEST,
        num_warps=config.num_warps, maxnreg=config.max_registers,
    )  # fmt: skip


def _tiles(inputs: Prepared, config: _Config) -> tuple[Any, Any]:
    """Return descriptors of k's and the values' tiles: k's memory holds other things between the heads' codes."""
    rows, heads, head_dim = inputs.k.shape
    k = inputs.k.as_strided((rows, (heads - 1) * inputs.k.stride(1) + head_dim), (inputs.k.stride(0), 1))
    values = inputs.values.flatten(0, 1)
    return (
        TensorDescriptor(k, list(k.shape), list(k.stride()), [config.keys, head_dim]),
        TensorDescriptor(values, list(values.shape), list(values.stride()), [head_dim, config.keys]),
    )
