"""What a file is when it is not what was wanted: one row a kind of model, recognised by tensor names.

checkpoint_formats.py asks here before it gives up, so that the refusal names the file's kind and says
what to use instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from ..errors import CheckpointError
from .header import Header

MODEL_REPOSITORY = "lightx2v/Wan2.1-T2V-14B-StepDistill-CfgDistill-Lightx2v"
TRANSFORMER_FILES = f"distill_fp8, distill_int8 or distill_models of {MODEL_REPOSITORY}"

# What each loader wants, and files that are it.
WANTED = {
    "transformer": "a Wan2.1 or Wan2.2 14B transformer under its native names",
    "text encoder": "a UMT5-XXL encoder",
    "VAE": "a Wan2.1 VAE under its native names",
}
USABLE_FILES = {
    "transformer": TRANSFORMER_FILES,
    "text encoder": "models_t5_umt5-xxl-enc-bf16.pth (or -fp8, -int8) or ComfyUI's umt5_xxl_fp16.safetensors",
    "VAE": "Wan2.1_VAE.pth or wan_2.1_vae.safetensors",
}


@dataclass(frozen=True)
class _Kind:
    name: str
    mark: str
    """Regular expression searched in every tensor name."""
    advice: str


# The first row that matches names the file.
_KINDS = (
    _Kind(
        "a LoRA",
        r"\.lora_(down|up|A|B)\b|^lora_|\.diff(_b|_m)?$",
        "Load the model itself, and put the LoRA on it with LightX2V LoRA.",
    ),
    _Kind(
        "a transformer in diffusers' layout",
        r"condition_embedder\.|transformer_blocks\.|\.attn1\.to_[qkv]\b",
        "Use the same model with Wan's native names.",
    ),
    _Kind("a Wan transformer", r"(^|\.)blocks\.\d+\.(modulation$|self_attn\.)", "Load it as the transformer."),
    _Kind("a T5 text encoder", r"^(encoder\.block|blocks)\.\d+\.(layer|attn)\.", "Load it as the text encoder."),
    _Kind(
        "a CLIP model",
        r"text_model\.encoder\.|transformer\.resblocks\.|^(visual|textual|vision_model)\.",
        "Wan text to video uses the UMT5-XXL text encoder and no CLIP.",
    ),
    _Kind("a Wan VAE", r"(^|\.)decoder\.middle\.\d", "Load it as the VAE."),
    _Kind("a VAE in diffusers' layout", r"(^|\.)decoder\.mid_block\.", "Use the same VAE with Wan's native names."),
    _Kind("an image model's VAE", r"(^|\.)decoder\.mid\.", "Wan latents need Wan's own VAE."),
    _Kind(
        "a tiny auto-encoder (TAE)",
        r"^(decoder|taesd_decoder)\.\d+\.",
        "Of the tiny ones only taew2_1 and lighttaew2_1 fit: they have Wan2.1's 16 latent channels.",
    ),
    _Kind("a language model", r"(^|\.)layers\.\d+\.(self_attn|mlp)\.", "Choose another file."),
    _Kind(
        "a model of another family",
        r"(double|single|joint|input|output)_blocks\.|double_stream_modulation",
        "Load it with ComfyUI's own nodes.",
    ),
)


_PLAIN = "Use the text-to-video or the image-to-video model."
# Transformers of the Wan family, or forms of Wan2.1, that this pack does not run.
_WAN_VARIANTS = (
    _Kind(
        "an NVFP4 checkpoint",
        r"\.weight_(scale_2|global_scale)$",
        "4-bit weights are not supported: use the FP8 or INT8 version.",
    ),
    _Kind("a VACE model", r"^vace_", _PLAIN),
    _Kind("a speech-to-video model (S2V)", r"^(casual_audio_encoder|audio_)", _PLAIN),
    _Kind("an Animate model", r"^(face_adapter|motion_encoder)\.", _PLAIN),
    _Kind("a camera control model", r"^control_adapter\.", _PLAIN),
)
_VARIANT_OF_IN_DIM = {48: "the Wan2.2 TI2V 5B model (48 input channels)"}


def identify_kind(header: Header) -> tuple[str, str] | None:
    """Return (kind of model, what to do with it) by tensor names, or None."""
    return _first_match(_KINDS, header)


def refuse_kind(header: Header, source: str, *, wanted: str) -> NoReturn:
    """Raise the CheckpointError for a file that is not a `wanted` (a key of WANTED), naming what it is."""
    expected = f"expected {WANTED[wanted]}, e.g. {USABLE_FILES[wanted]}."
    if not header:
        raise CheckpointError(f"{source} holds no tensors; {expected}")
    kind = identify_kind(header)
    if kind is None:
        examples = ", ".join(sorted(header)[:3])
        raise CheckpointError(f"{source} is not recognised: found tensors such as {examples}; {expected}")
    raise CheckpointError(f"{source} is {kind[0]}; {expected} {kind[1]}")


def check_wan_variant(header: Header, source: str) -> None:
    """Raise CheckpointError when a Wan transformer (names without prefix) is a variant this pack does not run."""
    variant = _first_match(_WAN_VARIANTS, header)
    patch = header.get("patch_embedding.weight")
    in_dim = patch.shape[1] if patch is not None and len(patch.shape) > 1 else None
    if variant is None and in_dim in _VARIANT_OF_IN_DIM:
        variant = _VARIANT_OF_IN_DIM[in_dim], "Use a 14B model (16 input channels, or 36 for image-to-video)."
    if variant is not None:
        raise CheckpointError(
            f"{source} is {variant[0]}; expected {WANTED['transformer']}, e.g. {TRANSFORMER_FILES}. {variant[1]}"
        )


def _first_match(kinds: tuple[_Kind, ...], header: Header) -> tuple[str, str] | None:
    for kind in kinds:
        mark = re.compile(kind.mark)
        if any(mark.search(name) for name in header):
            return kind.name, kind.advice
    return None
