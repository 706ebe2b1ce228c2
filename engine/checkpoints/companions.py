"""What goes with a transformer: the VAE and the text encoder, as files whose format is known."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import CheckpointError
from ..sentences import joined
from ..sentences.between import Between
from ..sentences.checkpoints import Models
from ..sentences.folders import Folders
from ..sentences.kinds import Parts
from .declared import check_declared
from .disk import Stamp, check_unchanged, stamp
from .files import check_whole
from .folders import walk
from .formats import TextEncoderFormat, VaeFormat, detect_text_encoder, detect_vae
from .published import PUBLISHED, PUBLISHED_IMAGE_MODELS
from .tae import TaeFormat, detect_tae
from .vocabulary import TOKENIZER_FILES, belongs_to, count_pieces
from .weights import header_of

logger = logging.getLogger(__name__)

# ComfyUI's folders for them, below models/.
_FOLDERS = {Parts.TEXT_ENCODER(): ("text_encoders", "clip"), "VAE": ("vae",)}
_ENDINGS = (".safetensors", ".pth")


@dataclass(frozen=True, kw_only=True)
class VaeFiles:
    """A VAE's file and what it holds."""

    path: Path
    format: VaeFormat | TaeFormat
    stamp: Stamp
    """Of the file, when it was looked at."""

    def check_unchanged(self) -> None:
        """Raise CheckpointError where the file is not as it was."""
        check_unchanged(self.path, self.stamp)

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
    stamp: Stamp
    """Of the encoder's file, when it was looked at."""

    @property
    def num_bytes(self) -> int:
        """Of the encoder's file."""
        return self.stamp[0]

    def check_unchanged(self) -> None:
        """Raise CheckpointError where the encoder's file is not as it was."""
        check_unchanged(self.path, self.stamp)


def resolve_vae(path: Path) -> VaeFiles:
    """Read what a VAE's file holds: Wan2.1_VAE.pth, a LightVAE, taew2_1 or lighttaew2_1, as .pth or .safetensors.

    Raises:
        CheckpointError: the file is damaged or none of these.
    """
    check_whole(path)
    before = stamp(path)
    header = header_of(path)
    found = detect_tae(header) or detect_vae(header, str(path))
    return VaeFiles(path=path, format=found, stamp=before)


def resolve_text_encoder(path: Path, tokenizer: Path | None) -> TextEncoderFiles:
    """Read what a text encoder's file holds: models_t5_umt5-xxl-enc-*.pth, the same as safetensors, or ComfyUI's
    umt5_xxl_*.safetensors.

    Args:
        tokenizer: a google/umt5-xxl folder or one of its files; None takes the tokenizer inside the file.

    Raises:
        CheckpointError: the file is damaged or is not a UMT5 encoder, or there is no tokenizer.
    """
    check_whole(path)
    before = stamp(path)
    found = detect_text_encoder(header_of(path), str(path))
    check_declared([path], found.precision, str(path), wanted="text encoder")
    if tokenizer is None and found.spiece is None:
        raise CheckpointError(Models.NO_TOKENIZER(path=path, names=joined(TOKENIZER_FILES, Between.OR)))
    return TextEncoderFiles(path=path, format=found, tokenizer=tokenizer, stamp=before)


def check_text_encoder(path: Path) -> None:
    """Raise where a file, by its header, is no text encoder of Wan's; whether there is a tokenizer is not asked.

    Raises:
        CheckpointError: says what it is.
    """
    check_whole(path)
    detect_text_encoder(header_of(path), str(path))


def find_companion(what: str, models_dir: Path, model: str = "") -> Path | None:
    """Return the text encoder or the VAE in ComfyUI's folders for it; None where no file there is one.

    Published names come first, before all those that are published with `model`, the name of a transformer's file;
    after them the only file that is one.

    Args:
        what: Parts.TEXT_ENCODER() or "VAE".

    Raises:
        CheckpointError: several files could be it.
    """
    files = [file for folder in _FOLDERS[what] for file in _files_below(models_dir / folder)]
    by_name = {file.name: file for file in reversed(files)}
    for name in _published_names(what, model):
        if name in by_name:
            return by_name[name]
    found = [file for file in files if _is_one(what, file)]
    if len(found) > 1:
        names = ", ".join(str(file.relative_to(models_dir)) for file in found[:4])
        raise CheckpointError(Models.SEVERAL_COMPANIONS(part=what, names=names, models_dir=models_dir))
    return found[0] if found else None


def _published_names(what: str, model: str) -> list[str]:
    variants = sorted(
        [*PUBLISHED.values(), *PUBLISHED_IMAGE_MODELS.values()], key=lambda variant: model not in variant.file_names
    )
    parts = [part for variant in variants for part in variant.parts if part.what == what]
    return list(dict.fromkeys(PurePosixPath(part.patterns[0]).name for part in parts))


def _files_below(root: Path) -> list[Path]:
    if not os.path.isdir(root):
        return []

    def leave_out(path: str, error: OSError) -> None:
        logger.warning("LightX2V: %s", Folders.NOT_SEARCHED(path=path, error=error))

    return [
        Path(entry.path)
        for _, entries in walk(root, leave_out)
        for entry in entries
        if entry.name.lower().endswith(_ENDINGS)
    ]


def _is_one(what: str, path: Path) -> bool:
    """Say by its header whether a file is a text encoder or VAE of Wan's."""
    try:
        if what == "VAE":
            resolve_vae(path)
        else:
            check_text_encoder(path)
    except CheckpointError:
        return False
    return True


def choose_tokenizer(text_encoder: Path, candidates: Sequence[Path]) -> Path | None:
    """Return the first tokenizer that has as many pieces as the text encoder has rows; None where there are none.

    Raises:
        CheckpointError: each belongs to another model, or cannot be read.
    """
    if not candidates:
        return None
    num_rows = detect_text_encoder(header_of(text_encoder), str(text_encoder)).vocab_size
    problems = []
    for candidate in candidates:
        try:
            num_pieces = count_pieces(candidate)
        except CheckpointError as error:
            if len(candidates) == 1:
                raise
            problems.append(str(error))
            continue
        if belongs_to(num_pieces, num_rows):
            return candidate
        problems.append(Models.HAS_PIECES(candidate=candidate, num_pieces=num_pieces))
    raise CheckpointError(
        Models.OTHER_TOKENIZER(
            text_encoder=text_encoder, num_rows=num_rows, problems=joined(problems[:3], Between.SEMICOLON)
        )
    )
