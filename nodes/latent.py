"""The empty video latent node."""

from __future__ import annotations

from ..engine import pipeline
from ..engine.constants import (
    DEFAULT_HEIGHT,
    DEFAULT_NUM_FRAMES,
    DEFAULT_WIDTH,
    FRAME_RATE,
    MAX_BATCH,
    MAX_FRAMES,
    MAX_SIZE,
    SIZE_MULTIPLE,
    VAE_STRIDE,
)
from ..engine.shapes import latent_shape
from ._api import io, refuse, schema


def size_inputs(*, made_for: str, batch: str) -> list[io.Input]:
    """Return the inputs of every node that says how large a video is, in their order.

    Args:
        made_for: begins the sentence about the sizes that models are made for.
        batch: what several videos have in common.
    """
    return [
        io.Int.Input(
            "width",
            default=DEFAULT_WIDTH,
            min=SIZE_MULTIPLE,
            max=MAX_SIZE,
            step=SIZE_MULTIPLE,
            tooltip=f"Pixels, a multiple of 16. {made_for} 832x480 and 1280x720, either way round.",
        ),
        io.Int.Input(
            "height",
            default=DEFAULT_HEIGHT,
            min=SIZE_MULTIPLE,
            max=MAX_SIZE,
            step=SIZE_MULTIPLE,
            tooltip="Pixels, a multiple of 16.",
        ),
        io.Int.Input(
            "num_frames",
            default=DEFAULT_NUM_FRAMES,
            min=1,
            max=MAX_FRAMES,
            step=VAE_STRIDE[0],
            tooltip=f"1, 5, 9, ... 81: four times n, plus one. 81 frames at {FRAME_RATE} fps are 5 seconds.",
        ),
        io.Int.Input("batch_size", default=1, min=1, max=MAX_BATCH, tooltip=batch),
    ]


class LightX2VEmptyLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LightX2VEmptyLatent",
            display_name="LightX2V Empty Latent",
            description="The size and length of the video to make.",
            search_aliases=["empty video latent", "size", "resolution", "frames"],
            inputs=[
                *size_inputs(
                    made_for="The model is made for",
                    batch=(
                        "Number of videos, made one after the other with seeds seed, seed + 1, ... and saved as one "
                        "file. For a file each leave it at 1 and set the number beside the Run button."
                    ),
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="An empty Wan2.1 video latent.")],
        )

    @classmethod
    def validate_inputs(
        cls, width: int | None = None, height: int | None = None, num_frames: int | None = None
    ) -> bool:
        return refuse(latent_shape, width, height, num_frames)

    @classmethod
    def execute(cls, width: int, height: int, num_frames: int, batch_size: int) -> io.NodeOutput:
        return io.NodeOutput({"samples": pipeline.empty_latent(width, height, num_frames, batch_size)})
