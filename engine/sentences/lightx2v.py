"""Sentences of LightX2V's own components."""

from __future__ import annotations

from . import Sentence


class LightX2V:
    """What is installed, and what it can do."""

    # adapters/lightx2v/bootstrap.py
    NOT_INSTALLED = Sentence("LightX2V is not installed ({name} was not found). Run: {install}")
    NEEDS_PACKAGES = Sentence("LightX2V needs {packages}. Run: pip install {to_install}")
    IMPORTED = Sentence("components imported from {path}.")
    NEEDS_PACKAGE = Sentence("LightX2V needs the Python package {name!r}, which is not installed. Install it with pip.")
    OTHER_DTYPE = Sentence(
        "LightX2V already runs in {dtype} and {sensitive} in this process; this engine needs bfloat16. Another node "
        "pack imported it first: set the environment variable DTYPE to BF16 and restart ComfyUI."
    )
    OTHER_VERSION = Sentence(
        "The installed LightX2V does not work with this engine and torch {torch} ({error}). The version known to work "
        "is commit {commit}; install it with: {install}"
    )
    NO_PACKAGE = Sentence("{name} is not a package")
    # adapters/lightx2v/transformer.py
    NO_LORAS = Sentence(
        "Set engine to 'auto' for LoRAs: engine is 'lightx2v', whose own LoRA support cannot apply them as a whole. "
        "It takes one file, leaves out embeddings and head, and merges into unquantized weights only."
    )
    # adapters/lightx2v/vae.py
    DECODER_INCOMPLETE = Sentence("{path} has no {name} ({num_missing} tensors of the decoder are missing).")
    DECODER_MISFIT = Sentence("{path} does not fit LightX2V's decoder: {error}")
