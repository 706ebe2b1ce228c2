"""Which engine computes: the pack's own (portable) or LightX2V, and what each is built from."""

from __future__ import annotations

import torch

from .backends import trials
from .backends.choose import Backends, Wanted
from .checkpoints.companions import TextEncoderFiles, VaeFiles
from .checkpoints.transformers import TransformerFiles
from .errors import LightX2VError, MissingDependencyError, UnsupportedHardwareError
from .interfaces import Hooks, Transformer, VideoDecoder, VideoEncoder
from .memory.placement import Placement
from .sentences.kernels import Running
from .sentences.lightx2v import LightX2V
from .umt5.encoder import Umt5Encoder


def choose_engine(wanted: str, device: torch.device) -> str:
    """Return "lightx2v" or "portable" for what the user chose; "auto" is the pack's own compute.

    Raises:
        MissingDependencyError: "lightx2v" was chosen and is not installed.
        UnsupportedHardwareError: "lightx2v" was chosen and the device is no CUDA device.
    """
    if wanted != "lightx2v":
        return "portable"
    from .adapters.lightx2v import bootstrap

    problem = bootstrap.unavailable_reason()
    if problem is not None:
        raise MissingDependencyError(Running.NO_LIGHTX2V(problem=problem))
    if device.type != "cuda":
        raise UnsupportedHardwareError(Running.LIGHTX2V_WITHOUT_CUDA())
    return wanted


def check_loras(wanted: str) -> None:
    """Refuse LoRAs for an engine, of the user's choice, that cannot compute with them.

    Raises:
        LightX2VError: it is LightX2V's.
    """
    if wanted == "lightx2v":
        raise LightX2VError(LightX2V.NO_LORAS())


def confirm(wanted: Wanted, device: torch.device, hooks: Hooks | None = None) -> Backends:
    """Choose kernels and prove that they work here; see backends/trials.py.

    Raises:
        LightX2VError: the engine is LightX2V's, and another version of it is installed.
    """
    multiply = lightx2v_multiply() if wanted.engine == "lightx2v" else None
    return trials.confirm(wanted, device, hooks=hooks, lightx2v_matmul=multiply)


def work(backends: Backends, device: torch.device, hooks: Hooks) -> bool:
    """Say whether kernels that were chosen work here; see backends/trials.py.

    Raises:
        LightX2VError: the engine is LightX2V's, and another version of it is installed.
    """
    multiply = lightx2v_multiply() if backends.engine == "lightx2v" else None
    return trials.work(backends, device, hooks, multiply)


def lightx2v_multiply() -> trials.Multiply:
    """Import LightX2V, and return what multiplies with its ops for a trial run.

    Raises:
        LightX2VError: another version of it is installed.
    """
    from .adapters.lightx2v import bootstrap

    bootstrap.import_lightx2v()
    from .adapters.lightx2v import ops

    return ops.multiply


def build_transformer(
    files: TransformerFiles, backends: Backends, placement: Placement, device: torch.device
) -> Transformer:
    """Return an unloaded transformer.

    Args:
        files: the checkpoint.
        backends: what computes, from `confirm`.
        placement: where its weights rest.
    """
    if backends.engine == "lightx2v":
        from .adapters.lightx2v.transformer import LightX2VTransformer

        return LightX2VTransformer(files, backends, placement, device)
    from .wan.experts import build_denoiser

    return build_denoiser(files, backends, placement, device)


def build_decoder(files: VaeFiles, engine: str, device: torch.device) -> VideoDecoder:
    """Return an unloaded VAE decoder; "auto" is the pack's own, which takes a third of LightX2V's time.

    Raises:
        MissingDependencyError, UnsupportedHardwareError: "lightx2v" was chosen and cannot run here.
    """
    if choose_engine(engine, device) == "lightx2v":
        from .adapters.lightx2v.vae import LightX2VVideoDecoder

        return LightX2VVideoDecoder(files, device)
    from .wan.vae import WanVideoDecoder

    return WanVideoDecoder(files, device)


def build_encoder(files: VaeFiles, device: torch.device) -> VideoEncoder:
    """Return an unloaded VAE encoder; it is the pack's own on every engine."""
    from .wan.vae import WanVideoEncoder

    return WanVideoEncoder(files, device)


def build_text_encoder(files: TextEncoderFiles) -> Umt5Encoder:
    """Return an unloaded text encoder; T5 is the pack's own on every engine (LightX2V's cannot run on a CPU)."""
    return Umt5Encoder(files)
