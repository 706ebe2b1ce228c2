"""Frames, pixels, latents and tokens: the size rules of Wan2.1."""

from __future__ import annotations

from collections.abc import Sequence

from .constants import LATENT_CHANNELS, PATCH_SIZE, SIZE_MULTIPLE, VAE_STRIDE

_FOUND = f"latent samples have shape {{}}; expected [batch, {LATENT_CHANNELS}, frames, height/8, width/8]"


def size_problem(width: int, height: int, num_frames: int) -> str | None:
    """Return a sentence that says what is wrong with a video size, or None."""
    for name, value in (("width", width), ("height", height)):
        if value < SIZE_MULTIPLE or value % SIZE_MULTIPLE:
            low = max(value // SIZE_MULTIPLE, 1) * SIZE_MULTIPLE
            nearest = f"{low} or {low + SIZE_MULTIPLE}" if value > low else f"{low}"
            return f"{name} is {value}; expected a multiple of {SIZE_MULTIPLE}. Use {nearest}."
    stride = VAE_STRIDE[0]
    if num_frames < 1 or (num_frames - 1) % stride:
        low = max(num_frames - 1, 0) // stride * stride + 1
        nearest = f"{low} or {low + stride}" if num_frames > low else f"{low}"
        return f"num_frames is {num_frames}; expected 4n+1 (1, 5, 9, ... 81). Use {nearest}."
    return None


def latent_shape(width: int, height: int, num_frames: int) -> tuple[int, int, int, int]:
    """Return (channels, T, h, w) of the latents of a video.

    Raises:
        ValueError: width or height is not a multiple of 16, or num_frames is not 4n+1.
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
        return (
            f"{_FOUND.format(list(shape))} with even height/8 and width/8, that is, pixels in multiples of "
            f"{SIZE_MULTIPLE}."
        )
    return problem


def decoding_problem(shape: Sequence[int]) -> str | None:
    """Return a sentence that says why a LATENT's samples shape does not fit Wan2.1's VAE, or None."""
    found = _FOUND.format(list(shape))
    if len(shape) != 5:
        return f"{found}. Use 'LightX2V Empty Latent' (image latents have 4 dimensions, video 5)."
    if shape[1] != LATENT_CHANNELS:
        return f"{found}. {shape[1]} channels belong to another model; use 'LightX2V Empty Latent'."
    return f"{found}, none of them 0." if min(shape) < 1 else None


def frames_problem(shape: Sequence[int]) -> str | None:
    """Return a sentence that says why frames cannot be encoded, or None."""
    found = f"frames have shape {list(shape)}; expected [frames, height, width, 3] or [batch, frames, height, width, 3]"
    if len(shape) not in (4, 5) or shape[-1] < 3 or min(shape) < 1:
        return f"{found}, as an IMAGE has it."
    if min(shape[-3:-1]) < VAE_STRIDE[1]:
        return f"{found}, of at least {VAE_STRIDE[1]}x{VAE_STRIDE[2]} pixels."
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
