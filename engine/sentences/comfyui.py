"""Sentences of the nodes' inputs, lists and routes."""

from __future__ import annotations

from . import Sentence


class Lists:
    """Model folders, and what loaders offer."""

    # adapters/comfy/paths.py
    LEFT_OUT = Sentence("{path} is left out of the lists of models: {problem}")
    DOWNLOAD_IT = Sentence("download it in the side bar's LightX2V tab (or with tools/download.py)")
    LINK_TO = Sentence("{link} is a link to {target}, which cannot be reached.")
    NONE_FOUND = Sentence("none found: {put}")
    CHOOSE_ANOTHER = Sentence("Choose another {what} than {name!r}, which {found}. There are: {listed}.{fetch}")
    CHOOSE_PART = Sentence("Choose {parts} instead of {name!r}, which is the folder around: it holds no {what} itself.")
    PUT_CHECKPOINT = Sentence("put the checkpoint folder in models/lightx2v")
    PUT_TRANSFORMER = Sentence("put a Wan2.1 4-step safetensors file in models/diffusion_models")
    PUT_TEXT_ENCODER = Sentence("put a umt5_xxl file in models/text_encoders")
    PUT_TOKENIZER = Sentence("put the folder google/umt5-xxl beside the text encoder file")
    PUT_LORA = Sentence("put a LoRA for Wan2.1 14B in models/loras")
    PUT_VAE = Sentence("put Wan2.1_VAE.pth or wan_2.1_vae.safetensors in models/vae")
    NOTHING_THERE = Sentence(
        "No {what} was found. To have one, {fetch}{put}; then press R in the editor and choose it."
    )
    SECOND_NOT_THERE = Sentence("Set second_expert (among the advanced inputs) to 'auto'. {problem}")
    SECOND_LEFT_OVER = Sentence(
        "Set second_expert (among the advanced inputs) to 'auto': {first!r} holds both experts and needs no second "
        "one, and {name!r} is not there."
    )
    IS_OUTSIDE = Sentence("is a path outside the model folders")
    NOT_FOUND = Sentence("was not found in the model folders")
    HAVE_ANOTHER = Sentence(" To have another, {download}.")
    IN_ALL = Sentence("{listed} ({num_names} in all)")
    OR = Sentence("{download}, or ")
    BROKEN_LINK = Sentence("Make {name} lead to a file again, or choose another: {listed}. {where}")


class Routes:
    """What the editor asks."""

    # adapters/comfy/routes.py
    NOT_OFFERED = Sentence("{text!r}; expected a name that the node offers")
    NO_NUMBER = Sentence("{text!r}; expected a number")
    OUT_OF_RANGE = Sentence("{text}; expected {low} to {high}")
    ODD_PARAMETER = Sentence("{name} is {problem}.")
    NONE = Sentence("none")
    NO_JSON = Sentence("The request has no JSON body (Content-Type: application/json).")
    NOT_UTF8 = Sentence("Send the request as UTF-8; its charset is {charset!r}.")
    TOO_LONG = Sentence("The request is longer than {max_body} bytes.")
    ODD_JSON = Sentence("The request's body is no JSON ({error}); expected a JSON object of texts.")
    NO_OBJECT = Sentence("The request's body is not a JSON object.")
    NO_CHOICE = Sentence("{text!r}; expected one of: {options}")
    NO_PARAMETER = Sentence("{name} has no parameter {parameter!r}; expected any of: {known}.")
    NO_TEXT = Sentence(
        "{name} is not a text of at most {max_text} characters; shorten the name, or the path of its folder."
    )
    TOO_DEEP = Sentence("The request's body is nested too deeply; expected a JSON object of texts.")


class Inputs:
    """What other nodes bring."""

    # adapters/comfy/formats.py
    IDLE_BATCH_INDEX = Sentence(
        "the latent's batch_index (Latent From Batch, Latent Batch Seed Behavior) has no effect; clip i is made with "
        "seed + i."
    )
    IDLE_NOISE_MASK = Sentence("the latent's noise mask has no effect; the sampler starts from noise everywhere.")
    NO_PENULTIMATE = Sentence(
        "Connect the output of CLIPVisionEncode: the conditioning's clip_vision_output is {name}, without "
        "penultimate_hidden_states."
    )
    EMPTY_CONDITIONING = Sentence(
        "The conditioning is empty; expected the output of 'LightX2V Text Encode' or of CLIPTextEncode with a "
        "CLIPLoader of type 'wan'."
    )
    NESTED_LATENT = Sentence(
        "The latent holds several tensors (video with audio, of another model); expected one of shape [batch, 16, "
        "frames, height/8, width/8]. Use 'LightX2V Empty Latent'."
    )
    ODD_AREA = Sentence(
        "Use ConditioningSetArea, or ConditioningSetAreaPercentageVideo for shares of the video: the conditioning's "
        "area is {area}; expected height, width, y and x."
    )
    AREA_OUTSIDE = Sentence(
        "Move the conditioning's area into the video, which is {width}x{height} with {num_frames} frames: it is "
        "{area}, sizes and then places in latent cells (8 pixels, 4 frames) or shares."
    )
    ODD_MASK = Sentence(
        "Use ConditioningSetMask with a MASK: the conditioning's mask is {found}; expected [masks, height, width]."
    )
    MASK_BOUNDS = Sentence(
        "Set set_cond_area of 'Conditioning (Set Mask)' to 'default': it is 'mask bounds', which ComfyUI's samplers "
        "know for pictures only, and this is a video."
    )
    ODD_STRENGTH = Sentence("Set the conditioning's {name} to a number: it is {found}.")
    # adapters/comfy/native_vae.py
    USE_VAE = Sentence("Connect the vae of a LightX2V loader, or of VAELoader with wan_2.1_vae.safetensors.")
    OTHER_VAE = Sentence(
        "The VAE is {names}, of {channels} channels of {kind} latents; expected one of Wan2.1's "
        "{latent_channels}-channel video latents. {use}"
    )
    NO_VAE = Sentence("The vae input holds no VAE (found {name}). {use}")
