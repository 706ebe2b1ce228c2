"""Frames of one clip to latents: whole, or tile by tile. The encoder arrives as an argument.

Frames travel to the device one at a time. What tiles make is put together at the latents' size, before what needs the
whole picture. Batches, loading and the choice between whole and tiled are pipeline.py; tile geometry is
memory/tiles.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from ..constants import VAE_STRIDE
from ..errors import NonFiniteLatentsError
from ..interfaces import Hooks, VideoEncoder
from ..latent_space import broken_share
from ..memory.tiles import Tile, split_axis
from ..sentences.sampling import Sampling
from ..sentences.stages import Stages
from ..shapes import cells
from .blending import fade, pixels, tile_of


def encode_video(
    encoder: VideoEncoder,
    frames: torch.Tensor,
    *,
    tile: Tile | None,
    hooks: Hooks,
    pins_frames: bool = True,
) -> torch.Tensor:
    """Encode the frames of one clip.

    Args:
        encoder: loaded encoder.
        frames: [F, H, W, 3] in [0, 1], any device and float type, as crop_to_cells returns them.
        tile: size and overlap of spatial tiles; None, or a tile no smaller than the clip, encodes whole.
        hooks: progress counts frames; the interrupt is checked before each.
        pins_frames: let frames go to a GPU through page-locked RAM.

    Returns:
        [16, T, h, w] float32 CPU, the mean, un-normalized as in a LATENT.

    Raises:
        NonFiniteLatentsError: the encoder made NaN or infinity of the frames.
    """
    stride, row_stride, column_stride = VAE_STRIDE
    num_latents, height, width = cells(frames.shape[:3])
    tiles = list(product(split_axis(height, tile), split_axis(width, tile)))
    share = encoder.blend_share
    features: torch.Tensor | None = None
    for index, (row, column) in enumerate(tiles):
        part, tile_hooks = frames[:, pixels(row, row_stride), pixels(column, column_stride)], hooks
        weights: torch.Tensor | None = None
        if len(tiles) > 1:
            tile_hooks = tile_of(hooks, index, len(tiles))
            weights = (fade(row, 1, share)[:, None, None] * fade(column, 1, share)[:, None]).to(encoder.device)
        for done, found in enumerate(encoder.encode_frames(_on_device(part, encoder.device, hooks, pins_frames))):
            if features is None:
                features = found.new_zeros(num_latents, height, width, found.shape[-1])
            place = features[done, row.start : row.stop, column.start : column.stop]
            if weights is None:
                place.copy_(found)
            else:
                place += found * weights
            tile_hooks.on_progress(1 + stride * done, len(frames), Stages.ENCODING())
    assert features is not None, "the encoder gave nothing"
    latents = encoder.finish(features, hooks).contiguous().cpu()
    share = broken_share(latents)
    if share:
        raise NonFiniteLatentsError(
            Sampling.BROKEN_ENCODING(vae=encoder.describe()["vae"], share=max(100 * share, 0.1))
        )
    return latents


def crop_to_cells(frames: torch.Tensor) -> torch.Tensor:
    """Return of frames [..., F, H, W, C >= 3] the first 4n+1, the middle whose size is a multiple of 8, three channels.

    Cut as ComfyUI's VAE cuts; nothing is copied.
    """
    stride, row_stride, column_stride = VAE_STRIDE
    num_latents, rows, columns = cells(frames.shape[-4:-1])
    height, width = rows * row_stride, columns * column_stride
    top, left = (frames.shape[-3] - height) // 2, (frames.shape[-2] - width) // 2
    used = (num_latents - 1) * stride + 1
    return frames[..., :used, top : top + height, left : left + width, :3]


def _on_device(frames: torch.Tensor, device: torch.device, hooks: Hooks, pins_frames: bool) -> Iterator[torch.Tensor]:
    """Yield each frame on the device; to a GPU it is copied while the one before it is in work.

    What is yielded is valid until the next frame is asked for.
    """
    if device.type != "cuda" or frames.device.type == "cuda":
        for frame in frames:
            hooks.check_interrupt()
            yield frame.to(device)
        return
    copies = _Copies(frames[0], device, pins_frames)
    try:
        copies.begin(0, frames[0])
        for index in range(len(frames)):
            hooks.check_interrupt()
            if index + 1 < len(frames):
                copies.begin(index + 1, frames[index + 1])
            yield copies.take(index)
            copies.release(index)
    finally:
        copies.close()


class _Copies:
    """Copies frames from RAM to a GPU on a stream of their own, one ahead of the computation."""

    def __init__(self, frame: torch.Tensor, device: torch.device, pins_frames: bool) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._device = device
        self._staging = [torch.empty(frame.shape, dtype=frame.dtype, pin_memory=pins_frames) for _ in range(2)]
        self._targets = [torch.empty(frame.shape, dtype=frame.dtype, device=device) for _ in range(2)]
        # The memory of the targets may still be in use by what had it before.
        begun = torch.cuda.current_stream(device).record_event()
        self._released = [begun, begun]
        self._copied: list[torch.cuda.Event | None] = [None, None]

    def begin(self, index: int, frame: torch.Tensor) -> None:
        """Begin to copy a frame, over the one before the last."""
        slot = index % 2
        before = self._copied[slot]
        if before is not None:
            before.synchronize()
        self._staging[slot].copy_(frame)
        self._stream.wait_event(self._released[slot])
        with torch.cuda.stream(self._stream):
            self._targets[slot].copy_(self._staging[slot], non_blocking=True)
        self._copied[slot] = self._stream.record_event()

    def take(self, index: int) -> torch.Tensor:
        """Return a frame on the GPU; the computation waits for its copy, this process does not."""
        copied = self._copied[index % 2]
        assert copied is not None, "take before begin"
        torch.cuda.current_stream(self._device).wait_event(copied)
        return self._targets[index % 2]

    def release(self, index: int) -> None:
        """Let a frame be overwritten once what reads it is done."""
        self._released[index % 2] = torch.cuda.current_stream(self._device).record_event()

    def close(self) -> None:
        """Let the memory be used for something else once no copy runs."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
