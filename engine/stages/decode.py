"""Latents of one clip to frames: whole, or tile by tile. The decoder arrives as an argument.

Frames go to their place in one CPU tensor as they are made, so a device never holds more than two chunks of
one tile. Batches, loading and the choice between whole and tiled are pipeline.py; tile geometry is memory/tiles.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product

import torch

from ..constants import VAE_STRIDE
from ..errors import NonFiniteLatentsError
from ..interfaces import Hooks, VideoDecoder
from ..memory.tiles import Tile, split_axis
from ..sentences.sampling import Sampling
from ..sentences.stages import Stages
from ..shapes import video_shape
from .blending import fade, pixels, tile_of


def decode_video(
    decoder: VideoDecoder,
    latents: torch.Tensor,
    *,
    tile: Tile | None,
    hooks: Hooks,
    out: torch.Tensor | None = None,
    pins_frames: bool = True,
) -> torch.Tensor:
    """Decode the latents of one clip.

    Args:
        decoder: loaded decoder of either engine.
        latents: [16, T, h, w] normalized, any device.
        tile: size and overlap of spatial tiles; None, or a tile no smaller than the clip, decodes whole.
        hooks: progress counts frames; the interrupt is checked before each chunk.
        out: where the frames go, like what is returned.
        pins_frames: let frames come from a GPU through page-locked RAM.

    Returns:
        [F, H, W, 3] float32 CPU in [0, 1]: 388 MB for 81 frames of 832x480.

    Raises:
        NonFiniteLatentsError: the decoder made NaN or infinity of a part of the latents.
    """
    num_frames, height, width = video_shape(latents.shape)
    row_stride, column_stride = VAE_STRIDE[1:]
    tiles = list(product(split_axis(latents.shape[-2], tile), split_axis(latents.shape[-1], tile)))
    features = decoder.prepare(latents, hooks)
    video = torch.empty(num_frames, height, width, 3) if out is None else out
    if len(tiles) == 1:
        _fill(video, decoder, features, None, hooks, pins_frames)
        return video
    video.zero_()
    share = decoder.blend_share
    for index, (row, column) in enumerate(tiles):
        target = video[:, pixels(row, row_stride), pixels(column, column_stride)]
        rows, columns = fade(row, row_stride, share), fade(column, column_stride, share)
        weights = rows[:, None, None] * columns[:, None]
        part = features[..., row.start : row.stop, column.start : column.stop]
        _fill(target, decoder, part, weights.to(decoder.device), tile_of(hooks, index, len(tiles)), pins_frames)
    # Weights of neighbours add up to 1 only within float32 rounding.
    return video.clamp_(0, 1)


def _fill(
    target: torch.Tensor,
    decoder: VideoDecoder,
    features: torch.Tensor,
    weights: torch.Tensor | None,
    hooks: Hooks,
    pins_frames: bool,
) -> None:
    """Write frames to `target` [F, H, W, 3], or add them to it weighted by `weights` [H, W, 1]."""
    done = 0
    total = torch.zeros((), device=decoder.device)
    chunks = _clamped(decoder.decode_chunks(features, hooks), weights, total)
    for frames in to_cpu(chunks, decoder.device, pins_frames):
        place = target[done : done + len(frames)]
        if weights is None:
            place.copy_(frames)
        else:
            place += frames
        done += len(frames)
        hooks.on_progress(done, len(target), Stages.DECODING())
    assert done == len(target), f"decoder gave {done} frames of {len(target)}"
    if not bool(torch.isfinite(total)):
        raise NonFiniteLatentsError(Sampling.BROKEN_FRAMES(vae=decoder.describe()["vae"]))


def _clamped(
    chunks: Iterable[torch.Tensor], weights: torch.Tensor | None, total: torch.Tensor
) -> Iterator[torch.Tensor]:
    """Yield frames in [0, 1], weighted; what they were before is added to `total`, which NaN and infinity stay in."""
    for frames in chunks:
        total += frames.sum()
        frames.clamp_(0, 1)
        yield frames if weights is None else frames * weights


def to_cpu(chunks: Iterable[torch.Tensor], device: torch.device, pins_frames: bool) -> Iterator[torch.Tensor]:
    """Yield each chunk of frames on the CPU; from a GPU it is copied while the next one is computed.

    What is yielded is valid until the next chunk is asked for.
    """
    if device.type != "cuda":
        yield from chunks
        return
    copies = _Copies(device, pins_frames)
    for frames in chunks:
        done = copies.swap(frames)
        if done is not None:
            yield done
    last = copies.swap(None)
    if last is not None:
        yield last


class _Copies:
    """Copies chunks from a GPU to RAM on a stream of their own, one behind the computation where it is page-locked."""

    def __init__(self, device: torch.device, pins_frames: bool) -> None:
        self._pins_frames = pins_frames
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers: list[torch.Tensor] = []
        self._running: tuple[torch.Tensor, torch.Tensor, torch.cuda.Event] | None = None

    def swap(self, frames: torch.Tensor | None) -> torch.Tensor | None:
        """Begin to copy `frames`; return the chunk before it on the CPU, or None."""
        before = self._running
        self._running = None if frames is None else self._begin(frames)
        if before is None:
            return None
        # `before` also holds the chunk itself on the GPU until its copy is done.
        _, target, finished = before
        finished.synchronize()
        return target

    def _begin(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.cuda.Event]:
        target = self._buffer(frames)
        self._stream.wait_stream(torch.cuda.current_stream(frames.device))
        with torch.cuda.stream(self._stream):
            target.copy_(frames, non_blocking=True)
        return frames, target, self._stream.record_event()

    def _buffer(self, frames: torch.Tensor) -> torch.Tensor:
        """Return memory for a chunk: that of the chunk before the last, whose reader is done, if it is large enough."""
        if len(self._buffers) == 2:
            oldest = self._buffers.pop(0)
            if len(oldest) >= len(frames):
                self._buffers.append(oldest)
                return oldest[: len(frames)]
        self._buffers.append(torch.empty(frames.shape, dtype=frames.dtype, pin_memory=self._pins_frames))
        return self._buffers[-1]
