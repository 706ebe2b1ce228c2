"""Decoding with ComfyUI's own VAE, for the pack's decode node."""

from __future__ import annotations

from typing import Any

import torch

from ... import system
from ...constants import LATENT_CHANNELS
from ...errors import NonFiniteLatentsError, check_choice
from ...latent_space import broken_share
from ...memory.tiles import Tile
from ...report import attach, measure, records_of
from ...sentences.comfyui import Inputs
from ...sentences.refusals import Refusals
from ...settings import TILING_MODES
from ...shapes import decoding_problem, video_shape

# ComfyUI's networks for Wan2.1's latents: Wan's own and, in newer versions, the tiny autoencoder. HunyuanVideo's and
# Cosmos' latents have 16 channels too, and mean something else.
_NETWORKS = ("WanVAE", "TAEHV")
_USE = Inputs.USE_VAE()


def vae_problem(vae: Any) -> str | None:
    """Return a sentence that says why a VAE does not decode Wan2.1's latents, or None."""
    network = getattr(vae, "first_stage_model", None)
    if network is None:
        return Inputs.NO_VAE(name=type(vae).__name__, use=_USE)
    channels, axes = getattr(vae, "latent_channels", None), getattr(vae, "latent_dim", None)
    names = [each.__name__ for each in type(network).__mro__]
    if any(name in names for name in _NETWORKS) and (channels, axes) == (LATENT_CHANNELS, 3):
        return None
    kinds: dict[Any, str] = {1: "sound", 2: "image", 3: "video"}
    kind = kinds.get(axes, "unknown")
    return Inputs.OTHER_VAE(names=names[0], channels=channels, kind=kind, latent_channels=LATENT_CHANNELS, use=_USE)


def decode(vae: Any, samples: torch.Tensor, *, tiling: str) -> torch.Tensor:
    """Decode through ComfyUI's VAE, as its own nodes do.

    Args:
        vae: one of Wan2.1's latents.
        samples: [B, 16, T, h, w] un-normalized.
        tiling: on: in tiles of the size that the pack's own decode takes first. auto and off: whole, and in ComfyUI's
            smallest tiles where it runs out of memory, as its VAE always does.

    Returns:
        [B * F, H, W, 3] in [0, 1].

    Raises:
        ValueError: the VAE is another model's, or the shape of `samples` is.
        NonFiniteLatentsError: the VAE makes NaN or infinity of them.
    """
    check_choice("tiling", tiling, TILING_MODES)
    problem = vae_problem(vae) or decoding_problem(samples.shape)
    if problem:
        raise ValueError(problem)
    device = system.compute_device()
    with measure("decode", device) as decoding:
        if tiling == "on":
            tile = Tile()
            frames = vae.decode_tiled(samples, tile_x=tile.size, tile_y=tile.size, overlap=tile.overlap)
        else:
            frames = vae.decode(samples)
        network = type(vae.first_stage_model).__name__
        decoding.details = {"tiled": tiling == "on", "engine": "ComfyUI", "vae": network, "device": str(device)}
    if broken_share(frames):
        raise NonFiniteLatentsError(Refusals.NO_FRAMES())
    _, height, width = video_shape(samples.shape)
    return attach(frames.reshape(-1, height, width, frames.shape[-1]), records_of(samples), [decoding])
