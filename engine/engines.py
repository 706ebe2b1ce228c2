"""Which engine computes: the pack's own (portable) or LightX2V, and what each is built from."""

from __future__ import annotations

import torch

from .backends import trials
from .backends.choose import Backends, Wanted
from .checkpoints.companions import TextEncoderFiles, VaeFiles
from .checkpoints.files import TransformerFiles
from .errors import MissingDependencyError, UnsupportedHardwareError
from .interfaces import Transformer, VideoDecoder, VideoEncoder
from .memory.placement import Placement
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
        raise MissingDependencyError(f"engine is 'lightx2v', but {problem} Or set engine to 'auto'.")
    if device.type != "cuda":
        raise UnsupportedHardwareError(
            "engine is 'lightx2v', but no CUDA device was found. LightX2V needs one; set engine to 'auto' or "
            "'portable'."
        )
    return wanted


def confirm(wanted: Wanted, device: torch.device) -> Backends:
    """Choose kernels and prove that they work here; see backends/trials.py.

    Raises:
        LightX2VError: the engine is LightX2V's, and another version of it is installed.
    """
    if wanted.engine != "lightx2v":
        return trials.confirm(wanted, device)
    from .adapters.lightx2v import bootstrap

    bootstrap.import_lightx2v()
    from .adapters.lightx2v import ops

    return trials.confirm(wanted, device, lightx2v_matmul=ops.multiply)


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
    from .wan.transformer import WanTransformer

    return WanTransformer(files, backends, placement, device)


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
