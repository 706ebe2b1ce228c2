"""Sentences of the nodes."""

from __future__ import annotations

from . import Sentence


class Nodes:
    """What a node was given."""

    # nodes/_values.py
    A_MODEL = Sentence("the MODEL of a loader, such as LightX2V Load Checkpoint,")
    CLIP_VISION = Sentence("the output of CLIPVisionLoader")
    TEXT_ENCODER = Sentence("the text_encoder of a LightX2V loader")
    OFFLOAD = Sentence("the output of LightX2V Offload")
    GPUS = Sentence("the output of LightX2V GPUs")
    OTHER_OBJECT = Sentence("Connect {what} to {name}: what comes there is {found}.")
    NO_TEXT = Sentence("Give {name} a text: what comes there is {found}.")
    NO_WHOLE_NUMBER = Sentence("Give {name} a whole number from {low} to {high}: what comes there is {found}.")
    NO_NUMBER = Sentence("Give {name} a number from {low} to {high}: what comes there is {found}.")
    NO_NUMBER_AT_ALL = Sentence("Give {name} a number: what comes there is {found}.")
    # nodes/lora.py
    OTHER_LOADER = Sentence(
        "Put {lora} on with LoraLoaderModelOnly: LightX2V LoRA is for transformers of LightX2V loaders, and this one "
        "is another loader's ({model})."
    )
    # nodes/report.py
    NOTHING_TO_REPORT = Sentence(
        "LightX2V Report has no input; connect the image of the decoder or the sampler's latent."
    )
