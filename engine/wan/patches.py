"""Latents to tokens and back: Wan's patch embedding as the matrix product that a convolution of stride one patch is."""

from __future__ import annotations

import torch

from ..constants import PATCH_SIZE

Grid = tuple[int, int, int]
"""Tokens along time, height and width."""


def grid_of(latents: torch.Tensor) -> Grid:
    """Return how many tokens latents [channels, T, h, w] are."""
    frames, height, width = (size // patch for size, patch in zip(latents.shape[1:], PATCH_SIZE, strict=True))
    return frames, height, width


def embed_patches(
    latents: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor, rows: slice
) -> None:
    """Write these rows of the tokens of latents [channels, T, h, w] to out [rows, D]; weight [D, channels, 1, 2, 2],
    bias [D].

    Without the copies of a convolution, and without cuDNN's 3D convolutions in BF16, which take gigabytes in some
    versions.
    """
    frames, height, width = grid_of(latents)
    _, patch_height, patch_width = PATCH_SIZE
    patches = latents.reshape(-1, frames, height, patch_height, width, patch_width).permute(1, 2, 4, 0, 3, 5)
    patches = patches.reshape(frames * height * width, -1)[rows]
    torch.addmm(bias, patches.to(out.dtype), weight.flatten(1).t(), out=out)


def join_patches(patches: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return the latents [16, T, h, w] of all tokens' patches [N, 64]."""
    frames, height, width = grid
    _, patch_height, patch_width = PATCH_SIZE
    cells = patches.view(frames, height, width, patch_height, patch_width, -1).permute(5, 0, 1, 3, 2, 4)
    return cells.reshape(-1, frames, height * patch_height, width * patch_width)
