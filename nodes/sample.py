"""The sampler node."""

from __future__ import annotations

from typing import Any

from ..engine.adapters.comfy import progress, sampling
from ..engine.adapters.comfy.carried import handle_of
from ..engine.constants import DISTILL_HIGH_STEPS, DISTILL_SHIFT, DISTILL_STEPS
from ..engine.errors import check_choice
from ..engine.panel import forecast
from ..engine.settings import SAMPLING_METHODS, SamplingSettings
from ._api import advanced, io, node_id_of, schema, verdict

_MAX_SEED = 2**64 - 1


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
                    tooltip=(
                        "The encoded prompt, from LightX2V Text Encode or from CLIPTextEncode with a CLIPLoader of "
                        "type wan. The first entry is used."
                    ),
                ),
                io.Latent.Input(
                    "latent",
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
                    max=50,
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
                        max=50,
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
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, method: str | None = None) -> bool | str:
        return verdict(check_choice, "method", method, SAMPLING_METHODS)

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
