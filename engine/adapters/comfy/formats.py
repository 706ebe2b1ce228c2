"""ComfyUI's CONDITIONING and LATENT, to and from plain tensors."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ... import inputs
from ...interfaces import Conditioning
from ...memory.clip import Clip
from ...report import records_of
from ...sentences import joined
from ...sentences.between import Between
from ...sentences.comfyui import Inputs
from ...sentences.tensors import Tensors
from ...shapes import latent_problem
from ...stages.conditioning import of_rows
from ...stages.given import Given

logger = logging.getLogger(__name__)

# What ComfyUI's samplers do with a part of a conditioning, in a place or for a time.
_SAMPLER_KEYS = ("area", "mask", "hooks", "control", "start_percent", "end_percent", "strength", "default")


def make_conditioning(rows: torch.Tensor) -> list[list[Any]]:
    """Return text rows [1, n, width] as ComfyUI's own Wan text encoder node does."""
    return [[rows, {"pooled_output": None}]]


def read_conditioning(conditioning: Any, text_dim: int) -> list[Conditioning]:
    """Return what a transformer takes of the text of a plain CONDITIONING.

    Args:
        text_dim: width of the text rows that it expects.

    Raises:
        ValueError: its rows are not of this width.
    """
    rows = conditioning[0][0]
    return of_rows(rows.to("cpu", torch.float32), text_dim, records_of(rows))


def read_given(extras: Mapping[str, Any]) -> Given:
    """Return the image of a CONDITIONING's entry: what WanImageToVideo, WanFirstLastFrameToVideo and ours put there."""
    vision = extras.get("clip_vision_output")
    rows = getattr(vision, "penultimate_hidden_states", None)
    if vision is not None and not isinstance(rows, torch.Tensor):
        raise ValueError(Inputs.NO_PENULTIMATE(name=type(vision).__name__))
    return Given(latents=extras.get("concat_latent_image"), mask=extras.get("concat_mask"), rows=rows)


def check_text(conditioning: Any) -> None:
    """Raise where a CONDITIONING is none: entries of text rows and of what goes with them.

    Raises:
        ValueError: there is no entry, or one is something else.
    """
    remedy = Tensors.CONNECT_TEXT()
    if conditioning is None or (isinstance(conditioning, Sequence) and not len(conditioning)):
        raise ValueError(Inputs.EMPTY_CONDITIONING())
    if not isinstance(conditioning, list | tuple):
        raise ValueError(Tensors.NO_CONDITIONING(remedy=remedy, found=inputs.describe(conditioning)))
    for number, entry in enumerate(conditioning, start=1):
        is_pair = isinstance(entry, list | tuple) and len(entry) > 1 and isinstance(entry[1], Mapping)
        if not is_pair or not isinstance(entry[0], torch.Tensor):
            raise ValueError(Tensors.ODD_ENTRY(remedy=remedy, number=number, found=_describe_entry(entry)))
        inputs.check_floats(entry[0], Tensors.ROWS(), remedy)


def _describe_entry(entry: Any) -> str:
    if not isinstance(entry, list | tuple) or len(entry) < 2:
        return inputs.describe(entry)
    return Tensors.PAIR(first=inputs.describe(entry[0]), second=inputs.describe(entry[1]))


def check_places(extras: Mapping[str, Any], clip: Clip) -> None:
    """Raise where a condition is for a place in the video, or of a strength, that is none: ComfyUI's samplers would end
    in a tensor operation.

    Args:
        extras: of an entry of a CONDITIONING, or a condition of a guider.
        clip: the video.

    Raises:
        ValueError: says which.
    """
    for name in ("strength", "mask_strength"):
        strength = extras.get(name)
        if strength is not None and not (isinstance(strength, int | float) and math.isfinite(strength)):
            raise ValueError(Inputs.ODD_STRENGTH(name=name, found=strength))
    mask = extras.get("mask")
    if mask is not None and not (isinstance(mask, torch.Tensor) and mask.dim() > 2 and mask.numel()):
        raise ValueError(Inputs.ODD_MASK(found=inputs.describe(mask)))
    if mask is not None and extras.get("set_area_to_bounds"):
        # ComfyUI 0.3.64 comfy/samplers.py (get_mask_aabb): of masks of two axes.
        raise ValueError(Inputs.MASK_BOUNDS())
    area = extras.get("area")
    if area is not None:
        _check_area(area, clip)


