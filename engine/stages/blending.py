"""How tiles are put together: which pixels are theirs, and how they fade into their neighbours."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..interfaces import Hooks
from ..memory.tiles import Span


def pixels(span: Span, stride: int) -> slice:
    """Return the pixels of a span of latent cells."""
    return slice(span.start * stride, span.stop * stride)


def fade(span: Span, stride: int, share: float) -> torch.Tensor:
    """Return a tile's weight along one axis: 1, but linear to 0 in what it shares with a neighbour.

    What is nearest to a cut, which a tile computes without its surroundings, weighs least.

    Args:
        span: of the tile, in latent cells.
        stride: entries of the weight per latent cell: 8 for pixels, 1 for cells.
        share: middle part of what is shared over which the weight falls.
    """
    weights = torch.ones((span.stop - span.start) * stride)
    fade_in, fade_out = span.fade_in * stride, span.fade_out * stride
    if fade_in:
        weights[:fade_in] = _ramp(fade_in, share)
    if fade_out:
        weights[-fade_out:] = 1 - _ramp(fade_out, share)
    return weights


def _ramp(length: int, share: float) -> torch.Tensor:
    position = (torch.arange(length) + 0.5) / length
    return ((position - 0.5) / share + 0.5).clamp_(0, 1)


def part_of(hooks: Hooks, index: int, count: int) -> Hooks:
    """Return hooks whose progress is that of part `index` of `count` equal parts, one after the other."""

    def on_progress(done: int, total: int, what: str) -> None:
        hooks.on_progress(index * total + done, count * total, what)

    return replace(hooks, on_progress=on_progress)


def tile_of(hooks: Hooks, index: int, count: int) -> Hooks:
    """Return hooks whose progress is that of tile `index` of `count`, in whole frames of the clip."""

    def on_progress(done: int, total: int, what: str) -> None:
        hooks.on_progress((index * total + done) // count, total, what)

    return replace(hooks, on_progress=on_progress)
