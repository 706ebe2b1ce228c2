"""What the VAE decoder computes between its convolutions: in plain torch, or with Triton in one pass each.

Frames are [height, width, channels], so that a pixel's channels lie together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import torch
from torch.nn import functional

from ..backends.trials import select_fused

logger = logging.getLogger(__name__)

# Norms are at least this, as in upstream's F.normalize: pixels of zeros stay zeros.
SMALLEST_NORM = 1e-12


class VaeOps(Protocol):
    """The operations; all launch on the current stream and never wait for the device."""

    def norm_silu(self, x: torch.Tensor, bias: torch.Tensor | None, gamma: torch.Tensor, out: torch.Tensor) -> None:
        """Write the SiLU of `normalise(x + bias, gamma)` to `out`, whose pixels may lie apart."""

    def add(self, x: torch.Tensor, bias: torch.Tensor, shortcut: torch.Tensor) -> None:
        """Add bias [channels] and `shortcut` to x in place."""


def normalise(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """Return x with every pixel's channels scaled to length sqrt(channels), times gamma [channels]."""
    channels = x.shape[-1]
    return functional.rms_norm(x, (channels,), gamma, SMALLEST_NORM**2 / channels)


class TorchOps:
    """VaeOps in plain torch: any device."""

    def norm_silu(self, x: torch.Tensor, bias: torch.Tensor | None, gamma: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(functional.silu(normalise(x if bias is None else x + bias, gamma), inplace=True))

    def add(self, x: torch.Tensor, bias: torch.Tensor, shortcut: torch.Tensor) -> None:
        x.add_(bias).add_(shortcut)


def select_ops(device: torch.device) -> VaeOps:
    """Return Triton's operations where a trial run on `device` agrees with plain torch, else plain torch's."""
    loaders: dict[str, Callable[[], VaeOps]] = {"triton": _load_triton, "torch": TorchOps}
    choice, load = select_fused("VAE kernels", device, loaders, _trial)
    logger.info("LightX2V: VAE decoder: %s.", choice)
    return load()


def _load_triton() -> VaeOps:
    from .vae_triton import TritonOps

    return TritonOps()


def _trial(load: Callable[[], VaeOps], device: torch.device) -> torch.Tensor:
    """Return what both operations make of small random input."""
    ops, generator = load(), torch.Generator().manual_seed(0)
    x, shortcut, out = (torch.randn(5, 7, 96, generator=generator).to(device, torch.bfloat16) for _ in range(3))
    bias, gamma = (torch.randn(96, generator=generator).to(device, torch.bfloat16) for _ in range(2))
    ops.norm_silu(x, bias, gamma, out)
    ops.add(x, bias, shortcut)
    return torch.stack([out, x])