def _check_area(area: Any, clip: Clip) -> None:
    """Source of what an area is: ComfyUI comfy/samplers.py (get_area_and_mult)."""
    is_share = isinstance(area, list | tuple) and area[:1] in (["percentage"], ("percentage",))
    values = list(area[1:] if is_share else area) if isinstance(area, list | tuple) else []
    are_numbers = all(isinstance(each, int | float) and math.isfinite(each) for each in values)
    if len(values) not in ((6,) if is_share else (4, 6)) or not are_numbers:
        raise ValueError(Inputs.ODD_AREA(area=area))
    axes = len(values) // 2
    cells = clip.latent_shape[-axes:]
    starts = [round(start * size) if is_share else start for start, size in zip(values[axes:], cells, strict=True)]
    if min(values[:axes]) <= 0 or any(not 0 <= start < size for start, size in zip(starts, cells, strict=True)):
        width, height, frames = clip.width, clip.height, clip.num_frames
        raise ValueError(Inputs.AREA_OUTSIDE(width=width, height=height, num_frames=frames, area=area))


def is_plain(conditioning: Any) -> bool:
    """Say whether a CONDITIONING is one prompt for the whole clip and all steps."""
    return len(conditioning) == 1 and not sampler_keys(conditioning)


def sampler_keys(conditioning: Any) -> list[str]:
    """Return the keys of a CONDITIONING that ComfyUI's samplers heed."""
    return [key for key in _SAMPLER_KEYS if any(extras.get(key) is not None for _, extras, *_ in conditioning)]


def latent_samples(latent: Any, problem_of: Callable[[Sequence[int]], str | None] = latent_problem) -> torch.Tensor:
    """Return the samples [B, 16, T, h, w] of a LATENT.

    Args:
        problem_of: says what is wrong with their shape.

    Raises:
        ValueError: the latent is not that of a Wan2.1 video.
    """
    remedy = Tensors.CONNECT_LATENT()
    if not isinstance(latent, Mapping):
        raise ValueError(Tensors.NO_LATENT(remedy=remedy, found=inputs.describe(latent)))
    if "samples" not in latent:
        keys = joined(map(str, latent), Between.COMMA)
        found = Tensors.LATENT_KEYS(keys=keys) if keys else Tensors.WITH_NOTHING()
        raise ValueError(Tensors.NO_LATENT(remedy=remedy, found=found))
    samples = latent["samples"]
    if getattr(samples, "is_nested", False):
        raise ValueError(Inputs.NESTED_LATENT())
    inputs.check_floats(samples, Tensors.SAMPLES(), remedy)
    problem = problem_of(samples.shape)
    if problem:
        raise ValueError(problem)
    tensor: torch.Tensor = samples
    return tensor


def warn_unused(latent: dict[str, Any]) -> None:
    """Say what of a LATENT is not used: a noise mask, and other places in a batch than the clips have in this one."""
    places = latent.get("batch_index")
    expected = list(range(len(latent["samples"]))) if places is not None else []
    if places is not None and not (isinstance(places, Sequence) and list(places) == expected):
        logger.warning("LightX2V: %s", Inputs.IDLE_BATCH_INDEX())
    if latent.get("noise_mask") is not None:
        logger.warning("LightX2V: %s", Inputs.IDLE_NOISE_MASK())


def replace_samples(latent: dict[str, Any], samples: torch.Tensor) -> dict[str, Any]:
    """Return a copy of a LATENT with other samples; every other key stays."""
    return {**latent, "samples": samples}
