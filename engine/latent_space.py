"""The two spaces of Wan2.1 latents: normalized inside the engine, un-normalized in ComfyUI's LATENT."""

from __future__ import annotations

import torch

from .constants import LATENT_MEAN, LATENT_STD


def normalize(samples: torch.Tensor) -> torch.Tensor:
    """Return `(samples - mean) / std` per channel: LATENT to what transformer and decoder work with.

    Args:
        samples: [..., 16, T, h, w], any device and float type.

    Returns:
        The same shape, float32, on the same device. Equal to ComfyUI's latent_formats.Wan21.process_in.
    """
    return (samples.float() - _per_channel(LATENT_MEAN, samples)) / _per_channel(LATENT_STD, samples)


def denormalize(latents: torch.Tensor) -> torch.Tensor:
    """Return `latents * std + mean` per channel, the inverse of `normalize`.

    Args:
        latents: [..., 16, T, h, w], any device and float type.

    Returns:
        The same shape, float32, on the same device. Equal to ComfyUI's latent_formats.Wan21.process_out.
    """
    return latents.float() * _per_channel(LATENT_STD, latents) + _per_channel(LATENT_MEAN, latents)


def broken_share(latents: torch.Tensor) -> float:
    """Return how much of latents is NaN or infinite, from 0 to 1; counted, as a mean of float32 loses one of many."""
    return int((~torch.isfinite(latents)).sum()) / max(latents.numel(), 1)


def _per_channel(values: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=like.device).view(-1, 1, 1, 1)
