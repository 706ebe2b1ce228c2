"""Sentences of sizes: videos, latents and frames."""

from __future__ import annotations

from . import Sentence


class Sizes:
    """What a size or a shape may be."""

    # shapes.py
    TOO_LARGE = Sentence("{name} is {value}; expected at most {limit}.")
    NO_MULTIPLE = Sentence("{name} is {value}; expected a multiple of {multiple}. Use {nearest}.")
    ODD_NUMBER_OF_FRAMES = Sentence("{name} is {num_frames}; expected 4n+1 (1, 5, 9, ... 81). Use {nearest}.")
    LATENT = Sentence("latent samples have shape {shape}; expected [batch, {channels}, frames, height/8, width/8]")
    ODD_LATENT = Sentence("{found} with even height/8 and width/8, that is, pixels in multiples of {multiple}.")
    NO_VIDEO_LATENT = Sentence("{found}. Use 'LightX2V Empty Latent' (image latents have 4 dimensions, video 5).")
    OTHER_LATENT = Sentence("{found}. {channels} channels belong to another model; use 'LightX2V Empty Latent'.")
    EMPTY_LATENT = Sentence("{found}, none of them 0.")
    FRAMES = Sentence(
        "frames have shape {shape}; expected [frames, height, width, 3] or [batch, frames, height, width, 3]"
    )
    NO_FRAMES = Sentence("{found}, as an IMAGE has it.")
    TOO_SMALL = Sentence("{found}, of at least {width}x{height} pixels.")
    # pipeline.py
    NO_ROOM_FOR_LATENT = Sentence(
        "Make the video smaller, shorter, or one of fewer clips: there is no RAM for latents of shape {shape}."
    )
    # memory/clip.py
    CLIP = Sentence("{width}x{height} with {num_frames} frames")
    CLIPS = Sentence("{batch} clips of {clip}")
    SIZE = Sentence("{width}x{height}, {num_frames} frames")
