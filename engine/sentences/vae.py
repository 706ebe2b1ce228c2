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
    OTHER_TENSORS = Sentence(
        "The {part} in {path} is not that of a Wan2.1 VAE: {num_wrong} tensors are missing, superfluous or of "
        "another shape, first {name}: found {found}, expected {expected}. Download Wan2.1_VAE.pth or "
        "wan_2.1_vae.safetensors again."
    )
