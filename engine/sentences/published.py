"""What can be downloaded."""

from __future__ import annotations

from . import Sentence


class Published:
    """The published variants and their parts."""

    # checkpoints/published.py
    EXPERT = Sentence("{noise}-noise transformer")
    TWO_FILES = Sentence("two files, one for each expert; ")
    FP8_FOLDER = Sentence("folder of blocks, in FP8: the fastest on H100 and H200; RTX cards take int8")
    INT8_FOLDER = Sentence("folder of blocks, in INT8: the fastest on RTX 30, 40 and 50")
    BF16_FOLDER = Sentence("folder, unquantized; 32 GiB of RAM, or a card with 40 GiB and more")
    SINGLE_FILES = Sentence("single files, for LightX2V Load Transformer with ComfyUI's own loaders")
    COMFYUI_FILES = Sentence("as fp8-single, with one scale a layer: ComfyUI's Load Diffusion Model reads it too")
    INT8_FILES = Sentence("as fp8-single, in INT8")
    BF16_FILES = Sentence("as fp8-single, unquantized, with the FP16 text encoder")
    WAN21_IMAGE = Sentence("Wan2.1 image to video, made for {size}, with CLIP Vision")
    WAN22_IMAGE = Sentence("Wan2.2 image to video, both experts, for a first and a last frame too")
    LORA = Sentence(
        "LoRA: an ordinary {model}, one that is not distilled, draws in 4 steps without CFG; {several}with LightX2V "
        "LoRA at strength 1"
    )
    ORDINARY = Sentence("an ordinary {model}, not distilled: with the LoRA {lora} at strength 1 it draws in 4 steps")
    UNKNOWN_VARIANT = Sentence("variant is {name!r}; expected one of: {names}.")
    UNKNOWN_PART = Sentence("{name} has no part {parts!r}; its parts: {listed}.")
    PARTS_OF = Sentence("{parts} of {name}")
    GONE = Sentence(
        "The {what} is not in {repository} any more: expected {patterns} there, or one of its other places. The "
        "repository has changed; look at its page and put the file in place by hand."
    )
    LEADS_OUTSIDE = Sentence("{repository} lists {path!r}, which leads outside the models folder. Refused.")
    BLOCKS = Sentence("transformer blocks")
    REST = Sentence("rest of the transformer")
    TEXT_TO_VIDEO = Sentence("Text to video")
    IMAGE_TO_VIDEO = Sentence("Image to video")
    EXPERTS = Sentence("Experts of Wan2.2")
    LORAS = Sentence("LoRAs for ordinary models")
    ORDINARY_MODELS = Sentence("Ordinary models for the LoRAs")
