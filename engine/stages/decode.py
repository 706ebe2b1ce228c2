"""Latents of one clip to frames: whole, or tile by tile. The decoder arrives as an argument.

Frames go to their place in one CPU tensor as they are made, so a device never holds more than one chunk of
one tile. Batches, loading and the choice between whole and tiled are pipeline.py; tile geometry is logic/tiles.py.
"""

from __future__ import annotations

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
        hooks: progress counts the chunks of all tiles; the interrupt is checked before each.

    Returns:
        [F, H, W, 3] float32 CPU in [0, 1]: 388 MB for 81 frames of 832x480.
    """
    num_frames, height, width = video_shape(latents.shape)
    row_stride, column_stride = VAE_STRIDE[1:]
    tiles = list(product(split_axis(latents.shape[-2], tile), split_axis(latents.shape[-1], tile)))
    if len(tiles) == 1:
        video = torch.empty(num_frames, height, width, 3)
        _fill(video, decoder, latents, None, hooks)
        return video
    video = torch.zeros(num_frames, height, width, 3)
    for index, (row, column) in enumerate(tiles):
        target = video[:, _pixels(row, row_stride), _pixels(column, column_stride)]
        weights = _fade(row, row_stride)[:, None, None] * _fade(column, column_stride)[:, None]
        part = latents[..., row.start : row.stop, column.start : column.stop]
        _fill(target, decoder, part, weights.to(decoder.device), _share(hooks, index, len(tiles)))
    # Weights of neighbours add up to 1 only within float32 rounding.
    return video.clamp_(0, 1)


def _fill(
    target: torch.Tensor, decoder: VideoDecoder, latents: torch.Tensor, weights: torch.Tensor | None, hooks: Hooks
) -> None:
    """Write frames to `target` [F, H, W, 3], or add them to it weighted by `weights` [H, W, 1]."""
    done = 0
    for frames in decoder.decode_chunks(latents, hooks):
        place = target[done : done + len(frames)]
        if weights is None:
            place.copy_(frames)
        else:
            place += (frames * weights).cpu()
        done += len(frames)
    assert done == len(target), f"decoder gave {done} frames of {len(target)}"


def _pixels(span: Span, stride: int) -> slice:
    return slice(span.start * stride, span.stop * stride)


def _fade(span: Span, stride: int) -> torch.Tensor:
    """Return a tile's weight along one axis [pixels]: 1, but linear to 0 over what it shares with a neighbour.

    The pixels nearest to a cut, which a tile computes without their surroundings, weigh least.
    """
    weights = torch.ones((span.stop - span.start) * stride)
    fade_in, fade_out = span.fade_in * stride, span.fade_out * stride
    if fade_in:
        weights[:fade_in] = _ramp(fade_in)
    if fade_out:
        weights[-fade_out:] = 1 - _ramp(fade_out)
    return weights


def _ramp(length: int) -> torch.Tensor:
    return (torch.arange(length) + 0.5) / length


def _share(hooks: Hooks, index: int, count: int) -> Hooks:
    """Return hooks whose progress is that of part `index` of `count` equal parts."""

    def on_progress(done: int, total: int, what: str) -> None:
        hooks.on_progress(index * total + done, count * total, what)

    return replace(hooks, on_progress=on_progress)
