"""What a file is when it is not what was wanted, and what to do then."""

from __future__ import annotations

from . import Sentence


class Kinds:
    """Kinds of models and files."""

    # checkpoints/kinds.py
    TRANSFORMER_FILES = Sentence("distill_fp8, distill_int8 or distill_models of {model_repository}")
    USE_PLAIN_MODEL = Sentence("Use the text-to-video or the image-to-video model.")
    WANTED_TRANSFORMER = Sentence("a Wan2.1 or Wan2.2 14B transformer under its native names")
    WANTED_TEXT_ENCODER = Sentence("a UMT5-XXL encoder")
    WANTED_VAE = Sentence("a Wan2.1 VAE under its native names")
    USABLE_VAES = Sentence("Wan2.1_VAE.pth or wan_2.1_vae.safetensors")
    WAN22_5B = Sentence("the Wan2.2 TI2V 5B model (48 input channels)")
    USE_LORA_NODE = Sentence("Load the model itself, and put the LoRA on it with LightX2V LoRA.")
    DIFFUSERS_TRANSFORMER = Sentence("a Wan transformer in diffusers' layout")
    USE_NATIVE_MODEL = Sentence("Use the same model with Wan's native names.")
    WAN_TRANSFORMER = Sentence("a Wan transformer")
    LOAD_AS_TRANSFORMER = Sentence("Load it as the transformer.")
    T5_TEXT_ENCODER = Sentence("a T5 text encoder")
    LOAD_AS_TEXT_ENCODER = Sentence("Load it as the text encoder.")
    CLIP_MODEL = Sentence("a CLIP model")
    NO_CLIP_NEEDED = Sentence(
        "Wan reads text with UMT5-XXL and no CLIP; CLIP Vision for image to video goes to CLIPVisionLoader."
    )
    LOAD_AS_VAE = Sentence("Load it as the VAE.")
    DIFFUSERS_VAE = Sentence("a VAE in diffusers' layout")
    USE_NATIVE_VAE = Sentence("Use the same VAE with Wan's native names.")
    IMAGE_VAE = Sentence("an image model's VAE")
    NEEDS_WAN_VAE = Sentence("Wan latents need Wan's own VAE.")
    TINY_VAE = Sentence("a tiny auto-encoder (TAE)")
    TINY_VAES_THAT_FIT = Sentence(
        "Of the tiny ones only taew2_1 and lighttaew2_1 fit: they have Wan2.1's 16 latent channels."
    )
    LANGUAGE_MODEL = Sentence("a language model")
    CHOOSE_ANOTHER_FILE = Sentence("Choose another file.")
    FAMILY = Sentence("a model of the {name} family")
    OTHER_FAMILY = Sentence("a model of another family")
    USE_OWN_NODES = Sentence("Load it with ComfyUI's own nodes.")
    NO_FOUR_BIT = Sentence("4-bit weights are not supported: use the FP8 or INT8 version.")
    VACE_MODEL = Sentence("a VACE model")
    SPEECH_MODEL = Sentence("a speech-to-video model (S2V)")
    ANIMATE_MODEL = Sentence("an Animate model")
    CAMERA_CONTROL_MODEL = Sentence("a camera control model")
    LORA = Sentence("a LoRA")
    WAN_VAE = Sentence("a Wan VAE")
    NVFP4 = Sentence("an NVFP4 checkpoint")
    USABLE_TEXT_ENCODERS = Sentence(
        "models_t5_umt5-xxl-enc-bf16.pth (or -fp8, -int8) or ComfyUI's umt5_xxl_fp16.safetensors"
    )
    EXPECTED = Sentence("expected {wanted}, e.g. {usable}.")
    IS_OTHER = Sentence("{advice} {source} is {kind}; {expected}")
    NO_TENSORS = Sentence("Download {source} again: it holds no tensors; {expected}")
    NOT_RECOGNISED = Sentence(
        "Choose another file: {source} is not recognised: found tensors such as {examples}; {expected}"
    )
    USE_14B = Sentence("Use a 14B model (16 input channels, or 36 for image-to-video).")


class Parts:
    """What a model consists of."""

    # checkpoints/files.py, checkpoints/published.py, adapters/comfy/paths.py
    CHECKPOINT = Sentence("checkpoint")
    TRANSFORMER = Sentence("transformer")
    SECOND_EXPERT = Sentence("second expert")
    TEXT_ENCODER = Sentence("text encoder")
    TOKENIZER = Sentence("tokenizer")
    CLIP_VISION = Sentence("CLIP Vision")
    CONFIG = Sentence("config")
