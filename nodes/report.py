"""The run report node."""

from __future__ import annotations

import json
from typing import Any

from ..engine import pipeline, report_table
from ..engine.adapters.comfy import formats, host
from ..engine.adapters.comfy.language import to_editor
from ..engine.inputs import check_floats
from ..engine.sentences.nodes import Nodes
from ..engine.sentences.tensors import Tensors
from ._api import io, output_shown, schema


class LightX2VReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LightX2VReport",
            display_name="LightX2V Report",
            description=(
                "What the run did and cost: the memory plan, seconds per stage and step, peaks of RAM and VRAM as "
                "predicted and as measured, engine, precision, back ends, card and versions. Attach it to a benchmark "
                "post or a bug report."
            ),
            search_aliases=["benchmark", "timing", "debug", "info"],
            is_output_node=True,
            inputs=[
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="Frames of LightX2V Decode: reports the whole run. Passed on as they are.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="Latents of LightX2V Sampler: reports up to sampling. Passed on as they are.",
                ),
            ],
            # No explicit ids: ComfyUI 0.3.64 refuses an output named like an input.
            outputs=[
                io.Image.Output(display_name="image", tooltip="The image input."),
                io.Latent.Output(display_name="latent", tooltip="The latent input."),
                io.String.Output(display_name="report", tooltip="The report as JSON."),
            ],
        )

    @classmethod
    def execute(cls, image: Any = None, latent: dict[str, Any] | None = None) -> io.NodeOutput:
        if image is None and latent is None:
            raise ValueError(Nodes.NOTHING_TO_REPORT())
        if image is None:
            reported = formats.latent_samples(latent, lambda _: None)
        else:
            check_floats(image, "image", Tensors.CONNECT_IMAGE())
            reported = image
        report = pipeline.report_of(reported, host.versions())
        text = json.dumps(report, indent=2)
        rows = to_editor(report_table.as_rows(report))
        markdown = report_table.as_markdown(rows)
        return output_shown(image, latent, text, text=text, table=json.dumps(rows), markdown=markdown)
