"""8-bit weights in FP8 to INT8 in their own memory, for cards without FP8 (compute capability 8.0 and 8.6).

Such a card would widen FP8 weights to BF16 and multiply at a quarter of the rate of INT8. The new codes are wrong by at
most half a step, the row's largest weight / 254. Beside what FP8 has already taken that is little: rows of 5,120 normal
weights are 2.65 % off in FP8 (relative L2) and 2.81 % when put to INT8 afterwards, of Laplace's distribution 2.64 % and
3.04 %, of Student's with 5 degrees of freedom 2.61 % and 3.36 %. What it adds is the row's largest weight over its root
mean square, / 440; `requantization_error` measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from .quantize import quantize


def requantize(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Turn weight [N, K] float8_e4m3fn into INT8 with a scale per row, in place, in plain torch.

    Args:
        weight: overwritten. Its code for NaN, which no usable weight has, gives a row of no use.
        scale: fp32 [N, 1], what a row is multiplied with; changed in place.

    Returns:
        The INT8 weight: the same memory.
    """
    codes = weight.view(torch.int8)
    steps = torch.empty_like(scale)
    quantize(weight, codes, steps)
    scale.mul_(steps)
    return codes


def requantize_all(
    requantize: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Requantize every weight whose scale is there, in place.

    Args:
        requantize: one weight, here or in requantize_triton.py.
        tensors: by name; `X.weight` in 8 bits holds the codes of FP8, as INT8 that it is going to be, beside its
            `X.weight_scale`.
    """
    for name, weight in tensors.items():
        scale = tensors.get(f"{name}_scale")
        if scale is not None:
            requantize(weight.view(torch.float8_e4m3fn), scale)


def requantization_error(weight: torch.Tensor) -> torch.Tensor:
    """Return how far `requantize` would move each row of weight [N, K] float8_e4m3fn, relative L2, fp32 [N].

    FP8's own rounding is about 0.026 on any distribution, so that a row with 0.026 here ends up 1.4 times as far off.
    """
    codes, steps = weight.clone(), weight.new_ones(len(weight), 1, dtype=torch.float32)
    moved = requantize(codes, steps).float() * steps
    exact = weight.float()
    distance: torch.Tensor = torch.linalg.vector_norm(moved - exact, dim=1)
    length: torch.Tensor = torch.linalg.vector_norm(exact, dim=1)
    return distance / length.clamp_(min=1e-12)
