"""Linear layers with 8-bit weights: x [M, K] bf16, weight [N, K], scale [N, 1] fp32, bias [N] -> [M, N].

FP8 and INT8 kernels quantise the activations per row at run time, as LightX2V's schemes do
(fp8-torchao, int8-torchao); `dequantize` leaves activations as they are and runs everywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch.nn import functional

from ...logic.support import MATMUL_BACKENDS
from .probe import select_kernel
from .widen import widen

logger = logging.getLogger(__name__)

Matmul = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

# Largest value of a row after quantisation.
_LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
# Temporaries of one kernel call in fp32 or int32 are kept below this many elements (256 MiB).
_MAX_ELEMENTS = 64 * 1024**2
# torch._int_mm on CUDA takes more than 16 rows; torch._scaled_mm has no kernel for some long weights and one row.
_MIN_ROWS = 32


def dequantize(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Multiply in the dtype of `x`. Both 8-bit types are exact in bf16, so the scale goes on the result."""
    wide = widen(weight, x.new_empty(weight.shape)) if weight.is_cpu else weight.to(x.dtype)
    out = functional.linear(x, wide)
    return torch.addcmul(bias, out, scale.flatten(), out=out)


def scaled_mm(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Multiply in FP8 with a scale per row on both sides; K and N are multiples of 16."""
    quantised, row_scale = _quantise_rows(_pad_rows(x), weight.dtype)
    out = torch._scaled_mm(
        quantised,
        weight.t(),
        scale_a=row_scale,
        scale_b=scale.t(),
        bias=bias,
        out_dtype=x.dtype,
        use_fast_accum=True,
    )
    return out[: len(x)]


def int_mm(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Multiply in INT8 with a scale per row on both sides; K and N are multiples of 8."""
    out = x.new_empty(len(x), len(weight))
    for rows, part in zip(_row_chunks(x, len(weight)), _row_chunks(out, len(weight)), strict=True):
        quantised, row_scale = _quantise_rows(rows, weight.dtype)
        product = torch._int_mm(_pad_rows(quantised), weight.t())[: len(rows)]
        torch.addcmul(bias, product * row_scale, scale.flatten(), out=part)
    return out


def _pad_rows(x: torch.Tensor) -> torch.Tensor:
    """Return x with rows of zeros added up to what every kernel takes."""
    missing = _MIN_ROWS - len(x)
    return functional.pad(x, (0, 0, 0, missing)) if missing > 0 else x


def _quantise_rows(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x [M, K] in 8 bits and the fp32 scale [M, 1] that its values are to be multiplied with."""
    largest = torch.linalg.vector_norm(x, ord=float("inf"), dim=-1, keepdim=True).float()
    scale = largest.clamp_(min=1e-12) / _LARGEST[dtype]
    quantised = torch.empty_like(x, dtype=dtype)
    chunks = (_row_chunks(tensor, x.shape[-1]) for tensor in (x, scale, quantised))
    for rows, row_scale, part in zip(*chunks, strict=True):
        ratio = rows / row_scale
        part.copy_(ratio.round_() if dtype == torch.int8 else ratio)
    return quantised, scale


def _row_chunks(tensor: torch.Tensor, columns: int) -> tuple[torch.Tensor, ...]:
    """Split rows so that a chunk times `columns` stays small; compiled code fuses and needs no split."""
    if torch.compiler.is_compiling():
        return (tensor,)
    return torch.split(tensor, max(_MAX_ELEMENTS // columns, _MIN_ROWS))


_KERNELS: dict[str, Matmul] = {"scaled_mm": scaled_mm, "int_mm": int_mm, "dequantize": dequantize}
# What N and K must be a multiple of.
_MULTIPLES = {"scaled_mm": 16, "int_mm": 8, "dequantize": 1}
_TRIAL_DTYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}


def select_matmul(scheme: str, device: torch.device) -> str:
    """Return the name of the best back end for "fp8" or "int8" weights on `device`, and log it in one line."""
    trial = {"fp8": _fp8_trial, "int8": _int8_trial}[scheme]
    choice, _ = select_kernel(
        f"{scheme} matmul",
        MATMUL_BACKENDS,
        "auto",
        device,
        dtype=scheme,
        kernels=_KERNELS,
        reference="dequantize",
        trial=trial,
    )
    logger.info("LightX2V: %s.", choice)
    return choice.name


def matmul_for(name: str, shape: tuple[int, int]) -> Matmul:
    """Return the function of a back end for a weight [N, K]; sizes that it cannot take are dequantised."""
    return _KERNELS[name if all(size % _MULTIPLES[name] == 0 for size in shape) else "dequantize"]


def _fp8_trial(matmul: Matmul, device: torch.device) -> torch.Tensor:
    return _trial(matmul, device, torch.float8_e4m3fn)


def _int8_trial(matmul: Matmul, device: torch.device) -> torch.Tensor:
    return _trial(matmul, device, torch.int8)


def _trial(matmul: Matmul, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 64, generator=generator).to(device, torch.bfloat16)
    weight = (torch.randn(32, 64, generator=generator) * 20).round().to(device).to(dtype)
    scale = torch.rand(32, 1, generator=generator).to(device) + 0.5
    return matmul(x, weight, scale, torch.zeros(32, device=device, dtype=torch.bfloat16))
