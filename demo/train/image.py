"""What an image-to-video transformer is given beside the noise: which frames are known, and their latents.

The known frames are encoded in their places among grey ones: the first, and in some clips the last. Beside the
latents go four channels that say for each of a latent frame's four frames whether it is known; the first latent frame
stands for one frame, which counts as four. Source: Wan2.2 wan/image2video.py.
"""

from __future__ import annotations

from typing import Any

import torch

from ...engine.constants import LATENT_CHANNELS, VAE_STRIDE
from . import vae as autoencoder
from .models import Generator, Sizes, build_generator
from .training import autocast

MASK_CHANNELS = VAE_STRIDE[0]
GIVEN_CHANNELS = MASK_CHANNELS + LATENT_CHANNELS


@torch.no_grad()
def encode_given(vae: Any, video: torch.Tensor, has_last: torch.Tensor) -> torch.Tensor:
    """Return what is given [B, 20, T, h, w] for clips [B, 3, F, H, W] in [-1, 1]: mask, then normalized latents.

    `has_last` [B] says of which clips the last frame is known too.
    """
    shown = torch.zeros_like(video)
    shown[:, :, 0] = video[:, :, 0]
    shown[has_last, :, -1] = video[has_last, :, -1]
    with autocast(video.device):
        latents = autoencoder.normalize(autoencoder.encode(vae, shown).float())
    known = torch.zeros(len(video), video.shape[2] - 1, device=video.device)
    known[:, -1] = has_last.float()
    known = torch.cat([torch.ones(len(video), MASK_CHANNELS, device=video.device), known], dim=1)
    mask = known.unflatten(1, (-1, MASK_CHANNELS)).transpose(1, 2)[..., None, None]
    return torch.cat([mask.expand(-1, -1, -1, *latents.shape[3:]), latents], dim=1)


def build_expert(sizes: Sizes, device: torch.device) -> Generator:
    """Return an untrained image-to-video transformer, and the text encoder."""
    return build_generator(sizes, device, LATENT_CHANNELS + GIVEN_CHANNELS)


@torch.no_grad()
def start_from_text(expert: Generator, generator: Generator) -> None:
    """Give an expert the weights of a text-to-video transformer; at first it does not heed what is given."""
    state = generator.transformer.state_dict()
    name = "patch_embedding.weight"
    widened = torch.zeros_like(expert.transformer.patch_embedding.weight)
    widened[:, :LATENT_CHANNELS] = state[name]
    expert.transformer.load_state_dict({**state, name: widened})
    expert.text_encoder.load_state_dict(generator.text_encoder.state_dict())
