"""Which implementation of the operations runs here: Triton's where it works, else plain torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch

from ..errors import MissingDependencyError, UnsupportedHardwareError
from ..kernels.ops import Ops, Rotary
from ..kernels.quantize import LARGEST
from .table import BLOCK_BACKENDS, Choice
from .trials import find_machine, select_fused

logger = logging.getLogger(__name__)

TASK = "block kernels"
"""What trial runs of these are remembered under, see backends/trials.py."""

_ROWS, _HEADS, _HEAD_DIM, _EPS = 48, 3, 128, 1e-6


def select_ops(setting: str, device: torch.device) -> tuple[str, Ops]:
    """Return name and operations to use on `device`.

    Args:
        setting: "auto" takes Triton's where a trial run agrees with plain torch, "on" refuses anything else, "off" is
            plain torch.

    Raises:
        MissingDependencyError: "on", and Triton is not installed or does not import.
        UnsupportedHardwareError: "on", and the kernels do not run on this device.
    """
    loaders = {"torch": _load_torch} if setting == "off" else {"triton": _load_triton, "torch": _load_torch}
    choice, load = select_fused(TASK, device, loaders, _trial)
    if setting == "on" and choice.name != "triton":
        raise _refusal(choice, device)
    logger.info("LightX2V: %s.", choice)
    return choice.name, load()


def _load_torch() -> Ops:
    from ..kernels import ops_torch

    return ops_torch


def _load_triton() -> Ops:
    from ..kernels import ops_triton

    return ops_triton


def _refusal(choice: Choice, device: torch.device) -> MissingDependencyError | UnsupportedHardwareError:
    row = next(row for row in BLOCK_BACKENDS if row.name == "triton")
    sentence = f"compile is 'on', but the fused kernels cannot run here: {choice.passed_over[row.name]}."
    if device.type == "cuda" and row.package not in find_machine(device).packages:
        return MissingDependencyError(f"{sentence} Install Triton with `{row.install}`, or set compile to 'auto'.")
    return UnsupportedHardwareError(f"{sentence} Set compile to 'auto'.")


def _trial(load: Callable[[], Ops], device: torch.device) -> torch.Tensor:
    """Return what every operation makes of small random input, each result with a norm of one."""
    results = [result.float().flatten() for result in _run_all(load(), device)]
    return torch.cat([result / result.norm() for result in results])


def _run_all(ops: Ops, device: torch.device) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    width = _HEADS * _HEAD_DIM
    x, y = random(_ROWS, width), random(_ROWS, width)
    gate, mul, add = random(3, width, dtype=torch.float32)
    angles = random(_ROWS, _HEAD_DIM // 2, dtype=torch.float32)
    for dtype in _quantised_dtypes(device):
        out, scale = torch.empty_like(x, dtype=dtype), gate.new_empty(_ROWS, 1)
        ops.quantise(x, out, scale)
        yield out.float() * scale
        ops.residual_norm(x, y, gate, mul, add, _EPS, out, scale)
        yield out.float() * scale
        ops.gelu(y, out, scale)
        yield out.float() * scale
    ops.norm(x, mul, add, _EPS, y, None)
    ops.residual(x, y, gate)
    ops.rms_rotary(y, mul, _EPS, _HEADS, Rotary(angles.cos(), angles.sin()))
    yield from (x, y)
    factors = gate.new_empty(_ROWS)
    x.mul_(random(_ROWS, 1))
    ops.row_factors(x, _EPS, factors)
    q, k, v = (part.view(_ROWS, _HEADS, _HEAD_DIM) for part in (x, y, random(_ROWS, width)))
    attended = torch.empty_like(q)
    ops.cross_attention(q, factors, k, v, 464, attended)
    # NaN: columns after the keys are to be written too.
    weights = attended.new_full((_ROWS, _HEADS, _ROWS + 8), torch.nan)
    ops.cross_weights(q, factors, k, 464, weights)
    yield from (factors, attended, weights)


def _quantised_dtypes(device: torch.device) -> list[torch.dtype]:
    """Return the 8-bit types that the card multiplies."""
    has_fp8 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
    return [dtype for dtype in LARGEST if has_fp8 or dtype != torch.float8_e4m3fn]
