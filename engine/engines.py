"""Which engine runs: one build function per interface, portable or LightX2V."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from .errors import MissingDependencyError, UnsupportedHardwareError
from .interfaces import TextEncoder, Transformer, VideoDecoder
from .logic.checkpoint_files import TransformerFiles
from .settings import EngineSettings

logger = logging.getLogger(__name__)

_told: set[str] = set()


def choose_engine(wanted: str) -> str:
    """Return "lightx2v" or "portable" for what the user chose.

    "auto" is LightX2V where it is importable and there is a CUDA device, else portable; why not
    LightX2V is logged once.

    Raises:
        MissingDependencyError: "lightx2v" was chosen and is not installed.
        UnsupportedHardwareError: "lightx2v" was chosen and there is no CUDA device.
    """
    if wanted == "portable":
        return wanted
    from .adapters.lightx2v import bootstrap

    problem = bootstrap.unavailable_reason()
    if torch.cuda.is_available() and problem is None:
        return "lightx2v"
    if wanted == "auto":
        reason = problem if torch.cuda.is_available() else "no CUDA device"
        if reason not in _told:
            _told.add(str(reason))
            logger.info("LightX2V: using the portable engine (%s).", reason)
        return "portable"
    if problem is not None:
        raise MissingDependencyError(f"engine is 'lightx2v', but {problem} Or set engine to 'auto'.")
    raise UnsupportedHardwareError(
        "engine is 'lightx2v', but no CUDA device was found. LightX2V needs one; set engine to 'auto' or 'portable'."
    )


def build_transformer(
    files: TransformerFiles, settings: EngineSettings, mode: str, pinned_limit_bytes: int | None
) -> Transformer:
    """Return an unloaded transformer for a checkpoint.

    Args:
        files: the checkpoint.
        settings: engine, attention, compile.
        mode: none | block | phase | disk.
        pinned_limit_bytes: RAM to page-lock at most; None is no limit of our own.
    """
    if choose_engine(settings.engine) == "lightx2v":
        from .adapters.lightx2v.transformer import LightX2VTransformer

        return LightX2VTransformer(files, settings, mode, pinned_limit_bytes=pinned_limit_bytes)
    from .adapters.portable.transformer import PortableTransformer

    return PortableTransformer(files, settings, mode, pinned_limit_bytes=pinned_limit_bytes)


def build_decoder(file: Path, engine: str) -> VideoDecoder:
    """Return an unloaded VAE decoder for a file."""
    if choose_engine(engine) == "lightx2v":
        from .adapters.lightx2v.vae import LightX2VVideoDecoder

        return LightX2VVideoDecoder(file)
    from .adapters.portable.vae import PortableVideoDecoder

    return PortableVideoDecoder(file)


def build_text_encoder(file: Path, tokenizer: Path | None) -> TextEncoder:
    """Return an unloaded text encoder; T5 always runs on the portable engine (LightX2V cannot on a CPU)."""
    from .adapters.portable.text_encoder import PortableTextEncoder

    return PortableTextEncoder(file, tokenizer)
