"""The LoRA node."""

from __future__ import annotations

import logging
from typing import Any

from ..engine.adapters.comfy import paths
from ..engine.adapters.comfy.carried import handle_of, with_lora
from ..engine.lora.changes import MOST_STRENGTH, check_strength
from ..engine.lora.experts import EXPERT_CHOICES
from ..engine.sentences.nodes import Nodes
from ._api import io, schema, verdict

logger = logging.getLogger(__name__)


class LightX2VLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LightX2VLora",
            display_name="LightX2V LoRA",
            description=(
                "Puts a LoRA on a transformer of a LightX2V loader, exactly, whatever precision its weights have: "
                "nothing is rounded into them. Chain several. Another strength or LoRA loads nothing else again."
            ),
            search_aliases=["lora loader", "loraloadermodelonly", "style", "wan lora", "lycoris"],
            inputs=[
                io.Model.Input("transformer", tooltip="From a LightX2V loader, or from another LightX2V LoRA."),
                io.Combo.Input(
                    "lora",
                    options=paths.LORAS.options(),
                    tooltip=(
                        "A LoRA for Wan2.1 or Wan2.2 14B in models/loras, as any tool writes it. The line below says "
                        "how much of it applies. LoHa, LoKr and DoRA are refused."
                    ),
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-MOST_STRENGTH,
                    max=MOST_STRENGTH,
                    step=0.01,
                    tooltip="1 is as it was trained, 0 is none, below 0 is the opposite. The file's alpha is honoured.",
                ),
                io.Combo.Input(
                    "expert",
                    options=list(EXPERT_CHOICES),
                    default=EXPERT_CHOICES[0],
                    optional=True,
                    tooltip=(
                        "Of Wan2.2's two experts, the one it is put on: LoRAs for them come as two files, one each. "
                        "Of other models leave it on both."
                    ),
                ),
            ],
            outputs=[io.Model.Output(display_name="transformer", tooltip="For LightX2V Sampler or KSampler.")],
        )

    @classmethod
    def validate_inputs(cls, lora: str | None = None) -> bool | str:
        return verdict(paths.LORAS.resolve, lora)

    @classmethod
    def fingerprint_inputs(cls, lora: str, **_: object) -> str:
        return paths.fingerprint(paths.LORAS.resolve(lora))

    @classmethod
    def execute(cls, transformer: Any, lora: str, strength: float, expert: str = EXPERT_CHOICES[0]) -> io.NodeOutput:
        handle = handle_of(transformer)
        if handle is None:
            raise ValueError(Nodes.OTHER_LOADER(lora=lora, model=type(transformer.model).__name__))
        check_strength(strength, lora)
        read = handle.read_lora(paths.LORAS.resolve(lora), expert)
        is_odd = read.report.is_idle or read.report.is_doubtful
        logger.log(logging.WARNING if is_odd else logging.INFO, "LightX2V: LoRA %s", read.report)
        return io.NodeOutput(with_lora(transformer, read, strength))
