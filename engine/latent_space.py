"""The two spaces of Wan2.1 latents: normalized inside the engine, un-normalized in ComfyUI's LATENT."""

from __future__ import annotations

import torch

from .constants import LATENT_MEAN, LATENT_STD
from .sentences.sampling import Sampling

# Of normalized latents. Over the videos that Wan's VAE was measured on, each channel has mean 0 and standard deviation
# 1 (LATENT_MEAN, LATENT_STD); of one clip, which may be of one colour, no channel is far above. The demo's clips, of
# any prompt and size, have 0.06 to 1.25, and means up to 1.4.
_MOST_STD, _MOST_CHANNEL_STD, _MOST_CHANNEL_MEAN = 2.0, 4.0, 6.0
# The squared difference of neighbours by that of any two: 1 of noise, less of any picture (of the demo's clips 0.09 to
# 0.82, of prompts that it does not know up to 1.04); more is a pattern from one latent to the next. Of fewer latents
# in a frame nothing is said.
_MOST_ROUGHNESS, _FEWEST_IN_FRAME = 1.15, 64


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


def doubt_about(samples: torch.Tensor) -> str:
    """Return what is odd about the latents of clips, each by itself, as no video of Wan has them; "" of usual ones.

    Takes a core of a CPU 20 ms for 81 frames of 832x480.

    Args: samples: [B, 16, T, h, w] un-normalized, any device and float type.
    """
    return next((doubt for clip in samples if (doubt := _doubt_about_one(clip))), "")


def _doubt_about_one(clip: torch.Tensor) -> str:
    is_large = min(clip.shape[-2:]) > 1 and clip.shape[-2] * clip.shape[-1] >= _FEWEST_IN_FRAME
    sizes = []
    # A channel at a time stays in the processor's cache.
    for values in clip.float():
        steps = [values.diff(dim=axis).square().mean() for axis in (1, 2)] if is_large else []
        sizes.append(torch.stack([*torch.var_mean(values, correction=0), *steps]))
    # All at once, as each would wait for the device.
    found = torch.stack(sizes).tolist()
    means = [abs(each[1] - mean) / std for each, mean, std in zip(found, LATENT_MEAN, LATENT_STD, strict=True)]
    variances = [each[0] / std**2 for each, std in zip(found, LATENT_STD, strict=True)]
    differences = [sum(each[2:]) / 4 / std**2 for each, std in zip(found, LATENT_STD, strict=True)]
    variance, largest = sum(variances) / len(variances), max(variances)
    if variance > _MOST_STD**2 or largest > _MOST_CHANNEL_STD**2:
        return Sampling.WIDE_LATENTS(std=variance**0.5, largest=largest**0.5)
    if max(means) > _MOST_CHANNEL_MEAN:
        return Sampling.SHIFTED_LATENTS(mean=max(means))
    roughness = sum(differences) / sum(variances) if variance > 0 else 0.0
    return Sampling.ROUGH_LATENTS(roughness=roughness) if roughness > _MOST_ROUGHNESS else ""


def _per_channel(values: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=like.device).view(-1, 1, 1, 1)
