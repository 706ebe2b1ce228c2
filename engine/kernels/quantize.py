"""Activations to 8 bits with a scale per row, in plain torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

# Largest value of a row after quantization.
LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
# What the largest value of a row of zeros is taken for.
SMALLEST = 1e-12
# Elements of one fp32 temporary (16 MiB). A few live at a time, and must be small beside a block's activations.
_MAX_ELEMENTS = 4 * 1024**2


def quantize(x: torch.Tensor, out: torch.Tensor, scale: torch.Tensor) -> None:
    """Write x [rows, D], any floating dtype, to out [rows, D], float8_e4m3fn or int8 (half to even).

    scale, fp32 [rows, 1], takes what the values are to be multiplied with: the row's largest magnitude / 448 or / 127.
    A row of zeros gets zeros and a tiny scale.
    """
    limit = LARGEST[out.dtype]
    for rows in row_chunks(x):
        values = x[rows].float()
        largest = torch.linalg.vector_norm(values, ord=float("inf"), dim=-1, keepdim=True).clamp_(min=SMALLEST)
        scale[rows] = largest * (1 / limit)
        # Not limit / largest: on CUDA that is rounded twice, and fewer values would agree with the Triton kernels'.
        ratio = values * (torch.full_like(largest, limit) / largest)
        out[rows] = ratio.round_() if out.dtype == torch.int8 else ratio


def row_chunks(x: torch.Tensor, max_elements: int = _MAX_ELEMENTS) -> Iterator[slice]:
    """Split the rows of x [rows, D] so that a chunk's copy has at most so many elements."""
    step = max(max_elements // x.shape[-1], 1)
    return (slice(start, start + step) for start in range(0, len(x), step))
