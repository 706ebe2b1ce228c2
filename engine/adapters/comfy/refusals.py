"""What other nodes can put on a MODEL or a CONDITIONING that this pack's transformer cannot honour: refused by name.

A transformer of its own kernels has no place where a patch of ComfyUI's attention or of a block could run; leaving it
out would give another picture than the graph promises.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import comfy.hooks
import comfy.model_sampling

from ...checkpoints.formats import WanArchitecture
from ...constants import NUM_TRAIN_TIMESTEPS
from .carried import HIGH_STEPS

logger = logging.getLogger(__name__)

_NATIVE = "load the model with 'Load Diffusion Model' (UNETLoader) instead; LightX2V Sampler takes that too"
# Of transformer_options: what describes the call, or runs around the transformer and not inside it.
_OPTIONS = frozenset({
    "sample_sigmas", "sigmas", "cond_or_uncond", "uuids", "wrappers", "callbacks", "easycache", "context_window",
    "prefetch_dynamic_vbars", "multigpu_thread_device", HIGH_STEPS,
})  # fmt: skip
_OPTION_NAMES = {
    "patches": "patches of attention or blocks (HyperTile, ToMe, Deep Shrink)",
    "patches_replace": "replaced attention or blocks (Skip Layer Guidance, Perturbed-Attention Guidance)",
    "optimized_attention_override": "another attention (Sage or Flash attention nodes; the loader's input 'attention' "
    "has them)",
    "attn_mask": "an attention mask",
}
# Of a CONDITIONING entry: what ComfyUI's samplers themselves heed.
_HEEDED_KEYS = frozenset({
    "cross_attn", "model_conds", "uuid", "area", "mask", "mask_strength", "set_area_to_bounds", "strength",
    "start_percent", "end_percent", "timestep_start", "timestep_end", "default", "hooks", "clip_start_percent",
    "clip_end_percent",
})  # fmt: skip
_SIZES_OF_SDXL = "is for SDXL; the latent gives the size"
_OF_VIDEO = "is for other video models; Wan's frame rate is fixed"
# What says nothing to a Wan model, and why.
_IDLE_KEYS = {
    "pooled_output": "is for models that take one vector of a text; Wan takes its rows",
    "attention_mask": "repeats what the rows tell: those after the text are zero",
    "prompt_type": "is for models with prompts of several kinds",
    "guidance": "is for Flux and HunyuanVideo, and is distilled into this model",
    "aesthetic_score": "is for SDXL's refiner",
    **dict.fromkeys(("width", "height", "crop_w", "crop_h", "target_width", "target_height"), _SIZES_OF_SDXL),
    **dict.fromkeys(("frame_rate", "fps", "motion_bucket_id"), _OF_VIDEO),
    **dict.fromkeys(("seconds_start", "seconds_total", "lyrics_strength"), "is for models of sound"),
    **dict.fromkeys(("noise_augmentation", "augmentation_level"), "is for models that get a noisy picture"),
    **dict.fromkeys(("elevation", "azimuth"), "is for models of views of an object"),
    "reference_latents_method": "says how to use reference pictures, of which there are none",
}
_IMAGE_KEYS = {
    "concat_latent_image": "a picture (Wan Image To Video)",
    "concat_mask": "the mask of a picture (Wan Image To Video)",
    "concat_mask_index": "the mask of a control video",
    "clip_vision_output": "a CLIP Vision picture",
    "reference_latents": "reference pictures",
    "reference_latent": "a reference picture",
    "time_dim_concat": "reference frames",
    "context_latents": "context pictures",
    "vace_context": "a VACE control video",
    "vace_frames": "a VACE control video",
    "vace_mask": "the mask of a VACE control video",
    "vace_strength": "the strength of a VACE control video",
    "camera_conditions": "a camera path",
    "audio_embed": "sound",
    "control_video": "a control video",
    "reference_motion": "a reference motion",
    "pose_video_latent": "a video of poses",
    "face_video_pixels": "a video of a face",
    "face_pixel_values": "a video of a face",
    "control": "a ControlNet",
    "gligen": "GLIGEN boxes",
    "unclip_conditioning": "an unCLIP picture",
    "noise_concat": "latents beside the noise",
    "ref_latent": "a reference picture",
    "concat_image": "a picture beside the noise",
    "keyframe_idxs": "key frames",
    "guiding_frame_index": "a guiding frame",
    "time_dim_replace": "a first frame (HunyuanVideo)",
    "cross_attn_controlnet": "a text for a ControlNet",
}

# What an image-to-video model takes; the mask goes first there, and at another place in models of control videos.
_GIVEN_KEYS = {"concat_latent_image", "concat_mask", "concat_mask_index", "clip_vision_output"}
_CONTROL_KEY = "control_video"


def check_model(model: Any) -> None:
    """Raise where a MODEL of this pack carries what its transformer cannot honour.

    Raises:
        ValueError: names each.
    """
    found = [f"a replaced part of the model ({name})" for name in model.object_patches if name != "model_sampling"]
    found += [f"an injection ({name})" for name, each in getattr(model, "injections", {}).items() if each]
    if getattr(model, "weight_wrapper_patches", None):
        found.append("wrapped weights")
    if any(model.wrappers.get("apply_model", {}).get("torch.compile", ())):
        found.append("torch.compile (TorchCompileModel; the loader's input 'compile' has fused kernels)")
    found += _options(model.model_options.get("transformer_options", {}))
    sampling = model.get_model_object("model_sampling")
    multiplier = getattr(sampling, "multiplier", None)
    if not isinstance(sampling, comfy.model_sampling.CONST) or multiplier != NUM_TRAIN_TIMESTEPS:
        found.append("a model sampling that is not Wan's (use ModelSamplingSD3, which only sets the shift)")
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
        raise ValueError(
            f"Remove {_joined(pictures)} from the conditioning: this checkpoint is image-to-video, and takes a first "
            "frame, a last one, and what CLIP Vision makes of them."
        )
    if pictures:
        raise ValueError(
            f"Remove {_joined(pictures)} from the conditioning, or load an image-to-video model: this checkpoint is "
            "text-to-video and has no input for it."
        )
    for key in sorted(keys & set(_IDLE_KEYS)):
        logger.info("LightX2V: the conditioning's %s has no effect: it %s.", key, _IDLE_KEYS[key])
    unknown = sorted(keys - _HEEDED_KEYS - set(_IDLE_KEYS) - known)
    if unknown:
        logger.warning(
            "LightX2V: the conditioning's %s is not known to this model and has no effect.", _joined(unknown)
        )


def check_patches(patches: Mapping[Any, Any], strength_model: float) -> None:
    """Raise where the patches of `add_patches` are not a LoRA's: merge nodes bring another model's weights as lists."""
    if strength_model != 1.0 or any(isinstance(patch, list) for patch in patches.values()):
        raise cannot_be_merged()


def check_hooks(hooks: Any) -> None:
    """Raise where hooks of a conditioning would change weights."""
    if any(True for _ in hooks.get_type(comfy.hooks.EnumHookType.Weight)):
        raise ValueError(
            "Put the LoRA on the model (LoraLoaderModelOnly) instead of on the conditioning: this model's weights "
            f"cannot change between conditions or steps. For LoRA hooks {_NATIVE}."
        )


def missing_in_config(name: str) -> str:
    return (
        f"Remove the node that asks the model for {name} (FreeU, for instance): it is for Stable Diffusion's UNet, and "
        "this is a Wan video model."
    )


def missing_in_model(name: str) -> str:
    return (
        f"For the node that asks the model for diffusion_model.{name} {_NATIVE}: LightX2V's transformer computes in "
        "its own engine."
    )


def cannot_be_merged() -> ValueError:
    return ValueError(
        "Merge models that are loaded with 'Load Diffusion Model' (UNETLoader): a LightX2V model's weights are not "
        "in ComfyUI's hands, and cannot be merged, subtracted or extracted there."
    )


def cannot_be_saved() -> ValueError:
    return ValueError(
        "Save a model that is loaded with 'Load Diffusion Model' (UNETLoader): the weights of a LightX2V model are not "
        "in ComfyUI's hands, and cannot be saved there."
    )


def _options(options: Mapping[str, Any]) -> list[str]:
    found = []
    for name, value in options.items():
        if name in _OPTIONS or value is None or (isinstance(value, dict | list) and not _holds(value)):
            continue
        parts = f" [{', '.join(map(str, value))}]" if isinstance(value, dict) else ""
        found.append(f"{_OPTION_NAMES.get(name, name)}{parts}")
    return found


def _holds(value: Any) -> bool:
    return any(_holds(each) for each in value.values()) if isinstance(value, dict) else bool(value)


def _cannot(found: list[str]) -> ValueError:
    return ValueError(
        f"Remove {_joined(found)} from the model, or {_NATIVE}: LightX2V's transformer runs kernels of its own, which "
        "cannot be patched from outside."
    )


def _joined(parts: Iterable[str]) -> str:
    *others, last = dict.fromkeys(parts)
    return f"{', '.join(others)} and {last}" if others else last
