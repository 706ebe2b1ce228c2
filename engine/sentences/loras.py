"""Sentences of LoRAs."""

from __future__ import annotations

from . import Sentence


class Loras:
    """How much of a LoRA applies."""

    # lora/changes.py
    NO_NUMBERS = Sentence(
        "LoRA {title} cannot be used: {name} holds values that are NaN or infinite. The training or a conversion "
        "went wrong; use another version of the file."
    )
    ODD_STRENGTH = Sentence("The strength of LoRA {title} is {strength}; expected a number such as 1.0.")
    # lora/report.py
    APPLIES = Sentence("{title}: {num_matched} of {num_tensors} tensors apply ({parts})")
    LEFT_OUT = Sentence("; left out: {num_names} of {group} ({names}{more})")
