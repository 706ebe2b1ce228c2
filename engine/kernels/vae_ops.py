"""What the VAE decoder computes between its convolutions: in plain torch, or with Triton in one pass each.

Frames are [height, width, channels], so that a pixel's channels lie together.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional

# Norms are at least this, as in upstream's F.normalize: pixels of zeros stay zeros.
SMALLEST_NORM = 1e-12


class VaeOps(Protocol):
    """The operations; all launch on the current stream and never wait for the device."""

    def norm_silu(self, x: torch.Tensor, bias: torch.Tensor | None, gamma: torch.Tensor, out: torch.Tensor) -> None:
        """Write the SiLU of `normalize(x + bias, gamma)` to `out`, whose pixels may lie apart."""

    def add(self, x: torch.Tensor, bias: torch.Tensor, shortcut: torch.Tensor) -> None:
        """Add bias [channels] and `shortcut` to x in place."""


def normalize(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """Return x with every pixel's channels scaled to length sqrt(channels), times gamma [channels]."""
    channels = x.shape[-1]
    return functional.rms_norm(x, (channels,), gamma, SMALLEST_NORM**2 / channels)


class TorchOps:
    """VaeOps in plain torch: any device."""

    def norm_silu(self, x: torch.Tensor, bias: torch.Tensor | None, gamma: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(functional.silu(normalize(x if bias is None else x + bias, gamma), inplace=True))

    def add(self, x: torch.Tensor, bias: torch.Tensor, shortcut: torch.Tensor) -> None:
        x.add_(bias).add_(shortcut)
