"""What a MODEL, a CONDITIONING or a picture may not bring, and what has no effect."""

from __future__ import annotations

from . import Sentence


class Refusals:
    """What cannot be honoured."""

    # adapters/comfy/refusals.py
    IDLE_KEY = Sentence("the conditioning's {key} has no effect: it {reason}.")
    UNKNOWN_KEY = Sentence("the conditioning's {joined} is not known to this model and has no effect.")
    NATIVE = Sentence(
        "load the model with 'Load Diffusion Model' (UNETLoader) instead; LightX2V Sampler takes that too"
    )
    SIZES_OF_SDXL = Sentence("is for SDXL; the latent gives the size")
    OF_VIDEO = Sentence("is for other video models; Wan's frame rate is fixed")
    PATCHES = Sentence("patches of attention or blocks (HyperTile, ToMe, Deep Shrink)")
    REPLACEMENTS = Sentence("replaced attention or blocks (Skip Layer Guidance, Perturbed-Attention Guidance)")
    OTHER_ATTENTION = Sentence(
        "another attention (Sage or Flash attention nodes; the loader's input 'attention' has them)"
    )
    ATTENTION_MASK = Sentence("an attention mask")
    POOLED = Sentence("is for models that take one vector of a text; Wan takes its rows")
    REPEATS_ROWS = Sentence("repeats what the rows tell: those after the text are zero")
    PROMPT_TYPES = Sentence("is for models with prompts of several kinds")
    GUIDANCE = Sentence("is for Flux and HunyuanVideo, and is distilled into this model")
    SDXL_REFINER = Sentence("is for SDXL's refiner")
    REFERENCE_METHOD = Sentence("says how to use reference pictures, of which there are none")
    PICTURE = Sentence("a picture (Wan Image To Video)")
    PICTURE_MASK = Sentence("the mask of a picture (Wan Image To Video)")
    MASK_CONTROL_VIDEO = Sentence("the mask of a control video")
    CLIP_VISION_PICTURE = Sentence("a CLIP Vision picture")
    REFERENCE_PICTURES = Sentence("reference pictures")
    REFERENCE_PICTURE = Sentence("a reference picture")
    REFERENCE_FRAMES = Sentence("reference frames")
    CONTEXT_PICTURES = Sentence("context pictures")
    VACE_CONTROL_VIDEO = Sentence("a VACE control video")
    MASK_VACE_CONTROL_VIDEO = Sentence("the mask of a VACE control video")
    STRENGTH_VACE_CONTROL_VIDEO = Sentence("the strength of a VACE control video")
    CAMERA_PATH = Sentence("a camera path")
    CONTROL_VIDEO = Sentence("a control video")
    REFERENCE_MOTION = Sentence("a reference motion")
    VIDEO_POSES = Sentence("a video of poses")
    VIDEO_FACE = Sentence("a video of a face")
    GLIGEN_BOXES = Sentence("GLIGEN boxes")
    UNCLIP_PICTURE = Sentence("an unCLIP picture")
    LATENTS_BESIDE_NOISE = Sentence("latents beside the noise")
    PICTURE_BESIDE_NOISE = Sentence("a picture beside the noise")
    KEY_FRAMES = Sentence("key frames")
    GUIDING_FRAME = Sentence("a guiding frame")
    HUNYUANVIDEO_FRAME = Sentence("a first frame (HunyuanVideo)")
    TEXT_CONTROLNET = Sentence("a text for a ControlNet")
    ASKS_FOR_UNET = Sentence(
        "Remove the node that asks the model for {name} (FreeU, for instance): it is for Stable Diffusion's UNet, "
        "and this is a Wan video model."
    )
    ASKS_FOR_MODEL = Sentence(
        "For the node that asks the model for diffusion_model.{name} {native}: LightX2V's transformer computes in "
        "its own engine."
    )
    OF_SOUND = Sentence("is for models of sound")
    OF_NOISY_PICTURES = Sentence("is for models that get a noisy picture")
    OF_VIEWS = Sentence("is for models of views of an object")
    REPLACED_PART = Sentence("a replaced part of the model ({name})")
    INJECTION = Sentence("an injection ({name})")
    WITH_NAMES = Sentence("{what} [{names}]")
    NO_MERGE = Sentence(
        "Merge models that are loaded with 'Load Diffusion Model' (UNETLoader): a LightX2V model's weights are not "
        "in ComfyUI's hands, and cannot be merged, subtracted or extracted there."
    )
    NO_SAVE = Sentence(
        "Save a model that is loaded with 'Load Diffusion Model' (UNETLoader): the weights of a LightX2V model are "
        "not in ComfyUI's hands, and cannot be saved there."
    )
    NO_PATCH = Sentence(
        "Remove {joined} from the model, or {native}: LightX2V's transformer runs kernels of its own, which cannot "
        "be patched from outside."
    )
    WRAPPED_WEIGHTS = Sentence("wrapped weights")
    TORCH_COMPILE = Sentence("torch.compile (TorchCompileModel; the loader's input 'compile' has fused kernels)")
    OTHER_SAMPLING = Sentence("a model sampling that is not Wan's (use ModelSamplingSD3, which only sets the shift)")
    NOT_FOR_IMAGE_MODEL = Sentence(
        "Remove {joined} from the conditioning: this checkpoint is image-to-video, and takes a first frame, a last "
        "one, and what CLIP Vision makes of them. For more {native}."
    )
    NOT_FOR_TEXT_MODEL = Sentence(
        "Remove {joined} from the conditioning, or load an image-to-video model: this checkpoint is text-to-video "
        "and has no input for it."
    )
    NOT_FOR_ANY_MODEL = Sentence(
        "Remove {joined} from the conditioning: this checkpoint is text-to-video and has no input for it. For a model "
        "that has one {native}."
    )
    NO_LORA_HOOKS = Sentence(
        "Put the LoRA on the model (LoraLoaderModelOnly) instead of on the conditioning: this model's weights cannot "
        "change between conditions or steps. For LoRA hooks {native}."
    )
    # adapters/comfy/image_to_video.py
    ALPHA = Sentence(
        "{name} has an alpha channel, which has no effect: transparent parts show the colour that lies below them. "
        "Put the picture on a background first."
    )
    FROM_PICTURE = Sentence("from the picture")
    NO_PICTURE = Sentence("Connect start_image, end_image or both: there is no picture to make a video from.")
    NO_NUMBERS = Sentence(
        "Use the vae of a LightX2V loader, or start ComfyUI with --fp32-vae: the VAE made NaN or infinity of the "
        "picture, which would make the video black."
    )
    NO_FRAMES = Sentence(
        "Use the vae of a LightX2V loader, start ComfyUI with --fp32-vae, or download the VAE again: the VAE made NaN "
        "or infinity of the latents, so the video would be black."
    )
