"""Frames that are given beside the text, as the transformer wants them: a mask before latents, and rows of CLIP Vision.

Sources: Wan2.1 wan/image2video.py; ComfyUI comfy/model_base.py (WAN21), whose keys `Given` has.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..checkpoints.formats import WanArchitecture
from ..constants import LATENT_CHANNELS, MASK_CHANNELS
from ..inputs import check_finite, check_floats, describe
from ..interfaces import Conditioning
from ..latent_space import normalize
from ..memory.clip import Clip
from ..sentences.stages import Stages
from ..sentences.tensors import Tensors
from ..shapes import video_shape

logger = logging.getLogger(__name__)

# Widths of other CLIP Vision models, to say where a wrong output comes from.
_KNOWN_IMAGE_WIDTHS = {768: "ViT-B", 1024: "ViT-L", 1152: "SigLIP", 1664: "ViT-bigG"}
_IMAGE_NODES = Stages.IMAGE_NODES()
NO_IMAGE = Stages.NO_IMAGE(image_nodes=_IMAGE_NODES)


@dataclass(frozen=True, kw_only=True)
class Given:
    """What of a clip is given beside its text, in the terms of ComfyUI's conditioning."""

    latents: torch.Tensor | None = None
    """[k, 16, T, h, w] un-normalized, of all frames; clip i has entry i modulo k."""
    mask: torch.Tensor | None = None
    """[k, 1 or 4, T or less, h, w]: 0 where a frame is given, 1 where it is to be made, as it is after the mask's end.
    None: no frame is given."""
    rows: torch.Tensor | None = None
    """[k, n, image_dim] of CLIP Vision."""


def check_given(given: Given, architecture: WanArchitecture, clip: Clip) -> None:
    """Raise where what is given does not fit an image-to-video model or the clip; log what has no effect.

    Raises:
        ValueError: says what, and what to do.
    """
    if given.latents is not None:
        _check_latents(given.latents, clip)
    if given.mask is not None:
        _check_mask(given.mask, clip)
    if not architecture.image_dim:
        if given.rows is not None:
            logger.warning("LightX2V: %s", Stages.IDLE_CLIP_VISION())
    elif given.rows is not None:
        _check_rows(given.rows, architecture)
    elif given.latents is not None:
        logger.warning("LightX2V: %s", Stages.NO_CLIP_VISION())


def with_given(
    entries: Sequence[Conditioning], given: Given, architecture: WanArchitecture, clip: Clip
) -> list[Conditioning]:
    """Return the entries for an image-to-video model, with what is given.

    Args:
        entries: of the text.
        given: clip i has entry i, modulo the number of entries, of each of its parts.
        clip: the size of the clips.

    Raises:
        ValueError: there is no image, or it does not fit; see check_given.
    """
    if given.latents is None:
        raise ValueError(NO_IMAGE)
    check_given(given, architecture, clip)
    images = _image_latents(given.latents, given.mask)
    rows = () if given.rows is None or not architecture.image_dim else given.rows.to("cpu", torch.float32).unbind()
    number = math.lcm(len(entries), len(images), len(rows) or 1)
    return [
        replace(
            entries[index % len(entries)],
            image_latents=images[index % len(images)],
            image_tokens=rows[index % len(rows)] if rows else None,
        )
        for index in range(number)
    ]


def _image_latents(latents: torch.Tensor, mask: torch.Tensor | None) -> list[torch.Tensor]:
    """Return [20, T, h, w] float32 CPU of each entry: a mask, 1 where a frame is given, and the normalized latents."""
    count = max(len(latents), 0 if mask is None else len(mask))
    latents = normalize(latents.to("cpu", torch.float32)).expand(count, -1, -1, -1, -1)
    is_given = latents.new_zeros(count, MASK_CHANNELS, *latents.shape[2:])
    if mask is not None:
        is_given[:, :, : mask.shape[2]] = 1 - mask.to("cpu", torch.float32)
    return list(torch.cat([is_given, latents], dim=1).unbind())


def _check_latents(latents: torch.Tensor, clip: Clip) -> None:
    check_floats(latents, Tensors.IMAGE_LATENTS(), Tensors.USE(image_nodes=_IMAGE_NODES))
    shape = list(latents.shape)
    if len(shape) != 5 or shape[1] != LATENT_CHANNELS:
        channels = shape[1] if len(shape) > 1 else 0
        kinds = {
            48: Stages.CHANNELS_48(),
            32: Stages.CHANNELS_32(),
        }
        raise ValueError(
            Stages.ODD_IMAGE_LATENTS(
                image_nodes=_IMAGE_NODES, shape=shape, latent_channels=LATENT_CHANNELS, guess=kinds.get(channels, "")
            )
        )
    if tuple(shape[1:]) != clip.latent_shape:
        frames, height, width = video_shape(shape)
        raise ValueError(
            Stages.OTHER_SIZE(
                width=width,
                height=height,
                frames=frames,
                latent_width=clip.width,
                latent_height=clip.height,
                num_frames=clip.num_frames,
            )
        )
    if shape[0] not in (1, clip.batch):
        raise ValueError(
            Stages.ODD_NUMBER_OF_IMAGES(
                num_images=shape[0], batch=clip.batch, clips="clips" if clip.batch > 1 else "clip"
            )
        )
    if not bool(torch.isfinite(latents).all()):
        raise ValueError(Stages.NO_NUMBERS())


def _check_mask(mask: torch.Tensor, clip: Clip) -> None:
    name, use = Tensors.MASK(), Tensors.USE(image_nodes=_IMAGE_NODES)
    if not isinstance(mask, torch.Tensor):
        raise ValueError(Tensors.NO_FLOATS(remedy=use, name=name, found=describe(mask)))
    shape, (_, frames, height, width) = list(mask.shape), clip.latent_shape
    fits = len(shape) == 5 and shape[0] in (1, clip.batch) and shape[1] in (1, MASK_CHANNELS)
    if not fits or not 0 < shape[2] <= frames or shape[3:] != [height, width]:
        raise ValueError(
            Stages.ODD_MASK(
                image_nodes=_IMAGE_NODES,
                shape=shape,
                mask_channels=MASK_CHANNELS,
                frames=frames,
                height=height,
                width=width,
            )
        )
    low, high = (float(each) for each in torch.aminmax(mask.float()))
    if not (low >= 0 and high <= 1):
        raise ValueError(Tensors.MASK_RANGE(image_nodes=_IMAGE_NODES, name=name, low=low, high=high))


def _check_rows(rows: torch.Tensor, architecture: WanArchitecture) -> None:
    width, most = architecture.image_dim, architecture.image_positions
    if rows.dim() != 3 or rows.shape[2] != width:
        source = _KNOWN_IMAGE_WIDTHS.get(rows.shape[-1])
        guess = Stages.WIDTH_OF(width=rows.shape[-1], source=source) if source else ""
        raise ValueError(Stages.ODD_CLIP_VISION(shape=list(rows.shape), width=width, guess=guess))
    if most and rows.shape[1] > most:
        raise ValueError(Stages.TOO_MANY_ROWS(num_rows=rows.shape[1], most=most))
    check_floats(rows, Tensors.VISION_ROWS(), Tensors.LOAD_VISION())
    check_finite(rows, Tensors.VISION_ROWS(), Tensors.LOAD_VISION())
