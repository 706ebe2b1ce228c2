"""The node that makes a video begin, or end, with a picture."""

from __future__ import annotations

from typing import Any

from ..engine import pipeline
from ..engine.adapters.comfy import formats, image_to_video, progress
from ..engine.errors import check_choice
from ..engine.panel import forecast
from ..engine.shapes import latent_shape
from ._api import io, node_id_of, refuse, schema
from .latent import size_inputs


class LightX2VImageToVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LightX2VImageToVideo",
            display_name="LightX2V Image To Video",
            description=(
                "Lets a video begin with a picture, end with one, or both, for image-to-video models. Its conditioning "
                "is that of ComfyUI's WanImageToVideo, made as Wan itself makes it."
            ),
            search_aliases=["i2v", "wan image to video", "first frame", "last frame", "start image", "flf2v"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The encoded prompt. It says what happens."),
                io.Vae.Input("vae", tooltip="From a LightX2V loader, or VAELoader with wan_2.1_vae.safetensors."),
                io.Combo.Input(
                    "size",
                    options=list(image_to_video.SIZES),
                    default=image_to_video.SIZES[0],
                    tooltip=(
                        "from the picture: its aspect, with as many pixels as width times height have; nothing is cut "
                        "off. width x height: exactly that, from the middle of the picture."
                    ),
                ),
                *size_inputs(
                    made_for="The models are made for",
                    batch="Number of videos from the same picture, with seeds seed, seed + 1, ...",
                ),
                io.Image.Input(
                    "start_image",
                    optional=True,
                    tooltip="The first frame. Several pictures are the first frames, in their order.",
                ),
                io.Image.Input(
                    "end_image",
                    optional=True,
                    tooltip="The last frame. Several pictures are the last frames, in their order.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip=(
                        "From CLIPVisionLoader with clip_vision_h.safetensors. Wan2.1's models need it, Wan2.2's have "
                        "no use for it."
                    ),
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="Only for samplers that ask for one; a distilled model is run without.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="positive", tooltip="The prompt with the picture, for LightX2V Sampler or KSampler."
                ),
                io.Conditioning.Output(
                    display_name="negative",
                    tooltip="The negative prompt with the picture, or zeros with it, for samplers that ask for one.",
                ),
                io.Latent.Output(display_name="latent", tooltip="An empty latent of the video's size."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls,
        size: str | None = None,
        width: int | None = None,
        height: int | None = None,
        num_frames: int | None = None,
    ) -> bool:
        refuse(check_choice, "size", size, image_to_video.SIZES)
        return refuse(latent_shape, width, height, num_frames)

    @classmethod
    def execute(
        cls,
        positive: list[Any],
        vae: Any,
        size: str,
        width: int,
        height: int,
        num_frames: int,
        batch_size: int,
        start_image: Any = None,
        end_image: Any = None,
        clip_vision: Any = None,
        negative: list[Any] | None = None,
    ) -> io.NodeOutput:
        formats.check_text(positive)
        if negative is not None:
            formats.check_text(negative)
        pictures = image_to_video.Pictures(start=start_image, end=end_image)
        width, height = image_to_video.find_size(pictures, size, width, height)
        clip = {"width": width, "height": height, "num_frames": num_frames}
        with progress.reporting(node_id_of(cls)) as hooks:
            extras = image_to_video.extras_of(pictures, vae=vae, size=size, **clip, hooks=hooks)
            forecast.remember_encoding(extras["concat_latent_image"])
        if clip_vision is not None:
            extras["clip_vision_output"] = image_to_video.see(clip_vision, pictures)
        negative = image_to_video.without_text(positive) if negative is None else negative
        return io.NodeOutput(
            image_to_video.with_extras(positive, extras),
            image_to_video.with_extras(negative, extras),
            {"samples": pipeline.empty_latent(width, height, num_frames, batch_size)},
        )
