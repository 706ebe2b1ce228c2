"""Sentences of LoRAs."""

from __future__ import annotations

from . import Sentence


class Loras:
    """How much of a LoRA applies."""

    # lora/changes.py
    NO_NUMBERS = Sentence(
        "Use another version of LoRA {title}: {name} holds values that are NaN or infinite. The training or a "
        "conversion went wrong."
    )
    TOO_LARGE = Sentence(
        "Use another version of LoRA {title}: {name} holds numbers up to {size:.3g}, where those of a LoRA are below "
        "65504. The training or a conversion went wrong."
    )
    ODD_EFFECT = Sentence(
        "Set a lower strength, or use another version of LoRA {title}: with strength {strength:g} and alpha/rank "
        "{factor:g} it adds numbers up to {size:.3g} to {target}, where those of a model are below 65504."
    )
    ODD_STRENGTH = Sentence(
        "Set the strength of LoRA {title} to a number such as 1.0: it is {strength}; expected -{most:g} to {most:g}."
    )
    # lora/report.py
    APPLIES = Sentence("{title}: {num_matched} of {num_tensors} tensors apply ({parts})")
    ALL_APPLY = Sentence("{title}: all {num_tensors} tensors apply ({parts})")
    OF_GROUP = Sentence("{count} {group}")
    WITH_RANKS = Sentence("{line}, rank {ranks}, alpha/rank {factors}")
    LEFT_OUT = Sentence("{line}; {num_names} left out, of {group} ({names}{more})")
    WHOLE = Sentence("{line}.")
    CHANGES_NOTHING = Sentence(
        "Use another version of {title}: it changes nothing, as everything that it adds is zero (a LoRA begins so "
        "before it is trained)."
    )
    SPAN = Sentence("{first} to {last}")
    # lora/placed.py
    LOADING = Sentence("loading LoRAs")
    # lora/experts.py
    ONE_EXPERT = Sentence("this transformer is the {expert}-noise expert alone")
    NO_PAIR = Sentence("this transformer is no pair")
    NO_SUCH_EXPERT = Sentence(
        "Set expert to 'both', or load both experts of Wan2.2: LoRA {name} is to go on the {expert}-noise expert, and "
        "{found}."
    )
    BOTH_EXPERTS = Sentence("both experts")
    EITHER_EXPERT = Sentence("the {expert}-noise expert")
    PUT_ON = Sentence("Put on {where}.")
    NAMED_NOISE = Sentence("Its name says {said} noise: set expert to '{said}' where it is for that one alone.")
    WRONG_EXPERT = Sentence("Its name says {said} noise: it may be on the wrong expert.")
    WRONG_NOISE = Sentence("Its name says {said} noise: it may be the wrong one for the {expert}-noise expert.")
    # adapters/comfy/carried.py
    OF_OTHER_NODES = Sentence("LoRAs of other nodes")
    PART_OF_WEIGHT = Sentence("part of a weight")
