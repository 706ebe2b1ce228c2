"""Latents to tokens: Wan's patch embedding as the matrix product that a convolution of stride one patch is."""

from __future__ import annotations

import torch

from ..constants import PATCH_SIZE

Grid = tuple[int, int, int]
"""Tokens along time, height and width."""


def grid_of(latents: torch.Tensor) -> Grid:
    """Return how many tokens latents [channels, T, h, w] are."""
    frames, height, width = (size // patch for size, patch in zip(latents.shape[1:], PATCH_SIZE, strict=True))
    return frames, height, width


def embed_patches(latents: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor) -> None:
    """Write the tokens of latents [channels, T, h, w] to out [N, D]; weight [D, channels, 1, 2, 2], bias [D].

    Without the copies of a convolution, and without cuDNN's 3D convolutions in BF16, which take gigabytes in some
    versions.
    """
    frames, height, width = grid_of(latents)
    _, patch_height, patch_width = PATCH_SIZE
    patches = latents.reshape(-1, frames, height, patch_height, width, patch_width).permute(1, 2, 4, 0, 3, 5)
    torch.addmm(bias, patches.reshape(len(out), -1).to(out.dtype), weight.flatten(1).t(), out=out)
