"""What a tiny autoencoder (TAE) for Wan2.1 latents looks like in a file: taew2_1, lighttaew2_1.

The decoder is a row of layers numbered as upstream numbers them. Source: madebyollin/taehv, taehv.py, class TAEHV.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..constants import LATENT_CHANNELS
from .header import Header

Shape = tuple[int, ...]

INPUT_LAYER, OUTPUT_LAYER = 1, 22


@dataclass(frozen=True, kw_only=True)
class TaeStage:
    """Layers of one resolution: three blocks with memory, then twice the size, more frames, fewer channels."""

    blocks: tuple[int, int, int]
    grow: int
    """1x1 convolution whose channels are those of `frames` frames."""
    frames: int
    shrink: int
    """3x3 convolution to the next stage's width."""


STAGES = (
    TaeStage(blocks=(3, 4, 5), grow=7, frames=1, shrink=8),
    TaeStage(blocks=(9, 10, 11), grow=13, frames=2, shrink=14),
    TaeStage(blocks=(15, 16, 17), grow=19, frames=2, shrink=20),
)
# Frames a latent frame becomes. The decoder sees no future, and the first latent frame is one frame: its last.
FRAMES_PER_LATENT = 4


@dataclass(frozen=True, kw_only=True)
class TaeFormat:
    """Sizes of a tiny autoencoder's decoder."""

    widths: tuple[int, int, int, int]
    """Channels of the three stages and of what leaves the last; 256, 128, 64, 64 in the published files."""

    def shapes(self) -> dict[str, Shape]:
        """Return the decoder's tensors by name."""
        found: dict[str, Shape] = {
            f"decoder.{INPUT_LAYER}.weight": (self.widths[0], LATENT_CHANNELS, 3, 3),
            f"decoder.{INPUT_LAYER}.bias": (self.widths[0],),
            f"decoder.{OUTPUT_LAYER}.weight": (3, self.widths[-1], 3, 3),
            f"decoder.{OUTPUT_LAYER}.bias": (3,),
        }
        for stage, width, following in zip(STAGES, self.widths, self.widths[1:], strict=False):
            for block in stage.blocks:
                for layer, inputs in ((0, 2 * width), (2, width), (4, width)):
                    found[f"decoder.{block}.conv.{layer}.weight"] = (width, inputs, 3, 3)
                    found[f"decoder.{block}.conv.{layer}.bias"] = (width,)
            found[f"decoder.{stage.grow}.conv.weight"] = (stage.frames * width, width, 1, 1)
            found[f"decoder.{stage.shrink}.weight"] = (following, width, 3, 3)
        return found


def detect_tae(header: Header) -> TaeFormat | None:
    """Return the sizes of a tiny autoencoder for 16 latent channels, or None for anything else."""
    layers = (INPUT_LAYER, *(stage.shrink for stage in STAGES))
    shapes = [header[name].shape if name in header else () for name in (f"decoder.{layer}.weight" for layer in layers)]
    has_memory = f"decoder.{STAGES[0].blocks[0]}.conv.0.weight" in header
    if not has_memory or any(len(shape) != 4 for shape in shapes) or shapes[0][1] != LATENT_CHANNELS:
        return None
    first, second, third, last = (shape[0] for shape in shapes)
    return TaeFormat(widths=(first, second, third, last))
