"""The operations of ops.py as Triton kernels, each at about the speed of its bytes.

A program takes one row and holds it in registers. A row is rarely a power of two long, so it is held in two parts: LOW
elements, the largest power of two below D, and HIGH, the power of two that takes the rest. The number of rows is never
a compile-time constant: a kernel compiles once for a card and a model, whatever the size of the clip.

Imports Triton: import this module only when it is to be used.
"""

# Kernels are in Triton's language: untyped, sizes in capitals, statements for what is decided at compile time.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# ruff: noqa: N803, SIM108

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from . import ops_torch
from .attention_inputs import find_factors as row_factors
from .fp8_rounding import to_fp8
from .joined_triton import join_inputs, join_weight
from .ops import Rotary
from .quantize import LARGEST, SMALLEST

__all__ = [
    "add_cross_attention",
    "add_product",
    "cross_attention",
    "cross_weights",
    "gelu",
    "join_inputs",
    "join_weight",
    "norm",
    "quantize",
    "residual",
    "residual_norm",
    "rms_rotary",
    "row_factors",
]

# Warps a row, by kernel.
NUM_WARPS = {"quantize": 4, "norm": 4, "residual": 4, "gelu": 8, "rms_rotary": 4}
# Adding this to a float rounds it half to even and leaves the integer in the low bits.
_ROUNDER = tl.constexpr(12582912.0)
_SMALLEST = tl.constexpr(SMALLEST)
# -2 * sqrt(2 / pi) * log2(e), the factor of tanh-GELU written with exp2.
_GELU_FACTOR = tl.constexpr(-2.0 * math.sqrt(2.0 / math.pi) * math.log2(math.e))
# Keys that a program of the cross-attention holds at most, queries that it takes at a time, and how often.
_MAX_KEYS = 128
_QUERIES, _STEPS = 64, 4
# Keys that a program of the added cross-attention takes at a time, and its queries. The last keys are a smaller part:
# an image has 257 or 514.
_MORE_KEYS, _MORE_QUERIES = 64, 128
# Rows and columns of a program of `add_product`, and the inner size up to which it is faster than cuBLAS.
_PRODUCT_ROWS, _PRODUCT_COLUMNS, _PRODUCT_INNER = 64, 128, 64


@triton.jit
def _load(pointer, columns, D: tl.constexpr, END: tl.constexpr):
    """Load columns in fp32; END is one more than the last of them, and those from D on are zero."""
    if END <= D:
        values = tl.load(pointer + columns)
    else:
        values = tl.load(pointer + columns, mask=columns < D, other=0.0)
    return values.to(tl.float32)


@triton.jit
def _store(pointer, columns, values, D: tl.constexpr, END: tl.constexpr):
    if pointer.dtype.element_ty == tl.int8:
        stored = (values + _ROUNDER).to(tl.int32, bitcast=True).to(tl.int8)
    elif pointer.dtype.element_ty == tl.float8e4nv:
        stored = to_fp8(values)
    else:
        stored = values.to(pointer.dtype.element_ty)
    if END <= D:
        tl.store(pointer + columns, stored)
    else:
        tl.store(pointer + columns, stored, mask=columns < D)


