"""Sentences of VAE files."""

from __future__ import annotations

from . import Sentence


class Vae:
    """What a VAE's file lacks."""

    # wan/vae.py
    NO_ENCODER = Sentence(
        "This VAE decodes only: {path} holds no encoder. To encode images or video, load Wan2.1_VAE.pth or "
        "wan_2.1_vae.safetensors."
    )
    NOTHING = Sentence("nothing")
    OTHER_TENSORS = Sentence(
        "The {part} in {path} is not that of a Wan2.1 VAE: {num_wrong} tensors are missing, superfluous or of "
        "another shape, first {name}: found {found}, expected {expected}. Download Wan2.1_VAE.pth or "
        "wan_2.1_vae.safetensors again."
    )
    # adapters/comfy/vae.py
    NO_OPTIONS = Sentence("LightX2V's VAE has no options for decoding; found {options}.")
    NO_SAVING = Sentence(
        "To have this VAE elsewhere, copy its file: {path}. LightX2V's VAE does not hold its weights for ComfyUI's "
        "save nodes."
    )
    NESTED_LATENT = Sentence(
        "The latent holds several tensors (video with audio, of another model); LightX2V's VAE takes Wan2.1 video "
        "latents [batch, 16, frames, height/8, width/8]."
    )
    OWN_ENGINE = Sentence(
        "LightX2V's VAE computes in its own engine and has no first_stage_model.{name}. Where a node needs ComfyUI's "
        "own network, use VAELoader with wan_2.1_vae.safetensors."
    )
    OTHER_TILES = Sentence(
        "tiles of {size:d} pixels that overlap by {overlap:d} (asked for: {asked:d} and {asked_overlap:d})."
    )
