"""The VAE decode node: with the pack's own VAE as planned, with ComfyUI's as that does."""

from __future__ import annotations

from typing import Any

from ..engine import pipeline
from ..engine.adapters.comfy import formats, native_vae, progress
from ..engine.adapters.comfy.host import find_host
from ..engine.adapters.comfy.vae import handle_of
from ..engine.errors import check_choice
from ..engine.panel import forecast
from ..engine.settings import TILING_MODES
from ..engine.shapes import decoding_problem
from ._api import io, node_id_of, schema, verdict


class LightX2VDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LightX2VDecode",
            display_name="LightX2V Decode",
            description="Decodes video latents to frames, chunk by chunk, so that long videos need little more VRAM.",
            search_aliases=["vae decode", "tiled decode"],
            inputs=[
                io.Vae.Input("vae", tooltip="From a LightX2V loader, or VAELoader with wan_2.1_vae.safetensors."),
                io.Latent.Input("latent", tooltip="Wan2.1 video latents, from any sampler."),
                io.Combo.Input(
                    "tiling",
                    options=list(TILING_MODES),
                    default="auto",
                    tooltip=(
                        "on: decode in tiles, with less memory and a little slower. auto: only when the whole decode "
                        "does not fit."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The frames, for CreateVideo (16 fps) or any image node.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, tiling: str | None = None) -> bool | str:
        return verdict(check_choice, "tiling", tiling, TILING_MODES)

    @classmethod
    def execute(cls, vae: Any, latent: dict[str, Any], tiling: str) -> io.NodeOutput:
        samples, handle = formats.latent_samples(latent, decoding_problem), handle_of(vae)
        if handle is None:
            return io.NodeOutput(native_vae.decode(vae, samples, tiling=tiling))
        with progress.reporting(node_id_of(cls)) as hooks:
            frames = pipeline.decode(handle, samples, tiling=tiling, hooks=hooks, host=find_host())
        forecast.remember_decoding(frames)
        return io.NodeOutput(frames)
