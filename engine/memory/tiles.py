"""Tile geometry of a spatially tiled VAE decode: how an axis is split into overlapping spans. Pure numbers.

The tensors are cut and blended in stages/decode.py; whether to tile at all is the memory plan's decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import ceil

from ..sentences.memory import Memory


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Largest tile edge and smallest overlap of neighbours, in latent cells (8 pixels each).

    size 64: 480p takes 1 x 2 tiles of 60 x 56 cells, 720p 2 x 3 of 49 x 59; seconds and bytes are in
    docs/benchmarks.md. Smaller tiles take less memory and compute more twice: 1.1 times the cells of the picture with
    64, 1.3 with 48, 1.6 with 32 (480p).
    overlap 8: 64 pixels. Of it a tile gives up the 3 cells next to its cut, which leaves 2 to blend in (portable
    decoder); the overlap of LightX2V's, diffusers' and ComfyUI's own tiled decodes of this VAE.
    """

    size: int = 64
    overlap: int = 8

    def __post_init__(self) -> None:
        if self.overlap < 1 or self.size < 4 * self.overlap:
            raise ValueError(Memory.ODD_TILE(size=self.size, overlap=self.overlap))


@dataclass(frozen=True, kw_only=True)
class Span:
    """Cells [start, stop) of one axis; the first `fade_in` and last `fade_out` are shared with a neighbour."""

    start: int
    stop: int
    fade_in: int = 0
    fade_out: int = 0


def split_axis(length: int, tile: Tile | None) -> tuple[Span, ...]:
    """Split an axis into the fewest spans, all of one length, spread evenly.

    Equal lengths keep every tile of a decode at one shape, so kernels are chosen once and no tile is a sliver.

    Args:
        length: latent cells of the axis, at least 1.
        tile: largest span and smallest overlap; None for no tiling.

    Returns:
        Spans in order that cover [0, length); no cell is in more than two of them.
    """
    if tile is None or length <= tile.size:
        return (Span(start=0, stop=length),)
    count = ceil((length - tile.overlap) / (tile.size - tile.overlap))
    size = ceil((length + (count - 1) * tile.overlap) / count)
    starts = [index * (length - size) // (count - 1) for index in range(count)]
    shared = [before + size - after for before, after in pairwise(starts)]
    return tuple(
        Span(start=start, stop=start + size, fade_in=fade_in, fade_out=fade_out)
        for start, fade_in, fade_out in zip(starts, [0, *shared], [*shared, 0], strict=True)
    )
