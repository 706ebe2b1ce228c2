"""What a file is when it is not what was wanted: one row a kind of model, recognised by tensor names.

formats.py asks here before it gives up, so that the refusal names the file's kind and says
what to use instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice
from typing import NoReturn

from ..errors import CheckpointError
from ..sentences.kinds import Kinds
from .header import Header

MODEL_REPOSITORY = "lightx2v/Wan2.1-T2V-14B-StepDistill-CfgDistill-Lightx2v"
TRANSFORMER_FILES = Kinds.TRANSFORMER_FILES(model_repository=MODEL_REPOSITORY)

# What each loader wants, and files that are it.
WANTED = {
    "transformer": Kinds.WANTED_TRANSFORMER(),
    "text encoder": Kinds.WANTED_TEXT_ENCODER(),
    "VAE": Kinds.WANTED_VAE(),
}
USABLE_FILES = {
    "transformer": TRANSFORMER_FILES,
    "text encoder": Kinds.USABLE_TEXT_ENCODERS(),
    "VAE": Kinds.USABLE_VAES(),
}


_NUMBER = re.compile(r"\.\d+(?=\.)")
# Of names that differ in more than a number; models have some hundred.
_MAX_NAMES = 1000


@dataclass(frozen=True)
class _Kind:
    name: str
    mark: str
    """Regular expression searched in tensor names, of whose numbers between dots every one is 0."""
    advice: str


_LORA = _Kind(Kinds.LORA(), r"\.lora_(down|up|A|B)\b|^lora_|\.diff(_b|_m)?$", Kinds.USE_LORA_NODE())
# Transformers and UNets of other families by names that only they have, in their own layout and in diffusers'.
# Source: ComfyUI comfy/model_detection.py; diffusers' models.
_FAMILIES = (
    ("Flux.2", r"(^|\.)double_stream_modulation_(img|txt)\."),
    ("Chroma", r"(^|\.)distilled_guidance_layer\."),
    (
        "HunyuanVideo/HunyuanImage",
        r"(^|\.)individual_token_refiner\.|(^|\.)context_embedder(_2)?\.token_refiner\.|\.img_attn_qkv\.",
    ),
    ("Hunyuan3D", r"(^|\.)latent_in\.weight$"),
    ("Flux", r"(^|\.)double_blocks\.\d+\.img_(attn|mod)\.|(^|\.)single_transformer_blocks\.\d+\.proj_mlp\."),
    ("AuraFlow", r"(^|\.)(double|single)_layers\.\d+\.|(^|\.)joint_transformer_blocks\.\d+\."),
    ("HiDream", r"(^|\.)(double|single)_stream_blocks\.\d+\."),
    ("Kandinsky 5", r"(^|\.)visual_transformer_blocks\.\d+\."),
    ("Mochi", r"(^|\.)t5_yproj\.|(^|\.)blocks\.\d+\.attn\.qkv_[xy]\.|(^|\.)time_embed\.pooler\."),
    ("Qwen-Image", r"(^|\.)transformer_blocks\.\d+\.(img|txt)_mod\."),
    ("Cosmos", r"(^|\.)blocks\.block\d+\.|(^|\.)blocks\.\d+\.adaln_modulation_|(^|\.)time_embed\.t_embedder\."),
    ("CogVideoX/CogView", r"(^|\.)patch_embed\.text_proj\.|\.attention\.query_key_value\."),
    ("Sana", r"\.ff\.conv_inverted\."),
    ("LTX-Video", r"(^|\.)patchify_proj\.|(^|\.)time_embed\.emb\.timestep_embedder\."),
    ("PixArt", r"(^|\.)t_block\.0\.|\.cross_attn\.(q|kv)_linear\.|(^|\.)adaln_single\.emb\."),
    ("Lumina/Z-Image", r"(^|\.)(noise|context)_refiner\.\d+\."),
    ("HunyuanDiT", r"(^|\.)mlp_t5\.|(^|\.)time_extra_emb\."),
    ("Stable Diffusion 3", r"(^|\.)joint_blocks\.\d+\.|(^|\.)transformer_blocks\.\d+\.norm1_context\."),
    ("Stable Cascade", r"(^|\.)clip_(txt_pooled_)?mapper\."),
    ("Stable Video Diffusion", r"\.time_stack\.|\.temporal_transformer_blocks\.\d+\."),
    ("SDXL", r"(^|\.)label_emb\.0\.0\.|(^|\.)add_embedding\.linear_1\.|^conditioner\.embedders\.\d"),
    (
        "Stable Diffusion",
        r"(^|\.)input_blocks\.\d+\.|^(unet\.)?(down|up)_blocks\.\d+\.attentions\.\d+\.transformer_blocks\.",
    ),
)

# The first row that matches names the file.
_KINDS = (
    _LORA,
    _Kind(
        Kinds.DIFFUSERS_TRANSFORMER(),
        r"(^|\.)condition_embedder\.(text_embedder|time_proj)\.|(^|\.)blocks\.\d+\.ffn\.net\.0\.proj\.",
        Kinds.USE_NATIVE_MODEL(),
    ),
    _Kind(
        Kinds.WAN_TRANSFORMER(),
        r"(^|\.)blocks\.\d+\.(modulation$|self_attn\.([qkvo]|norm_[qk])\.)",
        Kinds.LOAD_AS_TRANSFORMER(),
    ),
    *(_Kind(Kinds.FAMILY(name=name), mark, Kinds.USE_OWN_NODES()) for name, mark in _FAMILIES),
    _Kind(
        Kinds.T5_TEXT_ENCODER(),
        r"^(encoder\.block\.\d+\.layer|blocks\.\d+\.attn\.[qkvo])\.",
        Kinds.LOAD_AS_TEXT_ENCODER(),
    ),
    _Kind(
        Kinds.CLIP_MODEL(),
        r"text_model\.encoder\.|transformer\.resblocks\.|^(visual|textual|vision_model)\.",
        Kinds.NO_CLIP_NEEDED(),
    ),
    _Kind(Kinds.WAN_VAE(), r"(^|\.)decoder\.middle\.\d", Kinds.LOAD_AS_VAE()),
    _Kind(Kinds.DIFFUSERS_VAE(), r"(^|\.)decoder\.mid_block\.", Kinds.USE_NATIVE_VAE()),
    _Kind(Kinds.IMAGE_VAE(), r"(^|\.)decoder\.mid\.", Kinds.NEEDS_WAN_VAE()),
    _Kind(Kinds.TINY_VAE(), r"^(decoder|taesd_decoder)\.\d+\.", Kinds.TINY_VAES_THAT_FIT()),
    _Kind(Kinds.LANGUAGE_MODEL(), r"(^|\.)layers\.\d+\.(self_attn|mlp)\.", Kinds.CHOOSE_ANOTHER_FILE()),
    _Kind(
        Kinds.OTHER_FAMILY(),
        r"(double|single|joint|input|output|down|up|transformer)_blocks\.\d",
        Kinds.USE_OWN_NODES(),
    ),
)


_PLAIN = Kinds.USE_PLAIN_MODEL()
# Transformers of the Wan family, or forms of Wan2.1, that this pack does not run.
_WAN_VARIANTS = (
    _Kind(
        Kinds.NVFP4(),
        r"\.weight_(scale_2|global_scale)$",
        Kinds.NO_FOUR_BIT(),
    ),
    _Kind(Kinds.VACE_MODEL(), r"^vace_", _PLAIN),
    _Kind(Kinds.SPEECH_MODEL(), r"^(casual_audio_encoder|audio_)", _PLAIN),
    _Kind(Kinds.ANIMATE_MODEL(), r"^(face_adapter|motion_encoder)\.", _PLAIN),
    _Kind(Kinds.CAMERA_CONTROL_MODEL(), r"^control_adapter\.", _PLAIN),
)
_VARIANT_OF_IN_DIM = {48: Kinds.WAN22_5B()}


def identify_kind(header: Header) -> tuple[str, str] | None:
    """Return (kind of model, what to do with it) by tensor names, or None."""
    return _first_match(_KINDS, header)


def refuse_kind(header: Header, source: str, *, wanted: str) -> NoReturn:
    """Raise the CheckpointError for a file that is not a `wanted` (a key of WANTED), naming what it is."""
    expected = Kinds.EXPECTED(wanted=WANTED[wanted], usable=USABLE_FILES[wanted])
    if not header:
        raise CheckpointError(Kinds.NO_TENSORS(source=source, expected=expected))
    kind = identify_kind(header)
    if kind is None:
        examples = ", ".join(sorted(header)[:3])
        raise CheckpointError(Kinds.NOT_RECOGNISED(source=source, examples=examples, expected=expected))
    raise CheckpointError(Kinds.IS_OTHER(source=source, kind=kind[0], expected=expected, advice=kind[1]))


def check_wan_variant(header: Header, source: str) -> None:
    """Raise CheckpointError when a Wan transformer (names without prefix) is a variant this pack does not run."""
    variant = _first_match(_WAN_VARIANTS, header)
    patch = header.get("patch_embedding.weight")
    in_dim = patch.shape[1] if patch is not None and len(patch.shape) > 1 else None
    if variant is None and in_dim in _VARIANT_OF_IN_DIM:
        variant = _VARIANT_OF_IN_DIM[in_dim], Kinds.USE_14B()
    if variant is not None:
        expected = Kinds.EXPECTED(wanted=WANTED["transformer"], usable=TRANSFORMER_FILES)
        raise CheckpointError(Kinds.IS_OTHER(source=source, kind=variant[0], expected=expected, advice=variant[1]))


def _first_match(kinds: tuple[_Kind, ...], header: Header) -> tuple[str, str] | None:
    # Blocks are alike.
    names = dict.fromkeys(_NUMBER.sub(".0", name) for name in header)
    for kind in kinds:
        mark = re.compile(kind.mark)
        if any(mark.search(name) for name in islice(names, _MAX_NAMES)):
            return kind.name, kind.advice
    return None
