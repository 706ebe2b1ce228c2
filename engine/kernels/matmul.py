"""Linear layers with weights in 8 bits or BF16.

FP8 and INT8 kernels multiply activations that were quantized per row at run time, as LightX2V's schemes do
(fp8-torchao, int8-torchao); `dequantize` leaves activations as they are and runs everywhere.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from .fp8_tensor import ApplyScales, apply_scales, tensor_matmul
from .quantize import quantize, row_chunks
from .widen import widen

Matmul = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

# What the activations are to be quantized to; not at all for the other back ends.
ACTIVATION_DTYPES = {
    "scaled_mm": torch.float8_e4m3fn,
    "fp8_triton": torch.float8_e4m3fn,
    "scaled_mm_tensor": torch.float8_e4m3fn,
    "int_mm": torch.int8,
    "int_triton": torch.int8,
}
# torch._int_mm on CUDA takes more than 16 rows; torch._scaled_mm has no kernel for some long weights and one row.
_MIN_ROWS = 32
# Elements of torch._int_mm's product, in int32 and again in fp32 (128 MiB): fewer rows at a time would be slow.
_MAX_PRODUCT = 16 * 1024**2


@dataclass(frozen=True)
class Linear:
    """The weights of a linear layer: weight [N, K] BF16, FP8 or INT8; weight_scale fp32 [N, 1] or None; bias [N]."""

    weight: torch.Tensor
    weight_scale: torch.Tensor | None
    bias: torch.Tensor


def linear(
    x: torch.Tensor, scale: torch.Tensor | None, weights: Linear, out: torch.Tensor, *, backend: str | None = None
) -> None:
    """Write x @ (weight * weight_scale)^T + bias to out [M, N] in BF16.

    Args:
        x: [M, K], in 8 bits with its `scale`, or BF16. Rows are dense.
        scale: fp32 [M, 1], what the rows of x are to be multiplied with; None where x is BF16.
        backend: a name of ACTIVATION_DTYPES; None takes plain torch's for the dtypes.
    """
    if scale is None:
        name = "bf16" if weights.weight_scale is None else "dequantize"
    else:
        name = backend or {torch.float8_e4m3fn: "scaled_mm", torch.int8: "int_mm"}[x.dtype]
    _KERNELS[name](x, scale, weights, out)


def _bf16(x: torch.Tensor, scale: None, weights: Linear, out: torch.Tensor) -> None:
    torch.addmm(weights.bias, x, weights.weight.t(), out=out)


def _dequantize(x: torch.Tensor, scale: None, weights: Linear, out: torch.Tensor) -> None:
    """Multiply in the dtype of `x`. Both 8-bit types are exact in BF16, so the scale goes on the result."""
    stored, column_scale = weights.weight, _flat_scale(weights)
    wide = widen(stored, x.new_empty(stored.shape))
    torch.mm(x, wide.t(), out=out)
    torch.addcmul(weights.bias, out, column_scale, out=out)


def _scaled_mm(x: torch.Tensor, scale: torch.Tensor, weights: Linear, out: torch.Tensor) -> None:
    if len(x) < _MIN_ROWS:
        padded = out.new_empty(_MIN_ROWS, out.shape[1])
        _scaled_mm(_pad_rows(x), _pad_rows(scale), weights, padded)
        out.copy_(padded[: len(x)])
        return
    torch._scaled_mm(
        x,
        weights.weight.t(),
        scale_a=scale,
        scale_b=_flat_scale(weights)[None],
        bias=weights.bias,
        out_dtype=out.dtype,
        use_fast_accum=True,
        out=out,
    )


def _fp8_triton(x: torch.Tensor, scale: torch.Tensor, weights: Linear, out: torch.Tensor) -> None:
    from .fp8_triton import fp8_matmul

    fp8_matmul(x, scale, weights.weight, _flat_scale(weights), weights.bias, out)


def _scaled_mm_tensor(x: torch.Tensor, scale: torch.Tensor, weights: Linear, out: torch.Tensor) -> None:
    tensor_matmul(x, scale, weights.weight, _flat_scale(weights), weights.bias, out, _apply_scales(x.device))


@functools.cache
def _apply_scales(device: torch.device) -> ApplyScales:
    """Return Triton's one pass where Triton is, else plain torch's two."""
    if device.type == "cuda" and importlib.util.find_spec("triton"):
        from .fp8_triton import apply_scales as fused

        return fused
    return apply_scales


def _int_mm(x: torch.Tensor, scale: torch.Tensor, weights: Linear, out: torch.Tensor) -> None:
    column_scale = _flat_scale(weights)
    for rows in row_chunks(out, _MAX_PRODUCT):
        product = torch._int_mm(_pad_rows(x[rows]), weights.weight.t())[: len(out[rows])]
        torch.addcmul(weights.bias, product * scale[rows], column_scale, out=out[rows])


def _int_triton(x: torch.Tensor, scale: torch.Tensor, weights: Linear, out: torch.Tensor) -> None:
    from .int8_triton import int8_matmul

    int8_matmul(x, scale, weights.weight, _flat_scale(weights), weights.bias, out)


_KERNELS: dict[str, Callable[..., None]] = {
    "bf16": _bf16,
    "dequantize": _dequantize,
    "scaled_mm": _scaled_mm,
    "fp8_triton": _fp8_triton,
    "scaled_mm_tensor": _scaled_mm_tensor,
    "int_mm": _int_mm,
    "int_triton": _int_triton,
}


def _flat_scale(weights: Linear) -> torch.Tensor:
    assert weights.weight_scale is not None, "8-bit weights come with a scale"
    return weights.weight_scale.flatten()


def _pad_rows(x: torch.Tensor) -> torch.Tensor:
    """Return x with rows of zeros added up to what every kernel takes."""
    missing = _MIN_ROWS - len(x)
    return functional.pad(x, (0, 0, 0, missing)) if missing > 0 else x


def _multiply(
    backend: str, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Quantize x [M, K] BF16 as the back end wants it, and multiply."""
    out = x.new_empty(len(x), len(weight))
    weights = Linear(weight, scale, bias)
    dtype = ACTIVATION_DTYPES.get(backend)
    if dtype is None:
        linear(x, None, weights, out)
        return out
    quantized = torch.empty_like(x, dtype=dtype)
    row_scale = x.new_empty(len(x), 1, dtype=torch.float32)
    quantize(x, quantized, row_scale)
    linear(quantized, row_scale, weights, out, backend=backend)
    return out


MATMULS: dict[str, Matmul] = {name: functools.partial(_multiply, name) for name in ("dequantize", *ACTIVATION_DTYPES)}
"""x [M, K] BF16, weight, scale, bias -> [M, N], by name of a back end."""
dequantize = MATMULS["dequantize"]
