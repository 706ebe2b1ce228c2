"""The sampler node."""

from __future__ import annotations

from typing import Any

from ..engine.adapters.comfy import formats, image_to_video, progress, sampling
from ..engine.adapters.comfy.carried import handle_of
from ..engine.constants import DISTILL_HIGH_STEPS, DISTILL_SHIFT, DISTILL_STEPS, MAX_STEPS, SIZE_MULTIPLE
from ..engine.errors import check_choice
from ..engine.panel import forecast
from ..engine.settings import SAMPLING_METHODS, SamplingSettings
from ..engine.shapes import latent_shape, size_problem
from ._api import advanced, io, linked_node, node_id_of, schema, verdict

_MAX_SEED = 2**64 - 1
# Nodes that make a latent -> their inputs for its size: the graph says how large it will be. Some take the text first.
_SIZES = {
    "LightX2VEmptyLatent": ("width", "height", "num_frames", "batch_size"),
    "EmptyHunyuanLatentVideo": ("width", "height", "length", "batch_size"),
    "LightX2VImageToVideo": ("width", "height", "num_frames", "batch_size"),
    "WanImageToVideo": ("width", "height", "length", "batch_size"),
    "WanFirstLastFrameToVideo": ("width", "height", "length", "batch_size"),
}


class LightX2VSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LightX2VSampler",
            display_name="LightX2V Sampler",
            description=(
                "Makes the video's latents in four steps, from noise. The distilled model needs no CFG and no "
                "negative prompt, so there are none."
            ),
            search_aliases=["ksampler", "wan sampler", "4 steps", "lcm"],
            inputs=[
                io.Model.Input(
                    "transformer",
                    tooltip=(
                        "From a LightX2V loader, or any distilled Wan2.1 or Wan2.2 14B model, such as Load Diffusion "
                        "Model's: that is sampled by ComfyUI, with the same steps and noise."
                    ),
                ),
                io.Conditioning.Input(
                    "conditioning",
                    lazy=True,
                    tooltip=(
                        "The encoded prompt, from LightX2V Text Encode or from CLIPTextEncode with a CLIPLoader of "
                        "type wan. Areas, masks and several prompts work as in KSampler."
                    ),
                ),
                io.Latent.Input(
                    "latent",
                    lazy=True,
                    tooltip=(
                        "Gives size, length and batch, from LightX2V Empty Latent or EmptyHunyuanLatentVideo. Its "
                        "content is not used: sampling starts from pure noise."
                    ),
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=_MAX_SEED,
                    control_after_generate=True,
                    tooltip="The same seed gives the same video. Item i of a batch uses seed + i.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(SAMPLING_METHODS),
                    default="lcm",
                    tooltip=(
                        "lcm: fresh noise each step, as the model card says. euler: no new noise, as current LightX2V."
                    ),
                ),
                io.Int.Input(
                    "steps",
                    default=DISTILL_STEPS,
                    min=1,
                    max=MAX_STEPS,
                    tooltip="The model is distilled for 4; other numbers usually look worse.",
                ),
                io.Float.Input(
                    "shift",
                    default=DISTILL_SHIFT,
                    min=0.1,
                    max=100.0,
                    step=0.1,
                    tooltip="Moves the steps towards high noise. The model is distilled for 5.0.",
                ),
                advanced(
                    io.Int.Input(
                        "high_steps",
                        default=DISTILL_HIGH_STEPS,
                        min=0,
                        max=MAX_STEPS,
                        optional=True,
                        tooltip=(
                            "Of both experts of Wan2.2: the first so many steps are the high-noise expert's, the rest "
                            "the low-noise one's, whatever the shift. They are distilled for half of the steps each. "
                            "Without effect on other models."
                        ),
                    )
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent", tooltip="For LightX2V Decode, or VAEDecode with the Wan2.1 VAE."
                )
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def validate_inputs(cls, method: str | None = None) -> bool | str:
        return verdict(check_choice, "method", method, SAMPLING_METHODS)

    @classmethod
    def check_lazy_status(
        cls, transformer: Any, conditioning: list[Any] | None = None, latent: dict[str, Any] | None = None, **_: Any
    ) -> list[str]:
        """Ask for the size before the text: what does not fit is refused while no text was encoded for it.

        Source of the protocol: ComfyUI execution.py, which calls this until nothing new is asked for.
        """
        shape = _shape_in_graph(cls) if latent is None else formats.latent_samples(latent).shape
        if shape is None:
            return ["latent"]
        sampling.check(transformer, shape)
        return [name for name, value in (("conditioning", conditioning), ("latent", latent)) if value is None]

    @classmethod
    def execute(
        cls,
        transformer: Any,
        conditioning: list[Any],
        latent: dict[str, Any],
        seed: int,
        method: str,
        steps: int,
        shift: float,
        high_steps: int = DISTILL_HIGH_STEPS,
    ) -> io.NodeOutput:
        settings = SamplingSettings(seed=seed, method=method, steps=steps, shift=shift, high_steps=high_steps)
        with progress.reporting(node_id_of(cls)) as hooks:
            sampled = sampling.sample(transformer, conditioning, latent, settings, hooks)
        handle = handle_of(transformer)
        if handle is not None:
            forecast.remember_sampling(handle, sampled["samples"])
        return io.NodeOutput(sampled)


def _shape_in_graph(node: type[io.ComfyNode]) -> tuple[int, ...] | None:
    """Return the shape of the latents that will come, by the node that makes them; None where that is not known."""
    kind, inputs = linked_node(node, "latent")
    size = [inputs.get(name) for name in _SIZES.get(kind, ())]
    if not size or not all(isinstance(value, int) for value in size):
        return None
    width, height, num_frames, batch = size
    if inputs.get("size") == image_to_video.SIZES[0]:
        # With the aspect of a picture, in whole multiples of 16: at least about this much.
        width, height = max(width - SIZE_MULTIPLE, SIZE_MULTIPLE), max(height - SIZE_MULTIPLE, SIZE_MULTIPLE)
    if size_problem(width, height, num_frames):
        return None
    return batch, *latent_shape(width, height, num_frames)
