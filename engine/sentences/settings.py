"""Sentences of what can be chosen."""

from __future__ import annotations

from . import Sentence


class Settings:
    """Values of inputs, options and settings."""

    # errors.py
    NO_CHOICE = Sentence("{name} is {value!r}; expected one of: {choices}.")
    REASON = Sentence("{name}: {reason}")
    NO_BACK_END = Sentence("No back end can run {task}. {listed}")
    # settings.py
    COMPILE_WITH_LIGHTX2V = Sentence(
        "Set compile to 'auto', or engine to 'auto': compile is 'on' and engine is 'lightx2v', which computes as "
        "LightX2V does, without the pack's fused kernels."
    )
    OFFLOAD_MODE = Sentence("offload mode")
    VAE_TILING = Sentence("VAE tiling")
    ODD_LIMIT = Sentence("Set {name} to a number from 0 (measure) to {most}, not {gib}.")
    ODD_GPUS = Sentence(
        "gpus is {gpus!r}; expected auto, how many GPUs, such as 2, or the numbers of some, such as 0,2."
    )
    ODD_STEPS = Sentence("Set steps to a number from 1 to {most}, not {steps}. The checkpoint is distilled for 4.")
    ODD_SHIFT = Sentence(
        "Set shift to a number from {least} to {most}, not {shift}. The checkpoint is distilled for 5.0."
    )
    ODD_HIGH_STEPS = Sentence("high_steps is {high_steps}; expected 0 or more. The checkpoint is distilled for 2.")
