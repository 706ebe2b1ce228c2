"""Sentences of sampling."""

from __future__ import annotations

from . import Sentence


class Sampling:
    """Samplers, their models and what they make."""

    # adapters/comfy/sampling.py
    IDLE_SHIFT = Sentence(
        "the model's shift {other:g} (ModelSamplingSD3) has no effect on LightX2V Sampler: it has its own, {shift:g}."
    )
    EXPECTED_MODEL = Sentence(
        "Connect a LightX2V loader, or 'Load Diffusion Model' with a distilled Wan2.1 or Wan2.2 14B file: this "
        "sampler is for Wan video models of 16 latent channels"
    )
    OTHER_MODEL = Sentence("{expected}, and the model is {found}.")
    OTHER_CHANNELS = Sentence("{expected}, and the model is {found}, of {channels} channels.")
    NO_NUMBERS = Sentence(
        "Check that the model's file is complete and that its weight_dtype is 'default': sampling made {share:.1f} % "
        "of the latents NaN or infinite, so the video would be black or noise. The model was {name}, computed by "
        "ComfyUI."
    )
    ONLY_IN_COMFYUI = Sentence(
        "Run the workflow in ComfyUI (run_workflow.py --server URL), or leave the conditioning as the text encoder "
        "made it: it has {found}, which ComfyUI's samplers heed and which are not here."
    )
    ENTRIES = Sentence("{count:d} entries")
    # adapters/comfy/wan_model.py
    ODD_NOISE_LEVELS = Sentence(
        "Connect the SIGMAS of a scheduler node that has this model, such as BasicScheduler: the noise levels are "
        "{levels}; expected numbers from 1 down to 0."
    )
    NO_TEXT = Sentence(
        "Connect 'LightX2V Text Encode', or CLIPTextEncode with a CLIPLoader of type 'wan': the condition '{name}' has "
        "no text."
    )
    NOT_FOR_CFG = Sentence(
        "{found}; the checkpoint is distilled for cfg 1, where a step takes half the time or less and no negative "
        "prompt is needed."
    )
    OTHER_NOISE_LEVELS = Sentence(
        "the sampler's noise levels are {levels}; the checkpoint is distilled for {distilled}, which scheduler "
        "'simple' with {distill_steps:d} steps and shift {distill_shift:g} gives. Others usually look worse."
    )
    SEVERAL_CONDITIONS = Sentence("the guider computes several conditions")
    CFG_IS = Sentence("cfg is {cfg:g}")
    EXPERT_AT = Sentence("{name}-noise expert at sigma {sigma:.4g}")
    NO_SAMPLER = Sentence(
        "Use a sampler node of ComfyUI, or LightX2V Sampler: LightX2V's model was called without one, so that "
        "nothing has planned its memory and loaded it for latents of shape {shape}."
    )
    UNLOADED = Sentence(
        "Run it again without what unloads models while one is sampling (a node in a callback of the sampler, for "
        "instance): LightX2V's transformer was unloaded between two steps."
    )
    # stages/denoise.py
    CHECK = Sentence(
        "Check the checkpoint in the doctor: a damaged file does this, and `python tools/download.py get` mends it."
    )
    STOPPED = Sentence(
        "{advice} Sampling stopped at step {step} of {steps}: {share:.1f} % of the latents are NaN or infinite, so the "
        "video would be black or noise. Running: {facts}."
    )
    SET_ATTENTION = Sentence("attention to 'sdpa'")
    SET_COMPILE = Sentence("compile to 'off'")
    SET_OFFLOAD = Sentence("offload to 'block'")
    RULE_OUT = Sentence(
        "Set {settings} to rule out a kernel, then check the checkpoint in the doctor: a damaged file does this, and "
        "`python tools/download.py get` mends it."
    )
    LORA_AT = Sentence("{title} at strength {strength:g}")
    WITHOUT_LORAS = Sentence("Sample without the LoRAs first, or with lower strengths ({loras}). {advice}")
    # handles.py
    ONE_GPU = Sentence(
        "Set engine to 'auto', or gpus of LightX2V GPUs to 1: LightX2V's own compute runs on one GPU here."
    )
    # pipeline.py
    SAMPLING = Sentence("sampling")
    DECODING = Sentence("decoding")
    FILE_CHANGED = Sentence("Run again: a file changed during this run, and the clip may be wrong. {error}")
    ODD_LATENTS = Sentence(
        "Check {title} in full (python tools/doctor.py --check NAME), and sample without LoRAs: the latents are far "
        "outside of what a video of Wan has, as {doubt}. A damaged checkpoint or LoRA does this."
    )
    WIDE_LATENTS = Sentence(
        "their standard deviation is {std:.3g}, of one channel {largest:.3g}, where about 1 is usual and 2 is much"
    )
    SHIFTED_LATENTS = Sentence("the mean of one channel is {mean:.3g}, where 0 to 2 is usual")
    ROUGH_LATENTS = Sentence(
        "neighbours differ {roughness:.2f} times as much as in noise, where in a picture they are alike"
    )
    BROKEN_LATENTS = Sentence(
        "Sample again, with another sampler, attention or precision, and with a file that is complete: {share:.1f} % "
        "of the latents to decode are NaN or infinite, and the video would be black."
    )
    BROKEN_FRAMES = Sentence(
        "Check the VAE in full (python tools/doctor.py --check {vae}) and download it again: {vae} made frames that "
        "are NaN or infinite of latents that are not, so the video would be black. A damaged VAE does this."
    )
    BROKEN_ENCODING = Sentence(
        "Check the VAE in full (python tools/doctor.py --check {vae}) and download it again: of the pictures {vae} "
        "made latents of which {share:.1f} % are NaN or infinite, so the video would be black. A damaged VAE does this."
    )
    UNUSUAL_STEPS = Sentence(
        "steps {steps:d} and shift {shift:g}; the checkpoint is distilled for {distill_steps:d} steps and shift "
        "{distill_shift:g}, other values usually look worse."
    )
    UNUSUAL_BOUNDARY = Sentence(
        "the high-noise expert has {high_steps:d} of {steps:d} steps; the experts are distilled for half of them each."
    )
    IDLE_EXPERT = Sentence(
        "the {expert}-noise expert is never used: high_steps is {high_steps:d} and there are {steps:d} steps; the "
        "experts are distilled for half of them each."
    )
    LATENT_NOT_EMPTY = Sentence("the input latent is not empty; the sampler starts from pure noise and ignores it.")
    BATCH = Sentence("batch of {num_clips:d} clips, seeds {seed:d} to {last:d}.")
    STEPS_OF_EXPERT = Sentence("{expert}-noise expert: steps {first:d} to {last:d} of {steps:d}, sigma {sigmas}.")
