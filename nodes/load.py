"""The loader nodes: they resolve files and return light handles; weights load when a stage needs them."""

from __future__ import annotations

from pathlib import Path

from ..engine import pipeline
from ..engine.adapters.comfy import paths
from ..engine.adapters.comfy.model import make_model
from ..engine.adapters.comfy.vae import LightX2VVAE
from ..engine.backends.table import ATTENTION_CHOICES
from ..engine.checkpoints.files import NO_SECOND, resolve_checkpoint, resolve_experts
from ..engine.checkpoints.transformers import EXPERTS
from ..engine.constants import PRECISIONS
from ..engine.settings import COMPILE_MODES, ENGINES, EngineSettings, GpuSettings, OffloadSettings
from . import sockets
from ._api import advanced, io, refuse, schema, verdict

_MODEL_TOOLTIP = "For LightX2V Sampler, or any sampler of ComfyUI with scheduler simple and cfg 1."
_VAE_USE = "For LightX2V Decode, and for every node that decodes or encodes with a VAE."


def _engine_inputs() -> list[io.Input]:
    """Return the inputs of every node that loads a transformer, in their order."""
    return [
        advanced(
            io.Combo.Input(
                "engine",
                options=list(ENGINES),
                default="auto",
                tooltip=(
                    "auto: the pack's own compute, the fastest (portable is another name for it). lightx2v: "
                    "LightX2V's own compute on a CUDA card, for its exact results; slower."
                ),
            )
        ),
        advanced(
            io.Combo.Input(
                "attention",
                options=list(ATTENTION_CHOICES),
                default="auto",
                tooltip="Attention back end. auto takes the fastest that is installed and correct on this card.",
            )
        ),
        advanced(
            io.Combo.Input(
                "compile",
                options=list(COMPILE_MODES),
                default="auto",
                tooltip=(
                    "Fused Triton kernels in the transformer's blocks. auto: where they work, else plain torch. on: "
                    "where they do not work, an error that says what to install. off: plain torch, slower. Engine "
                    "lightx2v has none: on is an error there."
                ),
            )
        ),
        sockets.Offload.Input(
            "offload",
            optional=True,
            tooltip="Where weights rest, from LightX2V Offload. Not connected: the fastest way that fits is planned.",
        ),
        _gpus_input("compute one clip together"),
    ]


def _gpus_input(what: str) -> io.Input:
    return sockets.Gpus.Input(
        "gpus",
        optional=True,
        tooltip=f"GPUs that {what}, from LightX2V GPUs. Not connected: one.",
    )


class LightX2VLoadCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LightX2VLoadCheckpoint",
            display_name="LightX2V Load Checkpoint",
            description=(
                "Loads the 4-step distilled Wan2.1-T2V-14B, or Wan2.2 A14B with both its experts, as a whole: "
                "transformer, UMT5 text encoder and VAE, from the folder as it is downloaded. Weights are read when "
                "they are first needed."
            ),
            search_aliases=["wan", "model loader", "t2v", "distill", "fp8", "int8"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=paths.CHECKPOINTS.options(),
                    tooltip=(
                        "A folder or file in models/lightx2v, or in a folder that extra_model_paths.yaml lists under "
                        "lightx2v. The whole model repository, one of its precision folders, a folder with both "
                        "experts of Wan2.2, or a single file."
                    ),
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="auto",
                    tooltip="Which version of the transformer to use. auto takes what is there: fp8, int8, then bf16.",
                ),
                *_engine_inputs(),
            ],
            outputs=[
                io.Model.Output(display_name="transformer", tooltip=_MODEL_TOOLTIP),
                sockets.TextEncoder.Output(display_name="text_encoder", tooltip="For LightX2V Text Encode."),
                io.Vae.Output(display_name="vae", tooltip=_VAE_USE),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint: str | None = None) -> bool | str:
        return verdict(paths.CHECKPOINTS.resolve, checkpoint)

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, precision: str, **_: object) -> str:
        found = resolve_checkpoint(paths.CHECKPOINTS.resolve(checkpoint), precision)
        files = found.transformer.every_file if found.transformer else ()
        return paths.fingerprint(*files, found.text_encoder, found.tokenizer, found.vae)

    @classmethod
    def execute(
        cls,
        checkpoint: str,
        precision: str,
        engine: str,
        attention: str,
        compile: str,
        offload: OffloadSettings | None = None,
        gpus: GpuSettings | None = None,
    ) -> io.NodeOutput:
        loaded = pipeline.load_checkpoint(
            paths.CHECKPOINTS.resolve(checkpoint),
            precision=precision,
            settings=EngineSettings(engine=engine, attention=attention, compile=compile),
            offload=offload or OffloadSettings(),
            gpus=gpus or GpuSettings(),
        )
        return io.NodeOutput(make_model(loaded.transformer), loaded.text_encoder, LightX2VVAE(loaded.vae))


