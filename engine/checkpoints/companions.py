"""What goes with a transformer: the VAE and the text encoder, as files whose format is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from .files import TOKENIZER_FILES
from .formats import TextEncoderFormat, VaeFormat, detect_text_encoder, detect_vae
from .tae import TaeFormat, detect_tae
from .weights import open_weights


@dataclass(frozen=True, kw_only=True)
class VaeFiles:
    """A VAE's file and what it holds."""

    path: Path
    format: VaeFormat | TaeFormat

    @property
    def base_dim(self) -> int:
        """Base width: 96 Wan2.1, 24 LightVAE; 0 is the tiny autoencoder."""
        return self.format.base_dim if isinstance(self.format, VaeFormat) else 0

    @property
    def has_encoder(self) -> bool:
        """Whether the file can encode too; some hold the decoder only."""
        return self.format.has_encoder if isinstance(self.format, VaeFormat) else bool(self.format.encoder_width)


@dataclass(frozen=True, kw_only=True)
class TextEncoderFiles:
    """A text encoder's file, what it holds, and its tokenizer."""

    path: Path
    format: TextEncoderFormat
    tokenizer: Path | None
    """Folder or file; None is the one inside the encoder's file."""
    num_bytes: int
    """Of the encoder's file."""


def resolve_vae(path: Path) -> VaeFiles:
    """Read what a VAE's file holds: Wan2.1_VAE.pth, a LightVAE, taew2_1 or lighttaew2_1, as .pth or .safetensors.

    Raises:
        CheckpointError: the file is damaged or none of these.
    """
    weights = open_weights([path])
    found = detect_tae(weights.header) or detect_vae(weights.header, str(path))
    weights.close()
    return VaeFiles(path=path, format=found)


def resolve_text_encoder(path: Path, tokenizer: Path | None) -> TextEncoderFiles:
    """Read what a text encoder's file holds: models_t5_umt5-xxl-enc-*.pth, the same as safetensors, or ComfyUI's
    umt5_xxl_*.safetensors.

    Args:
        tokenizer: a google/umt5-xxl folder or one of its files; None takes the tokenizer inside the file.

    Raises:
        CheckpointError: the file is damaged or is not a UMT5 encoder, or there is no tokenizer.
    """
    weights = open_weights([path])
    found = detect_text_encoder(weights.header, str(path))
    has_tokenizer = tokenizer is not None or "spiece_model" in weights
    weights.close()
    if not has_tokenizer:
        raise CheckpointError(
            f"There is no tokenizer for {path}: it holds no spiece_model, and no google/umt5-xxl folder with "
            f"{' or '.join(TOKENIZER_FILES)} was found near it. Download that folder from the model page and put it "
            "beside the file, or choose a tokenizer in the loader."
        )
    return TextEncoderFiles(path=path, format=found, tokenizer=tokenizer, num_bytes=path.stat().st_size)
