"""Pictures to ComfyUI's conditioning for image to video: the keys that WanImageToVideo writes, made as Wan makes them.

What was encoded is kept by its content, so that another prompt encodes nothing again.
"""

from __future__ import annotations

import hashlib
import logging
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from ... import inputs, pipeline
from ...interfaces import Hooks
from ...report import noting
from ...sentences.refusals import Refusals
from ...stages import given_frames
from . import native_vae
from .host import find_host
from .vae import handle_of

logger = logging.getLogger(__name__)

SIZES = (Refusals.FROM_PICTURE(), "width x height")
# Of CLIP Vision ViT-H/14, which Wan2.1 was trained with.
_VISION_PIXELS = 224
# Clips whose latents are kept, 10 MiB each at 832x480x81.
_NUM_KEPT = 4


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What a clip is to begin and to end with."""

    start: torch.Tensor | None
    """[n, H, W, 3 or 4] in [0, 1]: the first n frames, in order; None is none."""
    end: torch.Tensor | None
    """The last ones."""

    def __post_init__(self) -> None:
        for name, each in (("start_image", self.start), ("end_image", self.end)):
            if each is not None:
                inputs.check_image(each, name)

    @property
    def shape(self) -> torch.Size:
        """Of the picture that decides the size."""
        first = self.end if self.start is None else self.start
        if first is None:
            raise ValueError(Refusals.NO_PICTURE())
        return first.shape


def find_size(pictures: Pictures, size: str, width: int, height: int) -> tuple[int, int]:
    """Return (width, height) of the clip. Args: size: one of SIZES.

    Raises:
        ValueError: there is no picture.
    """
    _, rows, columns, _ = pictures.shape
    return given_frames.size_of_area(rows, columns, width * height) if size == SIZES[0] else (width, height)


@noting()
def extras_of(
    pictures: Pictures, *, vae: Any, size: str, width: int, height: int, num_frames: int, hooks: Hooks
) -> dict[str, Any]:
    """Return concat_latent_image and concat_mask for a clip of a size that `find_size` has found.

    Args:
        vae: this pack's, or ComfyUI's own of Wan2.1.
        size: one of SIZES: in the first, the picture that decides the size is stretched to the grid; any other is cut.
        hooks: progress counts latent frames.

    Raises:
        ValueError: there are more pictures than frames, the VAE is another model's, or makes NaN of the pictures.
        CheckpointError: the VAE's file holds a decoder only.
    """
    _warn_of_alpha(pictures)
    start, end = (
        torch.zeros(0, height, width, 3)
        if each is None
        else given_frames.fit_pictures(
            each.cpu(), width, height, crops=size != SIZES[0] or each.shape[1:3] != pictures.shape[1:3]
        )
        for each in (pictures.start, pictures.end)
    )
    handle = handle_of(vae)
    problem = native_vae.vae_problem(vae) if handle is None else None
    if problem:
        raise ValueError(problem)

    def encode() -> dict[str, Any]:
        frames, mask = given_frames.lay_out(start, end, num_frames)
        latents: torch.Tensor
        if handle is not None:
            latents = pipeline.encode_video(handle, frames, hooks=hooks, host=find_host())
        else:
            latents = vae.encode(frames)
        if not bool(torch.isfinite(latents).all()):
            raise ValueError(Refusals.NO_NUMBERS())
        return {"concat_latent_image": latents.cpu(), "concat_mask": mask}

    owner = vae if handle is None else handle
    return dict(_encoded.get(owner, (_digest(start, end), num_frames), encode))


def see(clip_vision: Any, pictures: Pictures) -> Any:
    """Return the output of CLIP Vision of the first frame and of the last, as Wan takes it: whole pictures, squashed.

    Raises:
        ValueError: the model gives no rows of that kind.
    """
    ends = [each[place] for each, place in ((pictures.start, 0), (pictures.end, -1)) if each is not None]
    squashed = torch.cat([_squash(each) for each in ends])

    def encode() -> Any:
        outputs = [clip_vision.encode_image(each[None], crop=False) for each in squashed]
        rows = torch.cat([output.penultimate_hidden_states for output in outputs], dim=-2)
        outputs[0].penultimate_hidden_states = rows
        return outputs[0]

    return _seen.get(clip_vision, _digest(squashed), encode)


def with_extras(conditioning: list[list[Any]], extras: dict[str, Any]) -> list[list[Any]]:
    """Return a CONDITIONING with more keys in each entry."""
    return [[rows, {**before, **extras}, *others] for rows, before, *others in conditioning]


def without_text(conditioning: list[list[Any]]) -> list[list[Any]]:
    """Return a CONDITIONING of zeros, as ComfyUI's Conditioning Zero Out makes it, for samplers that ask for one."""
    return [[torch.zeros_like(rows), dict(extras)] for rows, extras, *_ in conditioning]


class _Kept:
    """What was made last, by what made it and a key."""

    def __init__(self) -> None:
        self._entries: list[tuple[weakref.ref[Any], Hashable, Any]] = []

    def get(self, owner: Any, key: Hashable, make: Callable[[], Any]) -> Any:
        for index, (found, known, value) in enumerate(self._entries):
            if found() is owner and known == key:
                self._entries.insert(0, self._entries.pop(index))
                return value
        value = make()
        alive = [entry for entry in self._entries if entry[0]() is not None]
        self._entries = [(weakref.ref(owner), key, value), *alive[: _NUM_KEPT - 1]]
        return value


_encoded, _seen = _Kept(), _Kept()


def _squash(picture: torch.Tensor) -> torch.Tensor:
    size = (_VISION_PIXELS, _VISION_PIXELS)
    channels = picture[None, ..., :3].float().movedim(-1, 1)
    return functional.interpolate(channels, size=size, mode="bicubic", align_corners=False).movedim(1, -1)


def _digest(*tensors: torch.Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().cpu().numpy().data)
    return digest.hexdigest()


def _warn_of_alpha(pictures: Pictures) -> None:
    for name, each in (("start_image", pictures.start), ("end_image", pictures.end)):
        if each is not None and each.shape[-1] > 3 and bool((each[..., 3] < 1).any()):
            logger.warning("LightX2V: %s", Refusals.ALPHA(name=name))