class LightX2VLoadTransformer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LightX2VLoadTransformer",
            display_name="LightX2V Load Transformer",
            description=(
                "Loads the transformer alone: a single file, or a folder of blocks; both experts of Wan2.2 as one "
                "model. For text encoder and VAE use the other LightX2V loaders or ComfyUI's own."
            ),
            search_aliases=["unet loader", "diffusion model loader", "dit", "wan"],
            inputs=[
                io.Combo.Input(
                    "transformer",
                    options=paths.TRANSFORMERS.options(),
                    tooltip=(
                        "A 4-step distilled Wan2.1 or Wan2.2 14B transformer, text or image to video (BF16, FP8 or "
                        "INT8): a file in models/diffusion_models, or a file or folder in models/lightx2v."
                    ),
                ),
                *_engine_inputs(),
                advanced(
                    io.Combo.Input(
                        "second_expert",
                        options=[paths.AUTO, NO_SECOND, *paths.TRANSFORMERS.names()],
                        default=paths.AUTO,
                        optional=True,
                        tooltip=(
                            "Wan2.2 A14B is two transformers, for high and for low noise. auto: where the name says "
                            "that this is one of them (high_noise), the other one beside it is loaded with it as one "
                            "model. alone: this one. Or the other one's file or folder."
                        ),
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "expert",
                        options=[paths.AUTO, *EXPERTS],
                        default=paths.AUTO,
                        optional=True,
                        tooltip=(
                            "Which expert of Wan2.2 'transformer' is. auto goes by the names; choose where they are "
                            "silent."
                        ),
                    )
                ),
            ],
            outputs=[io.Model.Output(display_name="transformer", tooltip=_MODEL_TOOLTIP)],
        )

    @classmethod
    def validate_inputs(cls, transformer: str | None = None, second_expert: str | None = None) -> bool:
        refuse(paths.TRANSFORMERS.resolve, transformer)
        return refuse(paths.resolve_second_expert, second_expert, transformer or "")

    @classmethod
    def fingerprint_inputs(
        cls, transformer: str, second_expert: str = paths.AUTO, expert: str = paths.AUTO, **_: object
    ) -> str:
        path = paths.TRANSFORMERS.resolve(transformer)
        second = paths.resolve_second_expert(second_expert, transformer)
        return paths.fingerprint(*resolve_experts(path, second, expert).every_file)

    @classmethod
    def execute(
        cls,
        transformer: str,
        engine: str,
        attention: str,
        compile: str,
        offload: OffloadSettings | None = None,
        gpus: GpuSettings | None = None,
        second_expert: str = paths.AUTO,
        expert: str = paths.AUTO,
    ) -> io.NodeOutput:
        handle = pipeline.load_transformer(
            paths.TRANSFORMERS.resolve(transformer),
            second=paths.resolve_second_expert(second_expert, transformer),
            first_is=expert,
            settings=EngineSettings(engine=engine, attention=attention, compile=compile),
            offload=offload or OffloadSettings(),
            gpus=gpus or GpuSettings(),
        )
        return io.NodeOutput(make_model(handle))


