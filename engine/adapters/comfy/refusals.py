"""What other nodes can put on a MODEL or a CONDITIONING that this pack's transformer cannot honour: refused by name.

A transformer of its own kernels has no place where a patch of ComfyUI's attention or of a block could run; leaving it
out would give another picture than the graph promises. What ComfyUI's own nodes meet is said in the editor's language
here; what comes while a node of ours or a sampler runs, where that ends (language.errors_to_editor).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import comfy.hooks
import comfy.model_sampling

from ...checkpoints.formats import WanArchitecture
from ...constants import NUM_TRAIN_TIMESTEPS
from ...sentences import joined
from ...sentences.between import Between
from ...sentences.refusals import Refusals
from .carried import HIGH_STEPS
from .language import to_editor

logger = logging.getLogger(__name__)

_NATIVE = Refusals.NATIVE()
# Of transformer_options: what describes the call, or runs around the transformer and not inside it.
_OPTIONS = frozenset({
    "sample_sigmas", "sigmas", "cond_or_uncond", "uuids", "wrappers", "callbacks", "easycache", "context_window",
    "prefetch_dynamic_vbars", "multigpu_thread_device", HIGH_STEPS,
})  # fmt: skip
_OPTION_NAMES = {
    "patches": Refusals.PATCHES(),
    "patches_replace": Refusals.REPLACEMENTS(),
    "optimized_attention_override": Refusals.OTHER_ATTENTION(),
    "attn_mask": Refusals.ATTENTION_MASK(),
}
# Of a CONDITIONING entry: what ComfyUI's samplers themselves heed.
_HEEDED_KEYS = frozenset({
    "cross_attn", "model_conds", "uuid", "area", "mask", "mask_strength", "set_area_to_bounds", "strength",
    "start_percent", "end_percent", "timestep_start", "timestep_end", "default", "hooks", "clip_start_percent",
    "clip_end_percent",
})  # fmt: skip
_SIZES_OF_SDXL = Refusals.SIZES_OF_SDXL()
_OF_VIDEO = Refusals.OF_VIDEO()
# What says nothing to a Wan model, and why.
_IDLE_KEYS = {
    "pooled_output": Refusals.POOLED(),
    "attention_mask": Refusals.REPEATS_ROWS(),
    "prompt_type": Refusals.PROMPT_TYPES(),
    "guidance": Refusals.GUIDANCE(),
    "aesthetic_score": Refusals.SDXL_REFINER(),
    **dict.fromkeys(("width", "height", "crop_w", "crop_h", "target_width", "target_height"), _SIZES_OF_SDXL),
    **dict.fromkeys(("frame_rate", "fps", "motion_bucket_id"), _OF_VIDEO),
    **dict.fromkeys(("seconds_start", "seconds_total", "lyrics_strength"), Refusals.OF_SOUND()),
    **dict.fromkeys(("noise_augmentation", "augmentation_level"), Refusals.OF_NOISY_PICTURES()),
    **dict.fromkeys(("elevation", "azimuth"), Refusals.OF_VIEWS()),
    "reference_latents_method": Refusals.REFERENCE_METHOD(),
}
_IMAGE_KEYS = {
    "concat_latent_image": Refusals.PICTURE(),
    "concat_mask": Refusals.PICTURE_MASK(),
    "concat_mask_index": Refusals.MASK_CONTROL_VIDEO(),
    "clip_vision_output": Refusals.CLIP_VISION_PICTURE(),
    "reference_latents": Refusals.REFERENCE_PICTURES(),
    "reference_latent": Refusals.REFERENCE_PICTURE(),
    "time_dim_concat": Refusals.REFERENCE_FRAMES(),
    "context_latents": Refusals.CONTEXT_PICTURES(),
    "vace_context": Refusals.VACE_CONTROL_VIDEO(),
    "vace_frames": Refusals.VACE_CONTROL_VIDEO(),
    "vace_mask": Refusals.MASK_VACE_CONTROL_VIDEO(),
    "vace_strength": Refusals.STRENGTH_VACE_CONTROL_VIDEO(),
    "camera_conditions": Refusals.CAMERA_PATH(),
    "audio_embed": "sound",
    "control_video": Refusals.CONTROL_VIDEO(),
    "reference_motion": Refusals.REFERENCE_MOTION(),
    "pose_video_latent": Refusals.VIDEO_POSES(),
    "face_video_pixels": Refusals.VIDEO_FACE(),
    "face_pixel_values": Refusals.VIDEO_FACE(),
    "control": "a ControlNet",
    "gligen": Refusals.GLIGEN_BOXES(),
    "unclip_conditioning": Refusals.UNCLIP_PICTURE(),
    "noise_concat": Refusals.LATENTS_BESIDE_NOISE(),
    "ref_latent": Refusals.REFERENCE_PICTURE(),
    "concat_image": Refusals.PICTURE_BESIDE_NOISE(),
    "keyframe_idxs": Refusals.KEY_FRAMES(),
    "guiding_frame_index": Refusals.GUIDING_FRAME(),
    "time_dim_replace": Refusals.HUNYUANVIDEO_FRAME(),
    "cross_attn_controlnet": Refusals.TEXT_CONTROLNET(),
}

# What an image-to-video model takes; the mask goes first there, and at another place in models of control videos.
_GIVEN_KEYS = {"concat_latent_image", "concat_mask", "concat_mask_index", "clip_vision_output"}
_CONTROL_KEY = "control_video"


def check_model(model: Any) -> None:
    """Raise where a MODEL of this pack carries what its transformer cannot honour.

    Raises:
        ValueError: names each.
    """
    found: list[str] = [Refusals.REPLACED_PART(name=name) for name in model.object_patches if name != "model_sampling"]
    found += [Refusals.INJECTION(name=name) for name, each in getattr(model, "injections", {}).items() if each]
    if getattr(model, "weight_wrapper_patches", None):
        found.append(Refusals.WRAPPED_WEIGHTS())
    if any(model.wrappers.get("apply_model", {}).get("torch.compile", ())):
        found.append(Refusals.TORCH_COMPILE())
    found += _options(model.model_options.get("transformer_options", {}))
    sampling = model.get_model_object("model_sampling")
    multiplier = getattr(sampling, "multiplier", None)
    if not isinstance(sampling, comfy.model_sampling.CONST) or multiplier != NUM_TRAIN_TIMESTEPS:
        found.append(Refusals.OTHER_SAMPLING())
    if found:
        raise _cannot(found)


def check_call(arguments: Mapping[str, Any], transformer_options: Mapping[str, Any]) -> None:
    """Raise where a call of the transformer brings what it cannot honour; some patches come with each call.

    Raises:
        ValueError: names each.
    """
    named = {**_IMAGE_KEYS, "clip_fea": _IMAGE_KEYS["clip_vision_output"]}
    found = [named.get(name, name) for name, value in arguments.items() if value is not None]
    found += _options(transformer_options)
    if found:
        raise _cannot(found)


def check_conds(conds: Mapping[str, Iterable[Mapping[str, Any]] | None], architecture: WanArchitecture) -> None:
    """Raise where a condition brings a picture or a control for which the model has no input; name in the log what
    nobody here knows.

    Args:
        conds: of a guider, by name: positive, negative ...; each entry with ComfyUI's keys.

    Raises:
        ValueError: names each.
    """
    every = [cond for each in conds.values() for cond in each or ()]
    keys = {key for cond in every for key, value in cond.items() if value is not None}
    if any(cond.get("concat_mask_index") for cond in every):
        keys.add(_CONTROL_KEY)
    known = _GIVEN_KEYS if architecture.takes_image else set()
    pictures = [_IMAGE_KEYS[key] for key in sorted(keys & set(_IMAGE_KEYS) - known)]
    if pictures and architecture.takes_image:
        raise ValueError(Refusals.NOT_FOR_IMAGE_MODEL(joined=_joined(pictures), native=_NATIVE))
    if pictures and keys & set(_IMAGE_KEYS) <= _GIVEN_KEYS:
        raise ValueError(Refusals.NOT_FOR_TEXT_MODEL(joined=_joined(pictures)))
    if pictures:
        raise ValueError(Refusals.NOT_FOR_ANY_MODEL(joined=_joined(pictures), native=_NATIVE))
    for key in sorted(keys & set(_IDLE_KEYS)):
        logger.info("LightX2V: %s", Refusals.IDLE_KEY(key=key, reason=_IDLE_KEYS[key]))
    unknown = sorted(keys - _HEEDED_KEYS - set(_IDLE_KEYS) - known)
    if unknown:
        logger.warning("LightX2V: %s", Refusals.UNKNOWN_KEY(joined=_joined(unknown)))


def check_patches(patches: Mapping[Any, Any], strength_model: float) -> None:
    """Raise where the patches of `add_patches` are not a LoRA's: merge nodes bring another model's weights as lists."""
    if strength_model != 1.0 or any(isinstance(patch, list) for patch in patches.values()):
        raise cannot_be_merged()


def check_hooks(hooks: Any) -> None:
    """Raise where hooks of a conditioning would change weights."""
    if any(True for _ in hooks.get_type(comfy.hooks.EnumHookType.Weight)):
        raise ValueError(to_editor(Refusals.NO_LORA_HOOKS(native=_NATIVE)))


def missing_in_config(name: str) -> str:
    return to_editor(Refusals.ASKS_FOR_UNET(name=name))


def missing_in_model(name: str) -> str:
    return to_editor(Refusals.ASKS_FOR_MODEL(name=name, native=_NATIVE))


def cannot_be_merged() -> ValueError:
    return ValueError(to_editor(Refusals.NO_MERGE()))


def cannot_be_saved() -> ValueError:
    return ValueError(to_editor(Refusals.NO_SAVE()))


def _options(options: Mapping[str, Any]) -> list[str]:
    found = []
    for name, value in options.items():
        if name in _OPTIONS or value is None or (isinstance(value, dict | list) and not _holds(value)):
            continue
        shown = _OPTION_NAMES.get(name, name)
        names = ", ".join(map(str, value)) if isinstance(value, dict) else ""
        found.append(Refusals.WITH_NAMES(what=shown, names=names) if names else shown)
    return found


def _holds(value: Any) -> bool:
    return any(_holds(each) for each in value.values()) if isinstance(value, dict) else bool(value)


def _cannot(found: list[str]) -> ValueError:
    return ValueError(Refusals.NO_PATCH(joined=_joined(found), native=_NATIVE))


def _joined(parts: Iterable[str]) -> str:
    *others, last = dict.fromkeys(parts)
    return joined([joined(others, Between.COMMA), last] if others else [last], Between.AND)
