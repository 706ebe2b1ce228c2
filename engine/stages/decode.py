"""Latents of one clip to frames: whole, or tile by tile. The decoder arrives as an argument.

Frames go to their place in one CPU tensor as they are made, so a device never holds more than one chunk of
one tile. Batches, loading and the choice between whole and tiled are pipeline.py; tile geometry is logic/tiles.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import torch

from ..constants import VAE_STRIDE
from ..interfaces import Hooks, VideoDecoder
from ..logic.shapes import video_shape
from ..logic.tiles import Span, Tile, split_axis


def decode_video(decoder: VideoDecoder, latents: torch.Tensor, *, tile: Tile | None, hooks: Hooks) -> torch.Tensor:
    """Decode the latents of one clip.

    Args:
        decoder: loaded decoder of either engine.
        latents: [16, T, h, w] normalised, any device.
        tile: size and overlap of spatial tiles; None, or a tile no smaller than the clip, decodes whole.
        hooks: the interrupt is checked before every chunk; progress counts the chunks of all tiles.

    Returns:
        [F, H, W, 3] float32 CPU in [0, 1] (388 MB for 81 frames of 832x480).
    """
    num_frames, height, width = video_shape(latents.shape)
    rows, columns = (split_axis(length, tile) for length in latents.shape[-2:])
    num_tiles = len(rows) * len(columns)
    video = torch.zeros(num_frames, height, width, 3)
    for index, (row, column) in enumerate(product(rows, columns)):
        part = latents[..., row.start : row.stop, column.start : column.stop]
        target = video[:, _pixels(row, VAE_STRIDE[1]), _pixels(column, VAE_STRIDE[2])]
        weights = _fade(row, VAE_STRIDE[1])[:, None, None] * _fade(column, VAE_STRIDE[2])[:, None]
        weights = weights.to(decoder.device)
        done = 0
        for frames in decoder.decode_chunks(part, _share(hooks, index, num_tiles)):
            target[done : done + len(frames)] += (frames * weights).cpu()
            done += len(frames)
    return video.clamp_(0, 1)