class LightX2VLoadTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LightX2VLoadTextEncoder",
            display_name="LightX2V Load Text Encoder",
            description="Loads UMT5-XXL (BF16, FP16, FP8 or INT8) to run on the CPU; 8-bit weights stay 8-bit in RAM.",
            search_aliases=["clip loader", "t5", "umt5"],
            inputs=[
                io.Combo.Input(
                    "text_encoder",
                    options=paths.TEXT_ENCODERS.options(),
                    tooltip=(
                        "A UMT5-XXL encoder file in models/text_encoders or in a checkpoint folder: LightX2V's "
                        "models_t5_umt5-xxl-enc-*.pth, or ComfyUI's umt5_xxl_*.safetensors."
                    ),
                ),
                io.Combo.Input(
                    "tokenizer",
                    options=[paths.AUTO, *paths.TOKENIZERS.names()],
                    default=paths.AUTO,
                    tooltip="A google/umt5-xxl folder. auto looks beside the file, in folders above it, and inside it.",
                ),
            ],
            outputs=[sockets.TextEncoder.Output(display_name="text_encoder", tooltip="For LightX2V Text Encode.")],
        )

    @classmethod
    def validate_inputs(cls, text_encoder: str | None = None) -> bool | str:
        return verdict(paths.TEXT_ENCODERS.resolve, text_encoder)

    @classmethod
    def fingerprint_inputs(cls, text_encoder: str, tokenizer: str) -> str:
        return paths.fingerprint(paths.TEXT_ENCODERS.resolve(text_encoder), _tokenizer_folder(tokenizer))

    @classmethod
    def execute(cls, text_encoder: str, tokenizer: str) -> io.NodeOutput:
        file = paths.TEXT_ENCODERS.resolve(text_encoder)
        return io.NodeOutput(pipeline.load_text_encoder(file, tokenizer=_tokenizer_folder(tokenizer)))


def _tokenizer_folder(choice: str) -> Path | None:
    return None if choice == paths.AUTO else paths.TOKENIZERS.resolve(choice)


class LightX2VLoadVAE(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LightX2VLoadVAE",
            display_name="LightX2V Load VAE",
            description="Loads a VAE for Wan2.1 latents.",
            search_aliases=["vae loader", "wan vae"],
            inputs=[
                io.Combo.Input(
                    "vae",
                    options=paths.VAES.options(),
                    tooltip=(
                        "Wan2.1_VAE.pth or wan_2.1_vae.safetensors; lightvaew2_1 (smaller, close), lighttaew2_1 / "
                        "taew2_1 (previews). In models/vae, models/vae_approx (the last two) or a checkpoint folder."
                    ),
                ),
                sockets.Offload.Input(
                    "offload",
                    optional=True,
                    tooltip="From LightX2V Offload; only its vram_budget_gib and vae_tiling matter here.",
                ),
                _gpus_input("decode together"),
            ],
            outputs=[io.Vae.Output(display_name="vae", tooltip=_VAE_USE)],
        )

    @classmethod
    def validate_inputs(cls, vae: str | None = None) -> bool | str:
        return verdict(paths.VAES.resolve, vae)

    @classmethod
    def fingerprint_inputs(cls, vae: str, **_: object) -> str:
        return paths.fingerprint(paths.VAES.resolve(vae))

    @classmethod
    def execute(
        cls, vae: str, offload: OffloadSettings | None = None, gpus: GpuSettings | None = None
    ) -> io.NodeOutput:
        handle = pipeline.load_vae(
            paths.VAES.resolve(vae), offload=offload or OffloadSettings(), gpus=gpus or GpuSettings()
        )
        return io.NodeOutput(LightX2VVAE(handle))
