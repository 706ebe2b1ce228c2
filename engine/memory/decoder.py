"""Bytes of a VAE decode on its device, from its sizes alone: what the memory plan and the decoder agree on.

The numbers follow from the decoder's layout (wan/vae_decoder.py): three input frames are kept of every
causal convolution, and one frame at a time is in work.
"""

from __future__ import annotations

from ..constants import VAE_STRIDE
from .tiles import Tile, split_axis

# Elements per latent cell and unit of base width (96 in Wan2.1). The stages work at 1, 4, 16 and 64 pixels a cell.
# Three frames of every causal convolution's input, of all stages that are decoded tile by tile: frame doubling 4 base
# widths at 1 and at 4 pixels; residual blocks 22 at 4, 12 at 16 and 7 at 64 pixels.
_KEPT = 3 * (4 + 4 * 4 + 22 * 4 + 12 * 16 + 7 * 64)
# Of the last stage, at 64 pixels a cell: the frame before it at twice the width, a frame that enters, one that leaves,
# two between (plain torch).
_WORKING = (2 + 1 + 1 + 2) * 64
# What tiles share, per latent frame: 4 base widths at 1 pixel a cell; two of them while it is put together.
_PREPARED = 2 * 4
# Parameters per base width squared of the decoder: 73.3 million at 96.
_WEIGHTS = 7954
# float32 frames per latent cell on a GPU: four that are made, four in work on, and four being copied.
_FRAME_BYTES = 3 * 4 * 64 * 3 * 4
# The allocator's rounding and cuDNN's workspaces: reserved bytes over the sums above, measured on an H200 with torch
# 2.11 (docs/benchmarks.md).
ALLOCATOR_SLACK = 1.135
_TAE_SLACK = 1.65

# The tiny autoencoder: elements per latent cell at its widest place, three tensors of 64 channels of 4 frames.
_TAE = 3 * 4 * 64 * 64


def decode_bytes(
    height: int, width: int, tile: Tile | None, base_dim: int = 96, element_bytes: int = 2, num_frames: int = 81
) -> int:
    """Return the bytes reserved at the peak of a decode, the decoder's weights included.

    Args:
        height, width: of the video, in pixels.
        tile: largest tile and overlap; None is a whole decode.
        base_dim: base width of the VAE: 96 Wan2.1, 24 LightVAE.
        element_bytes: 2 on a GPU, 4 on a CPU.
        num_frames: of the video.
    """
    frames, row_stride, column_stride = VAE_STRIDE
    rows, columns = height // row_stride, width // column_stride
    tile_cells = longest(rows, tile) * longest(columns, tile)
    latent_frames = (num_frames - 1) // frames + 1
    shared = rows * columns * latent_frames * _PREPARED
    elements = base_dim * (tile_cells * (_KEPT + _WORKING) + shared + base_dim * _WEIGHTS)
    return int((elements * element_bytes + tile_cells * _FRAME_BYTES) * ALLOCATOR_SLACK)


def tae_decode_bytes(height: int, width: int, tile: Tile | None, element_bytes: int = 2) -> int:
    """Return the bytes reserved at the peak of a decode with the tiny autoencoder, its weights included."""
    return tae_bytes(height, width, tile, _TAE * element_bytes + _FRAME_BYTES)


def tae_bytes(height: int, width: int, tile: Tile | None, cell_bytes: int) -> int:
    """Return the bytes reserved at the peak of the tiny autoencoder, its weights included.

    Args:
        cell_bytes: in work per latent cell of a tile.
    """
    _, row_stride, column_stride = VAE_STRIDE
    tile_cells = longest(height // row_stride, tile) * longest(width // column_stride, tile)
    return int(tile_cells * cell_bytes * _TAE_SLACK) + 32 * 1024**2


def longest(length: int, tile: Tile | None) -> int:
    """Return the cells of the longest tile along an axis."""
    return max(span.stop - span.start for span in split_axis(length, tile))
