"""The operations of ops.py in plain torch: any device; what ops_triton.py is measured against.

Computed some rows at a time, so that fp32 temporaries stay small beside a block's activations.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from .joined import join_inputs, join_weight
from .ops import Rotary
from .quantize import quantize, row_chunks

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


def norm(
    x: torch.Tensor,
    mul: torch.Tensor,
    add: torch.Tensor,
    eps: float,
    out: torch.Tensor,
    scale: torch.Tensor | None,
) -> None:
    """Write the modulated layer norm of x; see Ops.norm."""
    for rows in row_chunks(x):
        normal = functional.layer_norm(x[rows].float(), x.shape[-1:], eps=eps)
        _write(normal.mul_(mul).add_(add), out[rows], None if scale is None else scale[rows])


def residual(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor | None) -> None:
    """Add y * gate to x in place; see Ops.residual."""
    for rows in row_chunks(x):
        change = y[rows].to(torch.float32, copy=True)
        x[rows] = (change if gate is None else change.mul_(gate)).add_(x[rows])


def add_product(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    """Add a product of small inner size to out in place; see Ops.add_product."""
    out.addmm_(x, weight.t())


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
    residual(x, y, gate)
    norm(x, mul, add, eps, out, scale)


def gelu(h: torch.Tensor, out: torch.Tensor, scale: torch.Tensor | None) -> None:
    """Write the tanh-GELU of h; see Ops.gelu."""
    for rows in row_chunks(h):
        values = functional.gelu(h[rows].float(), approximate="tanh")
        _write(values, out[rows], None if scale is None else scale[rows])


def rms_rotary(x: torch.Tensor, weight: torch.Tensor, eps: float, heads: int, rotary: Rotary | None) -> None:
    """Normalize and rotate x in place; see Ops.rms_rotary."""
    for rows in row_chunks(x):
        wide = x[rows].to(torch.float32, copy=True)
        wide.mul_(_rms_factors(wide, eps)[:, None]).mul_(weight)
        if rotary is None:
            x[rows] = wide
            continue
        pairs = wide.view(len(wide), heads, -1, 2)
        first, second = pairs.unbind(-1)
        cos, sin = rotary.cos[rows, None], rotary.sin[rows, None]
        pairs = x[rows].view(pairs.shape)
        pairs[..., 0] = first * cos - second * sin
        pairs[..., 1] = first * sin + second * cos


def row_factors(x: torch.Tensor, eps: float, out: torch.Tensor) -> None:
    """Write the factors of the RMS norm of x; see Ops.row_factors."""
    for rows in row_chunks(x):
        out[rows] = _rms_factors(x[rows].float(), eps)


def cross_attention(
    q: torch.Tensor, factors: torch.Tensor, k: torch.Tensor, v: torch.Tensor, repeats: int, out: torch.Tensor
) -> None:
    """Attend to keys of which the last counts `repeats` times; see Ops.cross_attention."""
    k, v = (torch.cat([part, part[-1:].expand(repeats - 1, -1, -1)]).transpose(0, 1)[None] for part in (k, v))
    for rows in row_chunks(q.flatten(1)):
        queries = (q[rows] * factors[rows, None, None]).to(q.dtype).transpose(0, 1)[None]
        out[rows] = functional.scaled_dot_product_attention(queries, k, v)[0].transpose(0, 1)


def add_cross_attention(
    q: torch.Tensor, factors: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor
) -> None:
    """Add the attention to more keys; see Ops.add_cross_attention."""
    k, v = (part.transpose(0, 1)[None] for part in (k, v))
    for rows in row_chunks(q.flatten(1)):
        queries = (q[rows] * factors[rows, None, None]).to(q.dtype).transpose(0, 1)[None]
        out[rows] += functional.scaled_dot_product_attention(queries, k, v)[0].transpose(0, 1)


def cross_weights(q: torch.Tensor, factors: torch.Tensor, k: torch.Tensor, repeats: int, out: torch.Tensor) -> None:
    """Write the weights of keys of which the last counts `repeats` times; see Ops.cross_weights."""
    keys = k.permute(1, 2, 0).float()
    for rows in row_chunks(q.flatten(1)):
        queries = q[rows] * (factors[rows, None, None] * q.shape[2] ** -0.5)
        scores = torch.bmm(queries.transpose(0, 1), keys)
        scores[..., -1] += math.log(repeats)
        out[rows] = functional.pad(scores.softmax(-1), (0, out.shape[2] - len(k))).transpose(0, 1)


def _rms_factors(wide: torch.Tensor, eps: float) -> torch.Tensor:
    """Return one over the root mean square of each row of wide, fp32."""
    return torch.rsqrt(wide.square().mean(-1) + eps)


def _write(values: torch.Tensor, out: torch.Tensor, scale: torch.Tensor | None) -> None:
    """Write fp32 values to out in its dtype."""
    if scale is None:
        out.copy_(values)
    else:
        quantize(values, out, scale)
