"""The offload options node."""

from __future__ import annotations

from ..engine.constants import MAX_GIB
from ..engine.settings import OFFLOAD_MODES, TILING_MODES, OffloadSettings
from . import sockets
from ._api import advanced, io, schema


class LightX2VOffload(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LightX2VOffload",
            display_name="LightX2V Offload",
            description=(
                "Where weights rest while they are not needed. Without it the fastest way that fits is planned; use it "
                "where that is not the one you want, and connect it to a loader."
            ),
            search_aliases=["vram", "low vram", "memory", "block swap"],
            inputs=[
                io.Combo.Input(
                    "mode",
                    options=list(OFFLOAD_MODES),
                    default="auto",
                    tooltip=(
                        "auto: the fastest that fits, planned before anything loads; as many blocks as fit stay on "
                        "the GPU. none: all weights stay on the GPU. block: blocks stream from RAM. phase: thirds of a "
                        "block stream from RAM (least VRAM). disk: blocks are read from disk when they are needed "
                        "(least RAM). A mode without room for the clip is an error that says what fits."
                    ),
                ),
                io.Float.Input(
                    "vram_budget_gib",
                    default=0.0,
                    min=0.0,
                    max=float(MAX_GIB),
                    step=0.5,
                    tooltip=(
                        "GiB of VRAM that torch may reserve in all while the pack runs. 0 = what is free, and what "
                        "ComfyUI can free, when a stage starts."
                    ),
                ),
                advanced(
                    io.Float.Input(
                        "pinned_ram_limit_gib",
                        default=0.0,
                        min=0.0,
                        max=float(MAX_GIB),
                        step=0.5,
                        tooltip=(
                            "GiB of page-locked RAM the pack may use for streaming; what is beyond it streams more "
                            "slowly. 0 = what the system and ComfyUI allow."
                        ),
                    )
                ),
                io.Combo.Input(
                    "vae_tiling",
                    options=list(TILING_MODES),
                    default="auto",
                    tooltip=(
                        "Decode and encode video in tiles: less memory, a little slower. auto: only when the whole "
                        "does not fit. The decode node's own choice wins unless it is auto."
                    ),
                ),
            ],
            outputs=[
                sockets.Offload.Output(display_name="offload", tooltip="For the offload input of the LightX2V loaders.")
            ],
        )

    @classmethod
    def execute(cls, mode: str, vram_budget_gib: float, pinned_ram_limit_gib: float, vae_tiling: str) -> io.NodeOutput:
        return io.NodeOutput(
            OffloadSettings(
                mode=mode,
                vram_budget_gib=vram_budget_gib,
                pinned_ram_limit_gib=pinned_ram_limit_gib,
                vae_tiling=vae_tiling,
            )
        )
