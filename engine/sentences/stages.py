"""Sentences of what goes into a clip and comes out."""

from __future__ import annotations

from . import Sentence


class Stages:
    """Prompts, images and frames."""

    # stages/conditioning.py
    CONDITIONING_SHAPE = Sentence("conditioning has shape {shape}")
    USE_TEXT_ENCODE = Sentence("Use 'LightX2V Text Encode', or CLIPLoader with type 'wan' and a umt5_xxl file.")
    ODD_CONDITIONING = Sentence("{found}; expected [1, {rows}, {width}] from UMT5-XXL.{guess} {remedy}")
    WIDTH_OF = Sentence(" Width {width} is that of {source}.")
    # stages/decode.py
    DECODING = Sentence("decoding frames")
    # stages/encode.py
    TAG_IS_TEXT = Sentence("Put a LoRA on with the node LightX2V LoRA: {tag} in the prompt is read as plain text.")
    WEIGHTS_ARE_TEXT = Sentence(
        "Say in words what matters: weights such as (word:1.3) are read as plain text, as Wan's text encoder has none."
    )
    LONG_PROMPT = Sentence(
        "The prompt has {num_tokens:d} tokens; the model reads {num_rows:d}. The last {num_ignored:d} are ignored; "
        "shorten the prompt."
    )
    # stages/encode_video.py
    ENCODING = Sentence("encoding frames")
    # stages/given.py
    IDLE_CLIP_VISION = Sentence(
        "the CLIP Vision output has no effect: this checkpoint (Wan2.2's kind) has no input for it."
    )
    NO_CLIP_VISION = Sentence(
        "the conditioning has an image and no clip_vision_output; the checkpoint was trained with it. Connect "
        "CLIPVisionEncode (clip_vision_h.safetensors, crop 'none') for a video that keeps to the image."
    )
    IMAGE_NODES = Sentence("'LightX2V Image To Video', or ComfyUI's WanImageToVideo or WanFirstLastFrameToVideo")
    NO_IMAGE = Sentence(
        "Connect the conditioning of {image_nodes} with an image: this checkpoint is image-to-video, and the "
        "conditioning has no image."
    )
    CHANNELS_48 = Sentence(" 48 channels are those of the VAE of Wan2.2 5B.")
    CHANNELS_32 = Sentence(" 32 channels are those of a control video.")
    ODD_IMAGE_LATENTS = Sentence(
        "Encode the image with the Wan2.1 VAE, in {image_nodes}: the conditioning's image has latents of shape "
        "{shape}; expected [1, {latent_channels}, frames, height/8, width/8].{guess}"
    )
    OTHER_SIZE = Sentence(
        "Connect the latent of the node that encoded the image, or give both the same size: the image is for "
        "{width}x{height} with {frames} frames, the latent for {latent_width}x{latent_height} with {num_frames}."
    )
    ODD_NUMBER_OF_IMAGES = Sentence(
        "Give one image, or one for each clip: the conditioning has {num_images} images, the latent {batch} {clips}."
    )
    NO_NUMBERS = Sentence(
        "Encode the image again, with 'LightX2V Image To Video' or with another VAE file: the latents of the "
        "conditioning's image hold NaN or infinity, which would make the video black."
    )
    ODD_MASK = Sentence(
        "Use {image_nodes} with the size of the latent: the conditioning's concat_mask has shape {shape}; expected "
        "[1, 1 or {mask_channels}, at most {frames}, {height}, {width}]."
    )
    ODD_CLIP_VISION = Sentence(
        "Load clip_vision_h.safetensors (ViT-H/14) with CLIPVisionLoader: the CLIP Vision output has shape {shape}; "
        "expected [1, rows, {width}].{guess}"
    )
    TOO_MANY_ROWS = Sentence(
        "Connect the first and the last frame only: the CLIP Vision output has {num_rows} rows, and this checkpoint "
        "knows the positions of {most}."
    )
    # stages/given_frames.py
    TOO_MANY_PICTURES = Sentence(
        "Give fewer pictures, or make the video longer: {num_start} first and {num_end} last frames are given, and "
        "the video has {num_frames}."
    )
