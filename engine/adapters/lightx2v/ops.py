"""Attention and matmul ops for LightX2V: choose a back end that works here, and register what LightX2V lacks.

Attention functions are the pack's own (engine/kernels), so that a name means the same kernel in both engines;
LightX2V's op `sage_attn2` is SageAttention's Triton kernel on some cards. Matmuls are LightX2V's where it has them.
Imports LightX2V: import this module after bootstrap.import_lightx2v().
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from lightx2v.common.ops.attn.template import AttnWeightTemplate
from lightx2v.common.ops.mm.mm_weight import MMWeightQuantTemplate
from lightx2v.utils.registry_factory import ATTN_WEIGHT_REGISTER, MM_WEIGHT_REGISTER

from ...backends.trials import find_machine, select_kernel
from ...kernels import attention, matmul
from .config import MATMUL_BACKENDS, MATMUL_OPS, OURS

logger = logging.getLogger(__name__)


def select_attention(requested: str, device: torch.device) -> tuple[str, str]:
    """Return the name of the attention back end to use, and of the op that runs it.

    Raises:
        ValueError: the name is unknown.
        MissingDependencyError, UnsupportedHardwareError: a named back end cannot run here.
    """
    name, kernel = attention.select_attention(requested, device)
    op = f"{OURS}{name}"
    if op not in ATTN_WEIGHT_REGISTER:
        ATTN_WEIGHT_REGISTER[op] = _attention_class(kernel)
    return name, op


def select_matmul(scheme: str, requested: str, device: torch.device) -> tuple[str, str]:
    """Return the name of the matmul back end to use for "bf16", "fp8" or "int8" weights, and of its op.

    `auto` takes the fastest that works and logs one line: what, and why not the better ones.

    Raises:
        MissingDependencyError, UnsupportedHardwareError: a named back end cannot run here.
    """
    if scheme == "bf16":
        return scheme, MATMUL_OPS[scheme, scheme]
    _register_matmuls()
    machine = find_machine(device)
    # LightX2V tried to import all of them when it was imported.
    packages = {row.package: "" for row in MATMUL_BACKENDS if row.package in sys.modules}
    machine = replace(machine, packages={**machine.packages, **packages})
    choice, op = select_kernel(
        f"{scheme} matmul",
        MATMUL_BACKENDS,
        requested,
        device,
        dtype=scheme,
        kernels={name: op for (dtype, name), op in MATMUL_OPS.items() if dtype == scheme},
        reference="dequantize",
        trial={"fp8": _fp8_trial, "int8": _int8_trial}[scheme],
        machine=machine,
    )
    logger.info("LightX2V: %s.", choice)
    return choice.name, op


def _fp8_trial(op: str, device: torch.device) -> torch.Tensor:
    return _trial(op, device, torch.float8_e4m3fn)


def _int8_trial(op: str, device: torch.device) -> torch.Tensor:
    return _trial(op, device, torch.int8)


def _trial(op: str, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 128, generator=generator).to(device, torch.bfloat16)
    weight = (torch.randn(256, 128, generator=generator) * 20).round().to(device).to(dtype)
    scale = torch.rand(256, 1, generator=generator).to(device) + 0.5
    bias = torch.zeros(256, device=device, dtype=torch.bfloat16)
    module = MM_WEIGHT_REGISTER[op]("x.weight", "x.bias")
    module.load({"x.weight": weight, "x.weight_scale": scale, "x.bias": bias})
    product: torch.Tensor = module.apply(x)
    return product


def _register_matmuls() -> None:
    for op in set(MATMUL_OPS.values()):
        if op.startswith(OURS) and op not in MM_WEIGHT_REGISTER:
            MM_WEIGHT_REGISTER[op] = _matmul_class(op.removeprefix(OURS))


def _attention_class(kernel: attention.Attention) -> type[Any]:
    class KernelAttention(AttnWeightTemplate):  # type: ignore[misc]
        """An attention function of engine/kernels as an op: q, k, v [S, H, D] -> [S, H * D]."""

        def __init__(self) -> None:
            self.config: dict[str, Any] = {}

        def apply(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: Any) -> torch.Tensor:
            return kernel(q[None], k[None], v[None])[0].flatten(1)

    return KernelAttention


def _matmul_class(name: str) -> type[Any]:
    class KernelLinear(MMWeightQuantTemplate):  # type: ignore[misc]
        """A matmul function of engine/kernels as an op: x [M, K] -> [M, N]."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.weight_need_transpose = False
            self.scale_force_fp32 = True

        def apply(self, input_tensor: torch.Tensor) -> torch.Tensor:
            multiply: Callable[..., torch.Tensor] = matmul.matmul_for(name, tuple(self.weight.shape))
            return multiply(input_tensor, self.weight, self.weight_scale, self.bias)

    return KernelLinear
