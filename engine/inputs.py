"""Tensors that other programs hand over: what they have to be, whatever takes them.

Shapes of latents and frames are shapes.py; what of an image fits a clip is stages/given.py.
"""

from __future__ import annotations

from typing import Any

import torch

from .sentences.tensors import Tensors

# That one can compute with; others only store.
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# What one resize by bicubic interpolation leaves of values from 0 to 1, whose overshoot is at most 0.45.
_LEAST, _MOST = -0.5, 1.5


def describe(value: Any) -> str:
    """Return what a value is, for messages: of a tensor its type of numbers and its shape, else its class."""
    if isinstance(value, torch.Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        if value.layout != torch.strided or value.device.type == "meta":
            # Sparse, or without values.
            kind = f"{kind} ({value.device.type}, {str(value.layout).removeprefix('torch.')})"
        return Tensors.FOUND(kind=kind, shape=list(value.shape))
    return type(value).__name__


def check_floats(value: Any, name: str, remedy: str) -> None:
    """Raise where a value is no tensor of floating-point numbers.

    Args:
        value: anything.
        name: of the input.
        remedy: what to connect instead, as the beginning of a sentence.

    Raises:
        ValueError: says what it is.
    """
    is_plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type != "meta"
    if not is_plain or value.dtype not in _FLOATS:
        raise ValueError(Tensors.NO_FLOATS(remedy=remedy, name=name, found=describe(value)))


def check_finite(value: torch.Tensor, name: str, remedy: str) -> None:
    """Raise where a tensor holds NaN or infinity; see check_floats."""
    if not bool(torch.isfinite(value).all()):
        raise ValueError(Tensors.NO_NUMBERS(remedy=remedy, name=name))


def check_pictures(pictures: Any, name: str) -> None:
    """Raise where a value is no tensor of pictures: floating-point numbers from 0 to 1, some of them.

    A little more and less passes, as resizing leaves it.

    Raises:
        ValueError: says what it is, and what to do.
    """
    check_floats(pictures, name, Tensors.CONNECT_IMAGE())
    if not pictures.numel():
        raise ValueError(Tensors.EMPTY_PICTURES(name=name, found=describe(pictures)))
    low, high = (float(each) for each in torch.aminmax(pictures))
    # NaN is no number that compares.
    if not (low > float("-inf") and high < float("inf")):
        raise ValueError(Tensors.NO_NUMBERS(remedy=Tensors.CONNECT_OTHER_IMAGE(), name=name))
    if low < _LEAST or high > _MOST:
        raise ValueError(Tensors.PICTURE_RANGE(name=name, low=low, high=high))


def check_image(image: Any, name: str) -> None:
    """Raise where a value is no IMAGE [pictures, height, width, 3 or 4]; see check_pictures."""
    check_pictures(image, name)
    if image.dim() != 4 or image.shape[-1] < 3:
        raise ValueError(Tensors.PICTURE_SHAPE(name=name, found=describe(image)))
