"""Frames, pixels, latents and tokens: the size rules of Wan2.1."""

from __future__ import annotations

from collections.abc import Sequence

from .constants import LATENT_CHANNELS, PATCH_SIZE, SIZE_MULTIPLE, VAE_STRIDE


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
    """Return a sentence that says why a LATENT's samples shape does not fit Wan2.1, or None."""
    found = f"latent samples have shape {list(shape)}"
    expected = f"expected [batch, {LATENT_CHANNELS}, frames, height/8, width/8]"
    if len(shape) != 5:
        return f"{found}; {expected}. Use 'LightX2V Empty Latent' (image latents have 4 dimensions, video 5)."
    if shape[1] != LATENT_CHANNELS:
        return f"{found}; {expected}. {shape[1]} channels belong to another model; use 'LightX2V Empty Latent'."
    if min(shape) < 1 or any(cells % patch for cells, patch in zip(shape[2:], PATCH_SIZE, strict=True)):
        return f"{found}; {expected} with even height/8 and width/8, that is, pixels in multiples of {SIZE_MULTIPLE}."
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
