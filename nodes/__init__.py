"""The pack's nodes: each declares its inputs and outputs and hands the work to the engine."""

from __future__ import annotations

from ..engine.adapters.comfy import language, paths
from ..engine.backends import remembered
from ..engine.panel import editor, forecast, speed
from ._api import ComfyExtension, io, speaking
from .decode import LightX2VDecode
from .enhance import LightX2VEnhancePrompt
from .gpus import LightX2VGPUs
from .image_to_video import LightX2VImageToVideo
from .latent import LightX2VEmptyLatent
from .load import LightX2VLoadCheckpoint, LightX2VLoadTextEncoder, LightX2VLoadTransformer, LightX2VLoadVAE
from .lora import LightX2VLora
from .offload import LightX2VOffload
from .report import LightX2VReport
from .sample import LightX2VSampler
from .text import LightX2VTextEncode

NODES: list[type[io.ComfyNode]] = [
    speaking(node)
    for node in (
        LightX2VLoadCheckpoint,
        LightX2VLoadTransformer,
        LightX2VLoadTextEncoder,
        LightX2VLoadVAE,
        LightX2VOffload,
        LightX2VLora,
        LightX2VEnhancePrompt,
        LightX2VTextEncode,
        LightX2VEmptyLatent,
        LightX2VImageToVideo,
        LightX2VSampler,
        LightX2VDecode,
        LightX2VReport,
        LightX2VGPUs,
    )
]


class LightX2VExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> LightX2VExtension:
    """Called by ComfyUI when it loads the pack."""
    paths.register_folder()
    remembered.keep_in(paths.user_file(remembered.FILE))
    forecast.keep_speeds_in(paths.user_file(speed.FILE))
    language.follow_prompts()
    editor.register_routes()
    return LightX2VExtension()
