"""Bytes of a VAE encode on its device, from its sizes alone: what the memory plan and the encoder agree on.

The numbers follow from the encoder's layout (wan/vae_encoder.py): three input frames are kept of every causal
convolution, and one frame at a time is in work.
"""

from __future__ import annotations

from ..constants import VAE_STRIDE
from .decoder import ALLOCATOR_SLACK, longest, tae_bytes
from .tiles import Tile

# Elements per latent cell and unit of base width (96 in Wan2.1). The stages work at 64, 16, 4 and 1 pixels a cell.
# Three frames of every causal convolution's input, of all stages that are encoded tile by tile: residual blocks 4 base
# widths at 64 pixels, 7 at 16 and 14 at 4; frame halving 2 at 4 and 4 at 1.
_KEPT = 3 * (4 * 64 + 7 * 16 + 14 * 4 + 2 * 4 + 4)
# Of the first stage, at 64 pixels a cell: a frame that enters, one that leaves, two between (plain torch).
_WORKING = (1 + 1 + 2) * 64
# What tiles share, per latent frame: 4 base widths at 1 pixel a cell.
_SHARED = 4
# At 1 pixel a cell, once all tiles are put together: three frames of the input of 9 convolutions of 4 base widths, and
# what the attention works on: its frame, query, key and value twice, two between.
_FINISHING = 3 * 9 * 4 + (1 + 6 + 2) * 4
# Elements per latent cell of the first convolution's input: three frames of 8 channels at 64 pixels.
_COLOURS = 3 * 8 * 64
# Parameters per base width squared of the encoder: 53.6 million at 96.
_WEIGHTS = 5816
# float32 frames per latent cell on a GPU: two that are copied in turn, one in work, and half a one rounded.
_FRAME_BYTES = int(3.5 * 64 * 3 * 4)
# float32 means of 16 channels per latent cell and frame, twice while they are joined.
_MEAN_BYTES = 2 * 16 * 4

# What convolutions work in beside their tensors: tiles of 32 took up to 30 MB more than those on an H200.
_WORKSPACE_BYTES = 32 * 2**20

# The tiny autoencoder: elements per latent cell at its widest place, 64 channels of 4 frames, twice
# while two and two are joined.
_TAE = 2 * 4 * 64 * 64


def encode_bytes(
    height: int, width: int, tile: Tile | None, base_dim: int = 96, element_bytes: int = 2, num_frames: int = 81
) -> int:
    """Return the bytes reserved at the peak of an encode, the encoder's weights included.

    Args:
        height, width: of the video, in pixels.
        tile: largest tile and overlap; None is a whole encode.
        base_dim: base width of the VAE: 96 Wan2.1, 24 LightVAE.
        element_bytes: 2 on a GPU, 4 on a CPU.
        num_frames: of the video.
    """
    frames, row_stride, column_stride = VAE_STRIDE
    rows, columns = height // row_stride, width // column_stride
    cells, tile_cells = rows * columns, longest(rows, tile) * longest(columns, tile)
    latent_frames = (num_frames - 1) // frames + 1
    tiles = tile_cells * ((base_dim * (_KEPT + _WORKING) + _COLOURS) * element_bytes + _FRAME_BYTES)
    finishing = cells * (base_dim * _FINISHING * element_bytes + latent_frames * _MEAN_BYTES)
    shared = base_dim * (cells * latent_frames * _SHARED + base_dim * _WEIGHTS) * element_bytes
    return int((max(tiles, finishing) + shared) * ALLOCATOR_SLACK) + _WORKSPACE_BYTES


def tae_encode_bytes(height: int, width: int, tile: Tile | None, element_bytes: int = 2) -> int:
    """Return the bytes reserved at the peak of an encode with the tiny autoencoder, its weights included."""
    return tae_bytes(height, width, tile, _TAE * element_bytes + _FRAME_BYTES)
