"""LoRAs of FP8 layers as more columns of the layer's own product: no pass over its output adds them.

    out = [branch | x] @ [up | weight]^T * x_scale * weight_scale + bias

The layer's scales are on these columns too, so that they hold hidden / x_scale and up / weight_scale, where hidden is
x @ down^T. Each is a sum of two FP8 numbers, about as exact as BF16, and three of their four products are made:

    [hidden | 16 rest of hidden | hidden] @ [up | up / 16 | rest of up]^T

Columns of hidden take a power of two from those of `up`, their balance, so that both are of a size that FP8 has room
around. A row of x or of the weight whose part of the branch would still be more than FP8 holds is shrunk by a power of
two, which its scale takes back. The columns come first: the tensor cores add them up while the sum is small, and lose
nothing of them.

These are plain torch's functions; joined_triton.py has the same.
"""

from __future__ import annotations

import math

import torch

from .matmul import Linear
from .ops import Ops
from .quantize import LARGEST, row_chunks

REST = 16.0
"""What a rest is stored times: as FP8 has four digits, it is then about as large as the number itself."""
# Root mean square of rows that fill FP8's range as a normal distribution does, and what it may be of hidden: rows of x
# seldom shrink then.
_FILLED, _MOST = 100.0, 16.0
_LARGEST = LARGEST[torch.float8_e4m3fn]


def join(
    ops: Ops,
    hidden: torch.Tensor,
    up: torch.Tensor,
    balance: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    layer: Linear,
) -> tuple[torch.Tensor, torch.Tensor, Linear]:
    """Return rows in FP8, their scales and a layer whose product is that of x and `layer` and hidden @ up^T.

    Args:
        hidden: [M, r] BF16: x times scale @ down^T.
        up: [N, r] BF16.
        balance: fp32 [r], powers of two; see balance_of.
        x, scale: [M, K] FP8, whose rows lie further apart than they are long, and [M, 1]; both may change, by the same
            powers of two.
        layer: in FP8.
    """
    assert layer.weight_scale is not None, "8-bit weights come with a scale"
    joined = x.as_strided((len(x), x.stride(0)), x.stride(), x.storage_offset() - room_before(x))
    ops.join_inputs(hidden, balance, x, scale, joined[:, : room_before(x)])
    weight, weight_scale = x.new_empty(len(layer.weight), x.stride(0)), torch.empty_like(layer.weight_scale)
    ops.join_weight(up, balance, layer.weight, layer.weight_scale, weight, weight_scale)
    return joined, scale, Linear(weight, weight_scale, layer.bias)


def room_before(x: torch.Tensor) -> int:
    """Return how many more columns rows [M, K] have room for: as many as they lie further apart than they are long."""
    return x.stride(0) - x.shape[1]


def balance_of(up: torch.Tensor, scale: torch.Tensor, down: torch.Tensor, columns: int) -> torch.Tensor:
    """Return what columns of hidden / x_scale are to be multiplied with, and those of up / weight_scale divided by.

    Args:
        up: [N, r], or some of its rows.
        scale: fp32 [N, 1], of the layer's weight, or those rows.
        down: [r, K], or some of its columns.
        columns: K.

    Returns:
        fp32 [r], powers of two.
    """
    hidden = torch.linalg.vector_norm(down.float(), dim=1) * (_FILLED * math.sqrt(columns / down.shape[1]))
    outputs = torch.linalg.vector_norm(up.float() / scale, dim=0) / math.sqrt(len(up))
    is_empty = (hidden == 0) | (outputs == 0)
    wanted = torch.where(is_empty, 1.0, torch.minimum((outputs / hidden).sqrt(), _MOST / hidden))
    return torch.ldexp(torch.ones_like(wanted), torch.frexp(wanted).exponent - 1)


def join_inputs(
    hidden: torch.Tensor, balance: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, out: torch.Tensor
) -> None:
    """Write the columns of a branch beside its input; see Ops.join_inputs."""
    out.zero_()
    for rows in row_chunks(x):
        values = hidden[rows].float() / scale[rows] * balance
        shrink = _shrink(values)
        x[rows] = (x[rows].float() * shrink).to(x.dtype)
        scale[rows] /= shrink
        main, rest = _split(values * shrink)
        _write(out[rows], [main, rest * REST, main])


def join_weight(
    up: torch.Tensor,
    balance: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    out: torch.Tensor,
    out_scale: torch.Tensor,
) -> None:
    """Write a layer's weight with the columns of a branch before it; see Ops.join_weight."""
    columns = weight.shape[1]
    room = out.shape[1] - columns
    out[:, :room].zero_()
    for rows in row_chunks(weight):
        values = up[rows].float() / scale[rows] / balance
        shrink = _shrink(values)
        out[rows, room:] = (weight[rows].float() * shrink).to(out.dtype)
        out_scale[rows] = scale[rows] / shrink
        main, rest = _split(values * shrink)
        _write(out[rows, :room], [main, main / REST, rest])


def _shrink(values: torch.Tensor) -> torch.Tensor:
    """Return the powers of two [rows, 1], 1 at most, that bring rows into FP8's range."""
    largest = values.abs().amax(1, keepdim=True)
    exponent = torch.frexp(largest * (1 / _LARGEST)).exponent.clamp(0, 126)
    return torch.ldexp(torch.ones_like(largest), -exponent)


def _split(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values rounded to FP8, and what is left."""
    main = values.clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn).float()
    return main, values - main


def _write(out: torch.Tensor, parts: list[torch.Tensor]) -> None:
    made = torch.cat(parts, dim=1)
    out[:, : made.shape[1]] = made.to(out.dtype)
