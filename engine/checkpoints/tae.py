"""What a tiny autoencoder (TAE) for Wan2.1 latents looks like in a file: taew2_1, lighttaew2_1.

Encoder and decoder are each a row of layers numbered as upstream numbers them. Source: madebyollin/taehv, taehv.py,
class TAEHV.
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

ENCODER_INPUT_LAYER, ENCODER_OUTPUT_LAYER = 0, 17


@dataclass(frozen=True, kw_only=True)
class TaeEncoderStage:
    """Layers of one resolution: frames joined, half the size, then three blocks with memory."""

    pool: int
    """1x1 convolution over the channels of `frames` frames together."""
    frames: int
    shrink: int
    """3x3 convolution at every other pixel."""
    blocks: tuple[int, int, int]


ENCODER_STAGES = (
    TaeEncoderStage(pool=2, frames=2, shrink=3, blocks=(4, 5, 6)),
    TaeEncoderStage(pool=7, frames=2, shrink=8, blocks=(9, 10, 11)),
    TaeEncoderStage(pool=12, frames=1, shrink=13, blocks=(14, 15, 16)),
)


@dataclass(frozen=True, kw_only=True)
class TaeFormat:
    """Sizes of a tiny autoencoder."""

    widths: tuple[int, int, int, int]
    """Channels of the decoder's three stages and of what leaves the last; 256, 128, 64, 64 in the published files."""
    encoder_width: int = 0
    """Channels of the encoder's stages, 64 in the published files; 0 where the file has no encoder."""

    def encoder_shapes(self) -> dict[str, Shape]:
        """Return the encoder's tensors by name."""
        width = self.encoder_width
        found: dict[str, Shape] = {
            f"encoder.{ENCODER_INPUT_LAYER}.weight": (width, 3, 3, 3),
            f"encoder.{ENCODER_INPUT_LAYER}.bias": (width,),
            f"encoder.{ENCODER_OUTPUT_LAYER}.weight": (LATENT_CHANNELS, width, 3, 3),
            f"encoder.{ENCODER_OUTPUT_LAYER}.bias": (LATENT_CHANNELS,),
        }
        for stage in ENCODER_STAGES:
            found[f"encoder.{stage.pool}.conv.weight"] = (width, stage.frames * width, 1, 1)
            found[f"encoder.{stage.shrink}.weight"] = (width, width, 3, 3)
            for block in stage.blocks:
                found |= _block_shapes(f"encoder.{block}", width)
        return found

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
                found |= _block_shapes(f"decoder.{block}", width)
            found[f"decoder.{stage.grow}.conv.weight"] = (stage.frames * width, width, 1, 1)
            found[f"decoder.{stage.shrink}.weight"] = (following, width, 3, 3)
        return found


def _block_shapes(name: str, width: int) -> dict[str, Shape]:
    """Return the tensors of a block with memory: it sees its frame and the one before."""
    found: dict[str, Shape] = {}
    for layer, inputs in ((0, 2 * width), (2, width), (4, width)):
        found[f"{name}.conv.{layer}.weight"] = (width, inputs, 3, 3)
        found[f"{name}.conv.{layer}.bias"] = (width,)
    return found


def detect_tae(header: Header) -> TaeFormat | None:
    """Return the sizes of a tiny autoencoder for 16 latent channels, or None for anything else."""
    layers = (INPUT_LAYER, *(stage.shrink for stage in STAGES))
    shapes = [header[name].shape if name in header else () for name in (f"decoder.{layer}.weight" for layer in layers)]
    has_memory = f"decoder.{STAGES[0].blocks[0]}.conv.0.weight" in header
    if not has_memory or any(len(shape) != 4 for shape in shapes) or shapes[0][1] != LATENT_CHANNELS:
        return None
    first, second, third, last = (shape[0] for shape in shapes)
    return TaeFormat(widths=(first, second, third, last), encoder_width=_find_encoder(header))


def _find_encoder(header: Header) -> int:
    """Return the width of the encoder in a file; 0 where there is none, or not a whole one."""
    head = header.get(f"encoder.{ENCODER_INPUT_LAYER}.weight")
    if head is None or not head.shape:
        return 0
    width = head.shape[0]
    expected = TaeFormat(widths=(0, 0, 0, 0), encoder_width=width).encoder_shapes()
    return width if all(name in header and header[name].shape == shape for name, shape in expected.items()) else 0
