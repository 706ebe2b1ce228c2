"""The prompt encoder node."""

from __future__ import annotations

from typing import Any

from ..engine import pipeline
from ..engine.adapters.comfy import formats, progress
from ..engine.adapters.comfy.host import find_host
from ..engine.errors import check_choice
from ..engine.settings import TEXT_DEVICES
from . import sockets
from ._api import io, node_id_of, schema, verdict


class LightX2VTextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LightX2VTextEncode",
            display_name="LightX2V Text Encode",
            description=(
                "Turns a prompt into conditioning with UMT5-XXL, on the CPU unless you choose otherwise. The weights "
                "leave memory again as soon as the prompt is encoded. The distilled model has no negative prompt."
            ),
            search_aliases=["prompt", "t5", "umt5", "clip text encode"],
            inputs=[
                sockets.TextEncoder.Input("text_encoder", tooltip="From a LightX2V loader."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    placeholder="What the video shows, in English or Chinese",
                    tooltip=(
                        "The prompt, in any language UMT5 knows; detailed descriptions work best. At most 512 tokens, "
                        "the rest is cut with a warning. May be empty."
                    ),
                ),
                io.Combo.Input(
                    "device",
                    options=list(TEXT_DEVICES),
                    default="cpu",
                    tooltip=("cpu needs no VRAM and takes seconds. gpu is faster for long prompts and takes 0.3 GiB."),
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning",
                    tooltip="For the LightX2V sampler; ComfyUI's own Wan samplers take it too.",
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, device: str | None = None) -> bool | str:
        return verdict(check_choice, "device", device, TEXT_DEVICES)

    @classmethod
    def execute(cls, text_encoder: Any, text: str, device: str) -> io.NodeOutput:
        with progress.reporting(node_id_of(cls)) as hooks:
            rows = pipeline.encode_text(text_encoder, text, device=device, hooks=hooks, host=find_host())
        return io.NodeOutput(formats.make_conditioning(rows))
