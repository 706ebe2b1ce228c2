"""The node that says which GPUs compute one clip together."""

from __future__ import annotations

from ..engine.settings import GpuSettings
from . import sockets
from ._api import io, schema, verdict


class LightX2VGPUs(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LightX2VGPUs",
            display_name="LightX2V GPUs",
            description=(
                "Lets several GPUs of this machine compute one clip together, so that it is there sooner: connect it "
                "to the gpus input of a loader. Linux and WSL2; the GPUs have to be of one kind."
            ),
            search_aliases=["multi gpu", "parallel", "ulysses", "sequence parallel", "nccl"],
            inputs=[
                io.String.Input(
                    "gpus",
                    default="auto",
                    tooltip=(
                        "auto: all GPUs that ComfyUI sees, up to 8, where they can work together; else one. A number, "
                        "such as 2. Or the numbers of some, such as 0,2. What is named and cannot be had is an error."
                    ),
                ),
            ],
            outputs=[sockets.Gpus.Output(display_name="gpus", tooltip="For the gpus input of the LightX2V loaders.")],
        )

    @classmethod
    def validate_inputs(cls, gpus: str | None = None) -> bool | str:
        return verdict(_read, gpus)

    @classmethod
    def execute(cls, gpus: str) -> io.NodeOutput:
        return io.NodeOutput(_read(gpus))


def _read(gpus: str) -> GpuSettings:
    return GpuSettings(gpus=gpus.replace(" ", ""))