@triton.jit
def _write(
    out, scale, low_columns, low, high_columns, high,
    D: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Write a row, scaled to LARGEST unless that is zero."""
    if LARGEST > 0:
        largest = tl.maximum(tl.max(tl.abs(low), axis=0), tl.max(tl.abs(high), axis=0))
        largest = tl.maximum(largest, _SMALLEST)
        tl.store(scale, largest * (1.0 / LARGEST))
        factor = tl.div_rn(largest * 0.0 + LARGEST, largest)
        low = low * factor
        high = high * factor
    _store(out, low_columns, low, D, LOW)
    _store(out, high_columns, high, D, LOW + HIGH)


@triton.jit
def _quantize_kernel(
    x, out, scale, x_stride, out_stride,
    D: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    row_x = x + row * x_stride
    low_columns = tl.arange(0, LOW)
    high_columns = LOW + tl.arange(0, HIGH)
    low = _load(row_x, low_columns, D, LOW)
    high = _load(row_x, high_columns, D, LOW + HIGH)
    _write(out + row * out_stride, scale + row, low_columns, low, high_columns, high, D, LOW, HIGH, LARGEST)


@triton.jit
def _gelu(x):
    # x / y, with 1 / y as the root of y ** -2: a division would check its range, and instructions limit this kernel.
    y = 1.0 + tl.exp2(x * (_GELU_FACTOR + _GELU_FACTOR * 0.044715 * x * x))
    return x * tl.rsqrt(y * y)


@triton.jit
def _gelu_kernel(
    x, out, scale, x_stride, out_stride,
    D: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    row_x = x + row * x_stride
    low_columns = tl.arange(0, LOW)
    high_columns = LOW + tl.arange(0, HIGH)
    low = _gelu(_load(row_x, low_columns, D, LOW))
    high = _gelu(_load(row_x, high_columns, D, LOW + HIGH))
    _write(out + row * out_stride, scale + row, low_columns, low, high_columns, high, D, LOW, HIGH, LARGEST)


@triton.jit
def _add(x, y, gate, columns, D: tl.constexpr, END: tl.constexpr, GATED: tl.constexpr):
    """Return x + y * gate, rounded to what x is stored in, and store it there."""
    change = _load(y, columns, D, END)
    if GATED:
        change = change * _load(gate, columns, D, END)
    total = (_load(x, columns, D, END) + change).to(x.dtype.element_ty).to(tl.float32)
    _store(x, columns, total, D, END)
    return total


@triton.jit
def _residual_kernel(
    x, y, gate, x_stride, y_stride,
    D: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    row_x = x + row * x_stride
    row_y = y + row * y_stride
    _add(row_x, row_y, gate, tl.arange(0, LOW), D, LOW, GATED)
    _add(row_x, row_y, gate, LOW + tl.arange(0, HIGH), D, LOW + HIGH, GATED)


@triton.jit
def _norm_kernel(
    x, y, gate, mul, add, out, scale, eps, x_stride, y_stride, out_stride,
    D: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, LARGEST: tl.constexpr,
    RESIDUAL: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    # Four neighbouring columns a thread: the vectors are fp32, and with more a warp's loads of them would overlap the
    # same cache lines; they, not the rows, then take most of the time.
    low_columns = tl.max_contiguous(tl.arange(0, LOW), 4)
    high_columns = tl.max_contiguous(LOW + tl.arange(0, HIGH), 4)
    row = tl.program_id(0).to(tl.int64)
    row_x = x + row * x_stride
    if RESIDUAL:
        row_y = y + row * y_stride
        low = _add(row_x, row_y, gate, low_columns, D, LOW, GATED)
        high = _add(row_x, row_y, gate, high_columns, D, LOW + HIGH, GATED)
    else:
        low = _load(row_x, low_columns, D, LOW)
        high = _load(row_x, high_columns, D, LOW + HIGH)
    mean = (tl.sum(low, axis=0) + tl.sum(high, axis=0)) / D
    low = low - mean
    high = tl.where(high_columns < D, high - mean, 0.0)
    variance = (tl.sum(low * low, axis=0) + tl.sum(high * high, axis=0)) / D
    factor = tl.rsqrt(variance + eps)
    low = low * factor * _load(mul, low_columns, D, LOW) + _load(add, low_columns, D, LOW)
    high = high * factor * _load(mul, high_columns, D, LOW + HIGH) + _load(add, high_columns, D, LOW + HIGH)
    _write(out + row * out_stride, scale + row, low_columns, low, high_columns, high, D, LOW, HIGH, LARGEST)


@triton.jit
def _rotate(values, cos, sin, START: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr):
    """Rotate neighbouring pairs of SIZE values, the first of which is number START of the row."""
    pairs = (START // 2 + tl.arange(0, SIZE // 2)) % HALF
    cos = tl.load(cos + pairs)
    sin = tl.load(sin + pairs)
    first, second = tl.split(tl.reshape(values, [SIZE // 2, 2]))
    return tl.reshape(tl.join(first * cos - second * sin, first * sin + second * cos), [SIZE])


@triton.jit
def _rms_rotary_kernel(
    x, weight, cos, sin, eps, x_stride,
    D: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, HALF: tl.constexpr, ROTARY: tl.constexpr,
):  # fmt: skip
    low_columns = tl.arange(0, LOW)
    high_columns = LOW + tl.arange(0, HIGH)
    row = tl.program_id(0).to(tl.int64)
    row_x = x + row * x_stride
    low = _load(row_x, low_columns, D, LOW)
    high = _load(row_x, high_columns, D, LOW + HIGH)
    factor = tl.rsqrt((tl.sum(low * low, axis=0) + tl.sum(high * high, axis=0)) / D + eps)
    low = low * factor * _load(weight, low_columns, D, LOW)
    high = high * factor * _load(weight, high_columns, D, LOW + HIGH)
    if ROTARY:
        low = _rotate(low, cos + row * HALF, sin + row * HALF, 0, LOW, HALF)
        high = _rotate(high, cos + row * HALF, sin + row * HALF, LOW, HIGH, HALF)
    _store(row_x, low_columns, low, D, LOW)
    _store(row_x, high_columns, high, D, LOW + HIGH)


@triton.jit
def _load_keys(k, k_stride, head, keys, num_keys, last_bias):
    """Return a head's keys, and what is to be added to their scores."""
    some_keys = tl.load(k + keys[:, None] * k_stride + head[None, :], mask=keys[:, None] < num_keys, other=0.0)
    bias = tl.where(keys < num_keys - 1, 0.0, tl.where(keys < num_keys, last_bias, float("-inf")))
    return some_keys, bias


@triton.jit
def _cross_weights(q, factors, q_stride, rows, num_rows, head, some_keys, bias, scale):
    """Return the weights of the keys for some rows [.., 1] of q, and their sums."""
    queries = tl.load(q + rows * q_stride + head[None, :], mask=rows < num_rows, other=0.0)
    # Not masked: that would take up to 60 registers more.
    factor = tl.load(factors + tl.minimum(rows, num_rows - 1)) * scale
    scores = tl.dot(queries, tl.trans(some_keys)) * factor + bias[None, :]
    weights = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
    return weights, tl.sum(weights, axis=1)[:, None]


@triton.jit(do_not_specialize=["num_rows", "num_keys", "last_bias"])
def _cross_attention_kernel(
    q, factors, k, v, out, q_stride, k_stride, v_stride, out_stride, num_rows, num_keys, last_bias, scale,
    HEAD: tl.constexpr, KEYS: tl.constexpr, QUERIES: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """One head of QUERIES * STEPS rows; strides are those of rows, heads are HEAD apart. scale includes log2(e)."""
    head = tl.program_id(1) * HEAD + tl.arange(0, HEAD)
    keys = tl.arange(0, KEYS)
    some_keys, bias = _load_keys(k, k_stride, head, keys, num_keys, last_bias)
    values = tl.load(v + keys[:, None] * v_stride + head[None, :], mask=keys[:, None] < num_keys, other=0.0)
    for step in range(STEPS):
        rows = ((tl.program_id(0).to(tl.int64) * STEPS + step) * QUERIES + tl.arange(0, QUERIES))[:, None]
        weights, total = _cross_weights(q, factors, q_stride, rows, num_rows, head, some_keys, bias, scale)
        result = tl.dot(weights.to(values.dtype), values) / total
        tl.store(out + rows * out_stride + head[None, :], result.to(out.dtype.element_ty), mask=rows < num_rows)


@triton.jit(do_not_specialize=["num_rows", "num_keys", "eights", "last_bias"])
def _cross_weights_kernel(
    q, factors, k, out, q_stride, k_stride, num_rows, num_keys, eights, last_bias, scale,
    HEAD: tl.constexpr, KEYS: tl.constexpr, QUERIES: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Do the first half of _cross_attention_kernel. out is contiguous and has 8 * eights columns a head."""
    head = tl.program_id(1) * HEAD + tl.arange(0, HEAD)
    keys = tl.arange(0, KEYS)
    some_keys, bias = _load_keys(k, k_stride, head, keys, num_keys, last_bias)
    columns = eights * 8
    row_out = out + tl.program_id(1) * columns + keys[None, :]
    for step in range(STEPS):
        rows = ((tl.program_id(0).to(tl.int64) * STEPS + step) * QUERIES + tl.arange(0, QUERIES))[:, None]
        weights, total = _cross_weights(q, factors, q_stride, rows, num_rows, head, some_keys, bias, scale)
        is_here = (rows < num_rows) & (keys[None, :] < columns)
        weights = (weights / total).to(out.dtype.element_ty)
        tl.store(row_out + rows * (tl.num_programs(1) * columns), weights, mask=is_here)


@triton.jit
def _attend_to_some(
    queries, factor, k, v, k_stride, v_stride, head, first, num_keys, highest, total, result, KEYS: tl.constexpr
):
    """Attend to KEYS keys from `first` on: return the highest score, sum of weights and weighted sum with them."""
    keys = first + tl.arange(0, KEYS)
    is_here = keys < num_keys
    some_keys = tl.load(k + keys[:, None] * k_stride + head[None, :], mask=is_here[:, None], other=0.0)
    scores = tl.dot(queries, tl.trans(some_keys)) * factor + tl.where(is_here, 0.0, float("-inf"))[None, :]
    higher = tl.maximum(highest, tl.max(scores, axis=1))
    weights = tl.exp2(scores - higher[:, None])
    shrink = tl.exp2(highest - higher)
    values = tl.load(v + keys[:, None] * v_stride + head[None, :], mask=is_here[:, None], other=0.0)
    result = tl.dot(weights.to(values.dtype), values, result * shrink[:, None])
    return higher, total * shrink + tl.sum(weights, axis=1), result


@triton.jit(do_not_specialize=["num_rows", "num_keys"])
def _add_cross_attention_kernel(
    q, factors, k, v, out, q_stride, k_stride, v_stride, out_stride, num_rows, num_keys, scale,
    HEAD: tl.constexpr, KEYS: tl.constexpr, LAST: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """One head of QUERIES rows, KEYS keys at a time and LAST in the end; else as _cross_attention_kernel."""
    head = tl.program_id(1) * HEAD + tl.arange(0, HEAD)
    rows = (tl.program_id(0).to(tl.int64) * QUERIES + tl.arange(0, QUERIES))[:, None]
    queries = tl.load(q + rows * q_stride + head[None, :], mask=rows < num_rows, other=0.0)
    factor = tl.load(factors + tl.minimum(rows, num_rows - 1)) * scale
    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    result = tl.zeros([QUERIES, HEAD], tl.float32)
    whole = num_keys // KEYS * KEYS
    for first in range(0, whole, KEYS):
        highest, total, result = _attend_to_some(
            queries, factor, k, v, k_stride, v_stride, head, first, num_keys, highest, total, result, KEYS
        )
    if LAST > 0:
        highest, total, result = _attend_to_some(
            queries, factor, k, v, k_stride, v_stride, head, whole, num_keys, highest, total, result, LAST
        )
    place = out + rows * out_stride + head[None, :]
    before = tl.load(place, mask=rows < num_rows, other=0.0).to(tl.float32)
    tl.store(place, (before + result / total[:, None]).to(out.dtype.element_ty), mask=rows < num_rows)


@triton.jit(do_not_specialize=["num_rows"])
def _add_product_kernel(
    x, weight, out, x_stride, weight_stride, out_stride, num_rows, inner_size,
    N: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    # Programs side by side have the same rows: x is read once, and weight stays in the L2 cache.
    tiles: tl.constexpr = (N + COLUMNS - 1) // COLUMNS
    rows = (tl.program_id(0) // tiles) * ROWS + tl.arange(0, ROWS)
    columns = (tl.program_id(0) % tiles) * COLUMNS + tl.arange(0, COLUMNS)
    is_here = (rows < num_rows)[:, None] & (columns < N)[None, :]
    place = out + rows.to(tl.int64)[:, None] * out_stride + columns[None, :]
    # On its way while the product is computed.
    before = tl.load(place, mask=is_here, other=0.0)
    row_x = x + tl.where(rows < num_rows, rows, 0).to(tl.int64)[:, None] * x_stride
    column_weight = weight + tl.where(columns < N, columns, 0).to(tl.int64)[None, :] * weight_stride
    inner = tl.arange(0, INNER)
    is_inner = inner < inner_size
    a = tl.load(row_x + inner[None, :], mask=is_inner[None, :], other=0.0)
    b = tl.load(column_weight + inner[:, None], mask=is_inner[:, None], other=0.0)
    total = before.to(tl.float32) + tl.dot(a, b)
    tl.store(place, total.to(out.dtype.element_ty), mask=is_here)


def quantize(x: torch.Tensor, out: torch.Tensor, scale: torch.Tensor) -> None:
    """Write x in 8 bits; see Ops.quantize."""
    grid, options = _launch("quantize", x)
    _quantize_kernel[grid](x, out, scale, x.stride(0), out.stride(0), LARGEST=LARGEST[out.dtype], **options)


def norm(
    x: torch.Tensor,
    mul: torch.Tensor,
    add: torch.Tensor,
    eps: float,
    out: torch.Tensor,
    scale: torch.Tensor | None,
) -> None:
    """Write the modulated layer norm of x; see Ops.norm."""
    _norm(x, None, None, mul, add, eps, out, scale)


def residual(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor | None) -> None:
    """Add y * gate to x in place; see Ops.residual."""
    grid, options = _launch("residual", x)
    _residual_kernel[grid](
        x, y, y if gate is None else gate, x.stride(0), y.stride(0), GATED=gate is not None, **options
    )


def add_product(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    """Add a product of small inner size to out in place, in one pass over it; see Ops.add_product.

    With 32,760 rows and 5,120 columns on an H200 (torch 2.11, Triton 3.6) inner sizes 16 and 64 take 0.17 and 0.19 ms,
    cuBLAS 0.27 for any; at 128 cuBLAS is ahead (0.27 to 0.29).
    """
    columns, inner = weight.shape
    if inner > _PRODUCT_INNER:
        return ops_torch.add_product(x, weight, out)
    grid = (triton.cdiv(len(out), _PRODUCT_ROWS) * triton.cdiv(columns, _PRODUCT_COLUMNS),)
    _add_product_kernel[grid](
        x, weight, out, x.stride(0), weight.stride(0), out.stride(0), len(out), inner,
        N=columns, ROWS=_PRODUCT_ROWS, COLUMNS=_PRODUCT_COLUMNS,
        INNER=max(16, triton.next_power_of_2(inner)), num_warps=4,
    )  # fmt: skip


def residual_norm(
    x: torch.Tensor,
    y: torch.Tensor,
    gate: torch.Tensor | None,
    mul: torch.Tensor,
    add: torch.Tensor,
    eps: float,
    out: torch.Tensor,
    scale: torch.Tensor | None,
) -> None:
    """Do residual, then norm; see Ops.residual_norm."""
    _norm(x, y, gate, mul, add, eps, out, scale)


def gelu(h: torch.Tensor, out: torch.Tensor, scale: torch.Tensor | None) -> None:
    """Write the tanh-GELU of h; see Ops.gelu."""
    grid, options = _launch("gelu", h)
    target = (out, _scale_or(scale, h), h.stride(0), out.stride(0))
    _gelu_kernel[grid](h, *target, LARGEST=_largest(out, scale), **options)


def rms_rotary(x: torch.Tensor, weight: torch.Tensor, eps: float, heads: int, rotary: Rotary | None) -> None:
    """Normalize and rotate x in place; see Ops.rms_rotary. cos and sin are contiguous."""
    grid, options = _launch("rms_rotary", x)
    cos, sin = (weight, weight) if rotary is None else rotary
    half = x.shape[1] // heads // 2
    table = (cos, sin, eps, x.stride(0))
    _rms_rotary_kernel[grid](x, weight, *table, HALF=half, ROTARY=rotary is not None, **options)


def cross_attention(
    q: torch.Tensor, factors: torch.Tensor, k: torch.Tensor, v: torch.Tensor, repeats: int, out: torch.Tensor
) -> None:
    """Attend to keys of which the last counts `repeats` times; see Ops.cross_attention."""
    if len(k) > _MAX_KEYS:
        return ops_torch.cross_attention(q, factors, k, v, repeats, out)
    strides = (q.stride(0), k.stride(0), v.stride(0), out.stride(0))
    grid, scale, options = _launch_cross(q, len(k))
    _cross_attention_kernel[grid](q, factors, k, v, out, *strides, len(q), len(k), math.log2(repeats), scale, **options)


def add_cross_attention(
    q: torch.Tensor, factors: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor
) -> None:
    """Add the attention to more keys; see Ops.add_cross_attention."""
    rest = len(k) % _MORE_KEYS
    sizes = {
        "HEAD": q.shape[2],
        "KEYS": _MORE_KEYS,
        "LAST": max(16, triton.next_power_of_2(rest)) if rest else 0,
        "QUERIES": _MORE_QUERIES,
    }
    strides = (q.stride(0), k.stride(0), v.stride(0), out.stride(0))
    grid, scale = (triton.cdiv(len(q), _MORE_QUERIES), q.shape[1]), math.log2(math.e) / math.sqrt(q.shape[2])
    _add_cross_attention_kernel[grid](
        q, factors, k, v, out, *strides, len(q), len(k), scale, **sizes, num_warps=8, num_stages=2
    )


def cross_weights(q: torch.Tensor, factors: torch.Tensor, k: torch.Tensor, repeats: int, out: torch.Tensor) -> None:
    """Write the weights of keys of which the last counts `repeats` times; see Ops.cross_weights."""
    columns = out.shape[2]
    if columns > _MAX_KEYS:
        return ops_torch.cross_weights(q, factors, k, repeats, out)
    grid, scale, options = _launch_cross(q, columns)
    sizes = (q.stride(0), k.stride(0), len(q), len(k), columns // 8)
    _cross_weights_kernel[grid](q, factors, k, out, *sizes, math.log2(repeats), scale, **options)


def _norm(
    x: torch.Tensor,
    y: torch.Tensor | None,
    gate: torch.Tensor | None,
    mul: torch.Tensor,
    add: torch.Tensor,
    eps: float,
    out: torch.Tensor,
    scale: torch.Tensor | None,
) -> None:
    grid, options = _launch("norm", x)
    change = x if y is None else y
    strides = (x.stride(0), change.stride(0), out.stride(0))
    _norm_kernel[grid](
        x, change, mul if gate is None else gate, mul, add, out, _scale_or(scale, mul), eps, *strides,
        LARGEST=_largest(out, scale), RESIDUAL=y is not None, GATED=gate is not None, **options,
    )  # fmt: skip


def _launch(kernel: str, x: torch.Tensor) -> tuple[tuple[int], dict[str, int]]:
    """Return grid and compile-time sizes of a kernel over the rows of x."""
    size = x.shape[1]
    low = triton.next_power_of_2(size) // 2
    high = triton.next_power_of_2(size - low)
    return (len(x),), {"D": size, "LOW": low, "HIGH": high, "num_warps": NUM_WARPS[kernel]}


def _launch_cross(q: torch.Tensor, keys: int) -> tuple[tuple[int, int], float, dict[str, int]]:
    """Return grid, factor of the scores and compile-time sizes of a kernel over q and so many keys."""
    rows, heads, head_dim = q.shape
    sizes = {"HEAD": head_dim, "KEYS": max(16, triton.next_power_of_2(keys)), "QUERIES": _QUERIES, "STEPS": _STEPS}
    scale = math.log2(math.e) / math.sqrt(head_dim)
    return (triton.cdiv(rows, _QUERIES * _STEPS), heads), scale, {**sizes, "num_warps": 4, "num_stages": 1}


def _largest(out: torch.Tensor, scale: torch.Tensor | None) -> float:
    return 0.0 if scale is None else LARGEST[out.dtype]


def _scale_or(scale: torch.Tensor | None, placeholder: torch.Tensor) -> torch.Tensor:
    """Return what to pass for an absent scale: any tensor, as it is not looked at."""
    return placeholder if scale is None else scale
