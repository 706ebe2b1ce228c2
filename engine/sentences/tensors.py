"""Sentences of tensors that other nodes and programs hand over."""

from __future__ import annotations

from . import Sentence


class Tensors:
    """What a tensor has to be."""

    # inputs.py
    FOUND = Sentence("{kind} of shape {shape}")
    NO_FLOATS = Sentence("{remedy}: {name} is {found}; expected a tensor of floating-point numbers.")
    NO_NUMBERS = Sentence("{remedy}: {name} holds NaN or infinity.")
    CONNECT_IMAGE = Sentence("Connect an IMAGE, such as Load Image's")
    CONNECT_OTHER_IMAGE = Sentence("Connect another picture, or look at the node that made it")
    EMPTY_PICTURES = Sentence("Connect an IMAGE, such as Load Image's: {name} is empty, {found}.")
    PICTURE_RANGE = Sentence(
        "Bring the values of {name} to 0 to 1 (divide them by 255 where they are 0 to 255; add 1 and halve them where "
        "they are -1 to 1): they are {low:.4g} to {high:.4g}."
    )
    PICTURE_SHAPE = Sentence(
        "Connect an IMAGE, such as Load Image's: {name} is {found}; expected [pictures, height, width, 3 or 4]."
    )
    # adapters/comfy/vae.py
    FRAMES = Sentence("the picture to encode")
    # adapters/comfy/formats.py
    CONNECT_LATENT = Sentence("Connect 'LightX2V Empty Latent', EmptyHunyuanLatentVideo, or a sampler's latent")
    NO_LATENT = Sentence("{remedy}: the latent is {found}; expected a LATENT with samples.")
    LATENT_KEYS = Sentence("one with {keys}")
    WITH_NOTHING = Sentence("an empty one")
    SAMPLES = Sentence("the latent's samples")
    CONNECT_TEXT = Sentence("Connect 'LightX2V Text Encode', or CLIPTextEncode with a CLIPLoader of type 'wan'")
    ODD_ENTRY = Sentence(
        "{remedy}: entry {number:d} of the conditioning is {found}; expected text rows and a dict of what goes with "
        "them."
    )
    PAIR = Sentence("[{first}, {second}]")
    NO_CONDITIONING = Sentence("{remedy}: the conditioning is {found}.")
    ROWS = Sentence("the text of the conditioning")
    # stages/conditioning.py
    ENCODE_AGAIN = Sentence("Encode the prompt again, with 'LightX2V Text Encode' or another text encoder file")
    # stages/given.py
    IMAGE_LATENTS = Sentence("the conditioning's concat_latent_image")
    MASK = Sentence("the conditioning's concat_mask")
    MASK_RANGE = Sentence("Use {image_nodes}: {name} is {low:.4g} to {high:.4g}; expected numbers from 0 to 1.")
    USE = Sentence("Use {image_nodes}")
    VISION_ROWS = Sentence("the conditioning's clip_vision_output")
    LOAD_VISION = Sentence("Load clip_vision_h.safetensors (ViT-H/14) with CLIPVisionLoader")
