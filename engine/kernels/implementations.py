"""Implementations of the operations by name: torch, or triton, which imports Triton."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .ops import Ops
from .vae_ops import TorchOps, VaeOps


def load_ops(name: str) -> Ops:
    """Return the operations of the transformer's blocks."""
    if name == "triton":
        from . import ops_triton

        return ops_triton
    from . import ops_torch

    return ops_torch


def load_requantize(name: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return what puts FP8 weights to INT8 in their memory, see requantize.py."""
    if name == "triton":
        from . import requantize_triton

        return requantize_triton.requantize
    from . import requantize

    return requantize.requantize


def load_vae_ops(name: str) -> VaeOps:
    """Return the operations of the VAE."""
    if name == "triton":
        from .vae_triton import TritonOps

        return TritonOps()
    return TorchOps()
