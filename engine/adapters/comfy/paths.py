"""Model folders: what the loaders' combos offer, and how a choice becomes a path.

Only names that are offered resolve, so nothing outside the model folders can be reached.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import folder_paths

from ...backends import remembered
from ...checkpoints.files import list_checkpoint_folders

FOLDER = "lightx2v"
AUTO = "auto"
_EXTENSIONS = {".safetensors", ".pth"}
_TOKENIZER_FILES = {"tokenizer.json", "spiece.model"}
_TEXT_ENCODER_FILE = re.compile(r"t5", re.IGNORECASE)
# The tiny autoencoders for Wan2.1 latents, and no others.
_TINY_VAE_FILE = re.compile(r"^(light)?taew2_1\.(safetensors|pth)$", re.IGNORECASE)
_VAE_FILE = re.compile(rf"vae|{_TINY_VAE_FILE.pattern}", re.IGNORECASE)
# Files that do not hold a whole transformer: its blocks and shards, and what lies beside it.
_NO_TRANSFORMER_FILE = re.compile(r"^(non_block|block_\d+)\.|-\d+-of-\d+\.|t5|vae|tae|lora|clip", re.IGNORECASE)


def register_folder() -> None:
    """Make models/lightx2v known to ComfyUI, beside what extra_model_paths.yaml adds under that name."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    roots, extensions = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (roots, set(extensions) | _EXTENSIONS)


def models_folder() -> Path:
    """Return ComfyUI's models folder."""
    return Path(folder_paths.models_dir)


def notes_file() -> Path:
    """Return where what is found out about this machine's kernels is kept, see backends/remembered.py."""
    return Path(folder_paths.get_user_directory(), remembered.FILE)


def fingerprint(*paths: Path | None) -> str:
    """Return a short text that changes when a file, or a file directly in a folder, changes in size or time.

    ComfyUI stores it in saved workflows, so it is a hash and names no path.
    """
    files = [file for path in paths if path for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    facts = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _all_files(folder: str) -> list[str]:
    try:
        names: list[str] = folder_paths.get_filename_list(folder)
    except FileNotFoundError:
        # ComfyUI's list of a folder below which one was deleted cannot be renewed, only made anew.
        folder_paths.filename_list_cache.pop(folder, None)
        names = folder_paths.get_filename_list(folder)
    return names


def _existing_roots(folder: str) -> list[Path]:
    return [Path(root) for root in folder_paths.get_folder_paths(folder) if os.path.isdir(root)]


def _checkpoint_folders(folder: str) -> list[str]:
    return [name for root in _existing_roots(folder) for name in list_checkpoint_folders(root)]


def _text_encoder_files(folder: str) -> list[str]:
    return [name for name in _all_files(folder) if _TEXT_ENCODER_FILE.search(os.path.basename(name))]


def _vae_files(folder: str) -> list[str]:
    return [name for name in _all_files(folder) if _VAE_FILE.search(os.path.basename(name))]


def _tiny_vae_files(folder: str) -> list[str]:
    return [name for name in _all_files(folder) if _TINY_VAE_FILE.search(os.path.basename(name))]


def _transformer_files(folder: str) -> list[str]:
    names = [name for name in _all_files(folder) if name.endswith(".safetensors")]
    return [name for name in names if not _NO_TRANSFORMER_FILE.search(os.path.basename(name))]


def _tokenizer_folders(folder: str) -> list[str]:
    found = []
    for root in _existing_roots(folder):
        for path, _, files in os.walk(root, followlinks=True):
            if _TOKENIZER_FILES.intersection(files):
                found.append(Path(path).relative_to(root).as_posix())
    return sorted(found)


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """A combo of files and folders."""

    what: str
    """What is chosen, for messages."""
    sources: tuple[tuple[str, Callable[[str], Iterable[str]]], ...]
    """(key of folder_paths, function that lists names below its folders); an earlier source wins."""
    put: str
    """What to put where when nothing is found."""

    @property
    def none_found(self) -> str:
        return f"none found: {self.put}"

    def names(self) -> list[str]:
        """Return what can be chosen now."""
        return list(dict.fromkeys(name for folder, find in self.sources for name in find(folder)))

    def options(self) -> list[str]:
        """Return the names, or one entry that says what to do when there are none."""
        return self.names() or [self.none_found]

    def resolve(self, name: str) -> Path:
        """Return the path of a name.

        Raises:
            ValueError: the name is not offered.
        """
        for folder, find in self.sources:
            if name in find(folder):
                paths = [root / name for root in _existing_roots(folder) if (root / name).exists()]
                if paths:
                    return paths[0]
        raise ValueError(self._describe_unknown(name))

    def _describe_unknown(self, name: str) -> str:
        names = self.names()
        if not names:
            return f"No {self.what} was found. To have one, {self.put}; then press R in the editor and choose it."
        listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        if _leads_outside(name):
            return f"{self.what} {name!r} is a path outside the model folders. Choose one of: {listed}."
        return f"{self.what} {name!r} was not found in the model folders. Choose one of: {listed}."


CHECKPOINTS = ModelChoice(
    what="checkpoint",
    sources=((FOLDER, _checkpoint_folders), (FOLDER, _transformer_files)),
    put="put the checkpoint folder in models/lightx2v",
)
TRANSFORMERS = ModelChoice(
    what="transformer",
    sources=(("diffusion_models", _all_files), (FOLDER, _checkpoint_folders), (FOLDER, _transformer_files)),
    put="put a Wan2.1 4-step safetensors file in models/diffusion_models",
)
TEXT_ENCODERS = ModelChoice(
    what="text encoder",
    sources=(("text_encoders", _all_files), (FOLDER, _text_encoder_files)),
    put="put a umt5_xxl file in models/text_encoders",
)
TOKENIZERS = ModelChoice(
    what="tokenizer",
    sources=((FOLDER, _tokenizer_folders), ("text_encoders", _tokenizer_folders)),
    put="put the folder google/umt5-xxl beside the text encoder file",
)
LORAS = ModelChoice(
    what="LoRA",
    sources=(("loras", _all_files),),
    put="put a LoRA for Wan2.1 14B in models/loras",
)
VAES = ModelChoice(
    what="VAE",
    sources=(("vae", _all_files), ("vae_approx", _tiny_vae_files), (FOLDER, _vae_files)),
    put="put Wan2.1_VAE.pth or wan_2.1_vae.safetensors in models/vae",
)


def _leads_outside(name: str) -> bool:
    """Whether a name is an absolute path or climbs up, on any system."""
    path, windows_path = PurePosixPath(name), PureWindowsPath(name)
    return bool(
        path.is_absolute() or windows_path.drive or windows_path.root or ".." in windows_path.parts or "\0" in name
    )
