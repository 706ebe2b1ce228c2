"""Frames, pixels, latents and tokens: the size rules of Wan2.1."""

from __future__ import annotations

from collections.abc import Sequence

from .constants import LATENT_CHANNELS, MAX_FRAMES, MAX_SIZE, PATCH_SIZE, SIZE_MULTIPLE, VAE_STRIDE
from .sentences import joined
from .sentences.between import Between
from .sentences.sizes import Sizes


def size_problem(width: int, height: int, num_frames: int, *, frames: str = "num_frames") -> str | None:
    """Return a sentence that says what is wrong with a video size, or None. Args: frames: what the user calls them."""
    for name, value, limit in (
        ("width", width, MAX_SIZE),
        ("height", height, MAX_SIZE),
        (frames, num_frames, MAX_FRAMES),
    ):
        if value > limit:
            return Sizes.TOO_LARGE(name=name, value=value, limit=limit)
    for name, value in (("width", width), ("height", height)):
        if value < SIZE_MULTIPLE or value % SIZE_MULTIPLE:
            low = max(value // SIZE_MULTIPLE, 1) * SIZE_MULTIPLE
            nearest = _nearest(value, low, SIZE_MULTIPLE)
            return Sizes.NO_MULTIPLE(name=name, value=value, multiple=SIZE_MULTIPLE, nearest=nearest)
    stride = VAE_STRIDE[0]
    if num_frames < 1 or (num_frames - 1) % stride:
        low = max(num_frames - 1, 0) // stride * stride + 1
        nearest = _nearest(num_frames, low, stride)
        return Sizes.ODD_NUMBER_OF_FRAMES(name=frames, num_frames=num_frames, nearest=nearest)
    return None


def _nearest(value: int, low: int, step: int) -> str:
    return joined([str(low), str(low + step)], Between.OR) if value > low else str(low)


def latent_shape(width: int, height: int, num_frames: int) -> tuple[int, int, int, int]:
    """Return (channels, T, h, w) of the latents of a video.

    Raises:
        ValueError: width or height is not a multiple of 16, num_frames is not 4n+1, or one is absurd.
    """
    problem = size_problem(width, height, num_frames)
    if problem:
        raise ValueError(problem)
    frames, rows, columns = VAE_STRIDE
    return LATENT_CHANNELS, (num_frames - 1) // frames + 1, height // rows, width // columns


def latent_problem(shape: Sequence[int]) -> str | None:
    """Return a sentence that says why a LATENT's samples shape does not fit Wan2.1's transformer, or None."""
    problem = decoding_problem(shape)
    if problem is None and any(cells % patch for cells, patch in zip(shape[2:], PATCH_SIZE, strict=True)):
        return Sizes.ODD_LATENT(found=_found(shape), multiple=SIZE_MULTIPLE)
    return problem


def decoding_problem(shape: Sequence[int]) -> str | None:
    """Return a sentence that says why a LATENT's samples shape does not fit Wan2.1's VAE, or None."""
    if len(shape) != 5:
        return Sizes.NO_VIDEO_LATENT(found=_found(shape))
    if shape[1] != LATENT_CHANNELS:
        return Sizes.OTHER_LATENT(found=_found(shape), channels=shape[1])
    return Sizes.EMPTY_LATENT(found=_found(shape)) if min(shape) < 1 else None


def _found(shape: Sequence[int]) -> str:
    return Sizes.LATENT(shape=list(shape), channels=LATENT_CHANNELS)


def frames_problem(shape: Sequence[int]) -> str | None:
    """Return a sentence that says why frames cannot be encoded, or None."""
    found = Sizes.FRAMES(shape=list(shape))
    if len(shape) not in (4, 5) or shape[-1] < 3 or min(shape) < 1:
        return Sizes.NO_FRAMES(found=found)
    if min(shape[-3:-1]) < VAE_STRIDE[1]:
        return Sizes.TOO_SMALL(found=found, width=VAE_STRIDE[1], height=VAE_STRIDE[2])
    return None


def video_shape(latent: Sequence[int]) -> tuple[int, int, int]:
    """Return (frames, height, width) in pixels of latents (..., T, h, w)."""
    frames, rows, columns = VAE_STRIDE
    return (latent[-3] - 1) * frames + 1, latent[-2] * rows, latent[-1] * columns


def cells(video: Sequence[int]) -> tuple[int, int, int]:
    """Return (T, h, w) of the latents of a video (frames, height, width): of its first 4n+1 frames and whole cells."""
    frames, rows, columns = VAE_STRIDE
    return (video[0] - 1) // frames + 1, video[1] // rows, video[2] // columns


def num_tokens(latent: Sequence[int]) -> int:
    """Return the number of transformer tokens of latents (..., T, h, w)."""
    count = 1
    for cells, patch in zip(latent[-3:], PATCH_SIZE, strict=True):
        count *= cells // patch
    return count
