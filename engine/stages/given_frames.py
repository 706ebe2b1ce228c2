"""Pictures to the frames of a clip that an image-to-video model is given, and the mask that says which they are.

Sources: Wan2.1 wan/image2video.py (size, resize, grey frames, mask); ComfyUI comfy_extras/nodes_wan.py
(WanFirstLastFrameToVideo), whose mask this is: 0 where a frame is given.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from ..constants import MASK_CHANNELS, PATCH_SIZE, VAE_STRIDE
from ..sentences.stages import Stages
from ..shapes import latent_shape

# Of what is not given, in [0, 1]: 0 in the model's own range.
_GREY = 0.5


def size_of_area(height: int, width: int, area: int) -> tuple[int, int]:
    """Return (width, height) of about `area` pixels, multiples of 16, with the aspect of a picture of a size."""
    aspect = height / width

    def whole(pixels: float, axis: int) -> int:
        stride, patch = VAE_STRIDE[axis], PATCH_SIZE[axis]
        return max(int(pixels // stride // patch), 1) * patch * stride

    return whole(math.sqrt(area / aspect), 2), whole(math.sqrt(area * aspect), 1)


def fit_pictures(pictures: torch.Tensor, width: int, height: int, *, crops: bool) -> torch.Tensor:
    """Return pictures [N, H, W, C >= 3] in [0, 1] as [N, height, width, 3].

    By bicubic interpolation as Wan does, whose few values beyond 0 and 1 stay. What is twice as large or more is
    averaged first, in whole factors: interpolation alone leaves pixels out.

    Args: crops: take the middle of another aspect, which is else stretched.
    """
    pictures = pictures[..., :3].float()
    pictures = (_middle(pictures, width / height) if crops else pictures).movedim(-1, 1)
    factor = min(pictures.shape[2] // height, pictures.shape[3] // width)
    if factor > 1:
        pictures = functional.avg_pool2d(pictures, factor)
    if pictures.shape[2:] != (height, width):
        pictures = functional.interpolate(pictures, size=(height, width), mode="bicubic", align_corners=False)
    return pictures.movedim(1, -1)


def lay_out(start: torch.Tensor, end: torch.Tensor, num_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the frames of a clip [F, H, W, 3], grey between those that are given, and their mask [1, 4, T, h, w].

    Args:
        start, end: the first and the last frames [n, H, W, 3], n may be 0.
        num_frames: 4n+1.

    Raises:
        ValueError: there is none, or there are more than the clip has.
    """
    given = len(start) + len(end)
    if not 0 < given <= num_frames:
        raise ValueError(Stages.TOO_MANY_PICTURES(num_start=len(start), num_end=len(end), num_frames=num_frames))
    _, height, width, _ = (start if len(start) else end).shape
    frames = start.new_full((num_frames, height, width, 3), _GREY)
    frames[: len(start)] = start
    frames[num_frames - len(end) :] = end
    _, latent_frames, rows, columns = latent_shape(width, height, num_frames)
    # The first latent frame is one frame, which counts for the four that others are.
    missing = torch.ones(num_frames + MASK_CHANNELS - 1)
    missing[: len(start) + MASK_CHANNELS - 1 if len(start) else 0] = 0
    missing[len(missing) - len(end) :] = 0
    mask = missing.view(1, latent_frames, MASK_CHANNELS, 1, 1).transpose(1, 2)
    return frames, mask.repeat(1, 1, 1, rows, columns)


def _middle(pictures: torch.Tensor, aspect: float) -> torch.Tensor:
    """Return the largest middle part of an aspect (width / height)."""
    height, width = pictures.shape[1:3]
    rows, columns = min(height, round(width / aspect)), min(width, round(height * aspect))
    top, left = (height - rows) // 2, (width - columns) // 2
    return pictures[:, top : top + rows, left : left + columns]
