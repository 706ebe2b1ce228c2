"""Every launch of the pack's Triton kernels at the 14B model's widths, on tensors of a few rows.

The numbers of rows and tokens are no compile-time constants of any kernel, so that a few rows compile what a clip runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from ...engine.constants import CLIP_VISION_ROWS
from ...engine.kernels import (
    attention_inputs,
    attention_int8_inputs,
    attention_int8_triton,
    attention_triton,
    fp8_triton,
    int8_triton,
    ops_triton,
    requantize_triton,
    vae_triton,
)
from ...engine.kernels.joined import join
from ...engine.kernels.matmul import Linear
from ...engine.kernels.ops import Rotary
from ...engine.memory.activations import branch_room

BF16, FP8, INT8 = torch.bfloat16, torch.float8_e4m3fn, torch.int8
DIM, FFN_DIM, HEADS, HEAD_DIM = 5120, 13824, 40, 128
ROWS, EPS = 300, 1e-6
# N and K of a block's linears.
LINEARS = ((DIM, DIM), (FFN_DIM, DIM), (DIM, FFN_DIM))


class Launch(NamedTuple):
    """One call of a function that launches kernels."""

    kernel: str
    """Whose rows of engine/backends/versions.py say where it is offered."""
    name: str
    start: Callable[[], object]


def launches() -> Iterator[Launch]:
    """Yield every launch; the tensors are on the CPU and hold nothing."""
    yield from _block_operations()
    yield from _vae_operations()
    yield from _matmuls()
    yield from _attentions()


def _eight_bit(rows: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(rows, width, dtype=dtype), torch.empty(rows, 1)


def _heads() -> torch.Tensor:
    return torch.empty(ROWS, HEADS, HEAD_DIM, dtype=BF16)


def _rotary() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(ROWS, HEAD_DIM // 2), torch.empty(ROWS, HEAD_DIM // 2)


def _block_operations() -> Iterator[Launch]:
    x, y, hidden = (torch.empty(ROWS, width, dtype=BF16) for width in (DIM, DIM, FFN_DIM))
    gate, mul, add = torch.empty(3, DIM)
    for kernel, dtype in (("block_ops", INT8), ("block_ops_fp8", FP8)):
        out, wide = _eight_bit(ROWS, DIM, dtype), _eight_bit(ROWS, FFN_DIM, dtype)
        name = str(dtype).removeprefix("torch.")
        for start, what in (
            (lambda out=out: ops_triton.quantize(x, *out), "quantize"),
            (lambda out=wide: ops_triton.quantize(hidden, *out), "quantize wide"),
            (lambda out=wide: ops_triton.gelu(hidden, *out), "gelu"),
            (lambda out=out: ops_triton.norm(x, mul, add, EPS, *out), "norm"),
            (lambda out=out: ops_triton.residual_norm(x, y, gate, mul, add, EPS, *out), "residual_norm gated"),
            (lambda out=out: ops_triton.residual_norm(x, y, None, mul, add, EPS, *out), "residual_norm"),
        ):
            yield Launch(kernel, f"{what} {name}", start)
    for columns, rank in ((DIM, 16), (FFN_DIM, 64), (DIM, 160)):
        room = branch_room(rank, joins_loras=True)
        (rows, scales), (weight, weight_scales) = _eight_bit(ROWS, room + columns, FP8), _eight_bit(DIM, columns, FP8)
        inner, up, balance = (
            torch.empty(*shape, dtype=dtype)
            for *shape, dtype in ((ROWS, 3 * rank, BF16), (DIM, rank, BF16), (rank, torch.float32))
        )
        joining = functools.partial(join, ops_triton, inner[:, :rank], up, balance, rows[:, room:], scales)
        layer = Linear(weight, weight_scales, up[:, 0])
        yield Launch("block_ops_fp8", f"join {columns}x{rank}", functools.partial(joining, layer))
    out16 = torch.empty_like(x)
    yield Launch("block_ops", "norm bfloat16", lambda: ops_triton.norm(x, mul, add, EPS, out16, None))
    yield Launch("block_ops", "gelu bfloat16", lambda: ops_triton.gelu(hidden, torch.empty_like(hidden), None))
    yield Launch("block_ops", "residual gated", lambda: ops_triton.residual(x, y, gate))
    yield Launch("block_ops", "residual", lambda: ops_triton.residual(x, y, None))
    for columns, rank in ((DIM, 16), (DIM, 32), (FFN_DIM, 64)):
        inner, up, out = (
            torch.empty(*shape, dtype=BF16) for shape in ((ROWS, 3 * rank), (columns, rank), (ROWS, columns))
        )
        yield Launch(
            "block_ops",
            f"add_product {columns}x{rank}",
            lambda x=inner[:, :rank], w=up, out=out: ops_triton.add_product(x, w, out),
        )
    weight, factors, q = torch.empty(DIM, dtype=BF16), torch.empty(ROWS), _heads()
    yield Launch("block_ops", "rms_rotary", lambda: ops_triton.rms_rotary(x, weight, EPS, HEADS, Rotary(*_rotary())))
    yield Launch("block_ops", "rms", lambda: ops_triton.rms_rotary(x, weight, EPS, HEADS, None))
    yield Launch("block_ops", "row_factors", lambda: ops_triton.row_factors(x, EPS, factors))
    for count in (49, 128):
        keys, values = torch.empty(2, count, HEADS, HEAD_DIM, dtype=BF16)
        weights = torch.empty(ROWS, HEADS, -(-count // 8) * 8, dtype=BF16)
        yield Launch(
            "block_ops",
            f"cross_attention {count} keys",
            lambda k=keys, v=values: ops_triton.cross_attention(q, factors, k, v, 464, torch.empty_like(q)),
        )
        yield Launch(
            "block_ops",
            f"cross_weights {count} keys",
            lambda k=keys, out=weights: ops_triton.cross_weights(q, factors, k, 464, out),
        )
    keys, values = torch.empty(2, CLIP_VISION_ROWS, HEADS, HEAD_DIM, dtype=BF16)
    yield Launch(
        "block_ops",
        f"add_cross_attention {CLIP_VISION_ROWS} keys",
        lambda: ops_triton.add_cross_attention(q, factors, keys, values, torch.empty_like(q)),
    )


def _vae_operations() -> Iterator[Launch]:
    ops = vae_triton.TritonOps()
    for channels in (96, 192, 384):
        x, out = torch.empty(2, 3, 4, channels, dtype=BF16)
        bias = torch.empty(channels, dtype=BF16)
        yield Launch(
            "vae_ops", f"norm_silu {channels}", lambda x=x, bias=bias, out=out: ops.norm_silu(x, bias, bias, out)
        )
        yield Launch(
            "vae_ops", f"norm_silu {channels} unbiased", lambda x=x, g=bias, out=out: ops.norm_silu(x, None, g, out)
        )
        yield Launch("vae_ops", f"add {channels}", lambda x=x, bias=bias, out=out: ops.add(x, bias, out))


def _matmuls() -> Iterator[Launch]:
    for kernel, multiply, dtype in (
        ("int8_matmul", int8_triton.int8_matmul, INT8),
        ("fp8_matmul", fp8_triton.fp8_matmul, FP8),
    ):
        for columns, inner in LINEARS:
            x, weight = _eight_bit(ROWS, inner, dtype), _eight_bit(columns, inner, dtype)
            bias, out = torch.empty(columns, dtype=BF16), torch.empty(ROWS, columns, dtype=BF16)
            yield Launch(
                kernel,
                f"{kernel} {columns}x{inner}",
                lambda multiply=multiply, x=x, weight=weight, bias=bias, out=out: multiply(*x, *weight, bias, out),
            )
    for columns in (DIM, FFN_DIM):
        out, bias = torch.empty(ROWS, columns, dtype=BF16), torch.empty(columns, dtype=BF16)
        scales = torch.empty(ROWS, 1), torch.empty(columns)
        yield Launch(
            "scales", f"apply_scales {columns}", lambda out=out, s=scales, b=bias: fp8_triton.apply_scales(out, *s, b)
        )
    for inner in (DIM, FFN_DIM):
        weight = _eight_bit(4, inner, FP8)
        yield Launch("requantize", f"requantize {inner}", lambda weight=weight: requantize_triton.requantize(*weight))


def _attentions() -> Iterator[Launch]:
    norms = (torch.empty(DIM, dtype=BF16), torch.empty(DIM, dtype=BF16))
    for groups in (1, 4):
        yield Launch(
            "attention_fp8",
            f"prepare, {groups} scales a block",
            lambda groups=groups: attention_inputs.prepare(
                _heads(), _heads(), _heads(), norms, EPS, _rotary(), key_groups=groups
            ),
        )
    codes = attention_inputs.codes_of(_heads())
    blocks = -(-ROWS // attention_inputs.KEY_BLOCK)
    prepared = attention_inputs.Prepared(
        q=codes,
        k=codes,
        query_scales=torch.empty(HEADS, attention_inputs.QUERY_SCALES * -(-ROWS // attention_inputs.QUERY_BLOCK)),
        key_scales=torch.empty(HEADS, blocks),
        values=torch.empty(HEADS, HEAD_DIM, blocks * attention_inputs.KEY_BLOCK, dtype=FP8),
        value_peaks=torch.empty(HEADS * HEAD_DIM),
    )
    yield Launch("attention_fp8", "attend", lambda: attention_triton.attend(prepared, _heads()))
    yield Launch(
        "attention_int8",
        "prepare",
        lambda: attention_int8_inputs.prepare(_heads(), _heads(), _heads(), norms, EPS, _rotary()),
    )
    inputs = attention_int8_inputs.Int8Prepared(
        q=codes,
        k=codes,
        query_scales=torch.empty(HEADS, ROWS),
        key_scales=torch.empty(HEADS, 2 * blocks),
        values=torch.empty(HEADS, HEAD_DIM, blocks * attention_inputs.KEY_BLOCK, dtype=INT8),
        value_steps=torch.empty(HEADS * HEAD_DIM),
        value_means=torch.empty(HEADS * HEAD_DIM),
    )
    yield Launch("attention_int8", "attend", lambda: attention_int8_triton.attend(inputs, _heads()))
