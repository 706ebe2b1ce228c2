"""Sentences of the nodes."""

from __future__ import annotations

from . import Sentence


class Nodes:
    """What a node was given."""

    # nodes/lora.py
    OTHER_LOADER = Sentence(
        "Put {lora} on with LoraLoaderModelOnly: LightX2V LoRA is for transformers of LightX2V loaders, and this one "
        "is another loader's ({model})."
    )
    # nodes/report.py
    NOTHING_TO_REPORT = Sentence(
        "LightX2V Report has no input; connect the image of the decoder or the sampler's latent."
    )
