"""Model folders: what the loaders' combos offer, and how a choice becomes a path.

Only what is offered resolves, so nothing outside the model folders can be reached. Names are offered as ComfyUI lists
them, but for names that begin with a dot (macOS keeps such files beside others on foreign drives), links to nothing,
and second ways to a folder that has been listed.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

import folder_paths

from ...checkpoints.companions import check_text_encoder, resolve_vae
from ...checkpoints.files import (
    AUTO_SECOND,
    NO_SECOND,
    is_transformer_file,
    list_checkpoint_folders,
    list_transformer_folders,
    resolve_checkpoint,
    resolve_transformer,
)
from ...checkpoints.folders import walk
from ...checkpoints.kinds import identify_kind
from ...checkpoints.vocabulary import count_pieces
from ...checkpoints.weights import header_of
from ...errors import MALFORMED, CheckpointError, LightX2VError, nearest
from ...sentences import joined
from ...sentences.between import Between
from ...sentences.comfyui import Lists
from ...sentences.folders import Folders
from ...sentences.kinds import Kinds, Parts

logger = logging.getLogger(__name__)

FOLDER = "lightx2v"
AUTO = "auto"
_EXTENSIONS = {".safetensors", ".pth"}
_TOKENIZER_FILES = {"tokenizer.json", "spiece.model"}
_TEXT_ENCODER_FILE = re.compile(r"t5", re.IGNORECASE)
# The tiny autoencoders for Wan2.1 latents, and no others.
_TINY_VAE_FILE = re.compile(r"^(light)?taew2_1\.(safetensors|pth)$", re.IGNORECASE)
_VAE_FILE = re.compile(rf"vae|{_TINY_VAE_FILE.pattern}", re.IGNORECASE)


def register_folder() -> None:
    """Make models/lightx2v known to ComfyUI, beside what extra_model_paths.yaml adds under that name."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    roots, extensions = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (roots, set(extensions) | _EXTENSIONS)


def models_folder() -> Path:
    """Return ComfyUI's models folder."""
    return Path(folder_paths.models_dir)


def further_folders() -> dict[str, list[Path]]:
    """Return where models lie, by the folder in models/ that it goes with; extra_model_paths.yaml adds to them."""
    return {name: _existing_roots(name) for name in folder_paths.folder_names_and_paths}


def user_file(name: str) -> Path:
    """Return a file in ComfyUI's folder for what is this user's."""
    return Path(folder_paths.get_user_directory(), name)


def fingerprint(*paths: Path | None) -> str:
    """Return a short text that changes when a file, or a file directly in a folder, changes in size or time.

    ComfyUI stores it in saved workflows, so it is a hash and names no path.
    """
    files = [file for path in paths if path for file in (sorted(path.iterdir()) if os.path.isdir(path) else [path])]
    return hashlib.sha256(repr([_facts(file) for file in files]).encode(errors="surrogatepass")).hexdigest()


def _facts(file: Path) -> tuple[str, int, int]:
    try:
        found = file.stat()
    except OSError:
        # A link to nothing, or what may not be looked at: reading it says what is wrong.
        return str(file), 0, 0
    return str(file), found.st_mtime_ns, found.st_size


def _all_files(folder: str) -> list[str]:
    names = {file for root in _existing_roots(folder) for _, files in _walk(root) for file in files}
    _, extensions = folder_paths.folder_names_and_paths[folder]
    return sorted(name for name in names if not extensions or os.path.splitext(name)[1].lower() in extensions)


def _walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield a folder, relative to `root`, and the files in it."""
    for folder, entries in walk(root, lambda path, error: _warn_of(path, str(error))):
        yield folder, [os.path.join(folder, entry.name) for entry in entries if _is_file(entry)]


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError as error:
        _warn_of(entry.path, str(error))
        return False


@functools.cache
def _warn_of(path: str, problem: str) -> None:
    """Say once what is left out."""
    logger.warning("LightX2V: %s", Lists.LEFT_OUT(path=path, problem=problem))


def _existing_roots(folder: str) -> list[Path]:
    return [Path(root) for root in folder_paths.get_folder_paths(folder) if os.path.isdir(root)]


def _checkpoint_folders(folder: str) -> list[str]:
    return [name for root in _existing_roots(folder) for name in list_checkpoint_folders(root)]


def _transformer_folders(folder: str) -> list[str]:
    return [name for root in _existing_roots(folder) for name in list_transformer_folders(root)]


def _text_encoder_files(folder: str) -> list[str]:
    return [name for name in _all_files(folder) if _TEXT_ENCODER_FILE.search(os.path.basename(name))]


def _vae_files(folder: str) -> list[str]:
    return [name for name in _all_files(folder) if _VAE_FILE.search(os.path.basename(name))]


def _tiny_vae_files(folder: str) -> list[str]:
    return [name for name in _all_files(folder) if _TINY_VAE_FILE.search(os.path.basename(name))]


def _transformer_files(folder: str) -> list[str]:
    return [name for name in _all_files(folder) if is_transformer_file(os.path.basename(name))]


def _tokenizer_folders(folder: str) -> list[str]:
    return sorted(
        found.replace(os.sep, "/") or "."
        for root in _existing_roots(folder)
        for found, files in _walk(root)
        if not _TOKENIZER_FILES.isdisjoint(map(os.path.basename, files))
    )


_DOWNLOAD = Lists.DOWNLOAD_IT()
# A message names so many that load, of so many that are looked at.
_MOST_NAMED, _MOST_LOOKED_AT = 3, 30


class NotThereError(ValueError):
    """Nothing of that name is in the model folders."""

    def __init__(self, sentence: str, choices: str = "") -> None:
        super().__init__(sentence)
        self.choices = choices
        """Names of what is there instead."""


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """A combo of files and folders."""

    what: str
    """What is chosen, for messages."""
    sources: tuple[tuple[str, Callable[[str], Iterable[str]]], ...]
    """(key of folder_paths, function that lists names below its folders); an earlier source wins."""
    put: str
    """What to put where when nothing is found."""
    loads: Callable[[Path], object]
    """Raises where what is at a path is, by its headers, none of it."""
    is_published: bool = False
    """Whether the editor's tab downloads it."""

    @property
    def none_found(self) -> str:
        return Lists.NONE_FOUND(put=self.put)

    def names(self) -> list[str]:
        """Return what can be chosen now."""
        return list(dict.fromkeys(name for folder, find in self.sources for name in find(folder)))

    def found(self) -> dict[str, Path]:
        """Return the path of every name that is there now."""
        found: dict[str, Path] = {}
        for folder, find in self.sources:
            roots = _existing_roots(folder)
            for name in find(folder):
                paths = [root / name for root in roots if os.path.exists(root / name)]
                # One that has just gone has none.
                if paths:
                    found.setdefault(name, paths[0])
        return found

    def options(self) -> list[str]:
        """Return the names, or one entry that says what to do when there are none."""
        return self.names() or [self.none_found]

    def resolve(self, name: str) -> Path:
        """Return the path of a name, which may have another system's separators, or lead by another link.

        Raises:
            NotThereError: there is nothing of that name.
            ValueError: it is not offered for another reason.
        """
        for is_meant in (_is_equal, _has_other_separators, _is_another_way):
            for folder, find in self.sources:
                roots = _existing_roots(folder)
                for offered in find(folder):
                    if is_meant(name, offered, roots):
                        paths = [root / offered for root in roots if os.path.exists(root / offered)]
                        if paths:
                            return paths[0]
        raise self._refusal(name)

    def _refusal(self, name: str) -> ValueError:
        names = self.names()
        if not names:
            fetch = Lists.OR(download=_DOWNLOAD) if self.is_published else ""
            return NotThereError(Lists.NOTHING_THERE(what=self.what, fetch=fetch, put=self.put))
        inside = [each for each in names if name and each.startswith(name.replace("\\", "/").rstrip("/") + "/")]
        if inside:
            parts = joined(nearest(name, inside), Between.OR)
            return ValueError(Lists.CHOOSE_PART(parts=parts, name=name, what=self.what))
        usable = self._usable(nearest(name, names, _MOST_LOOKED_AT))
        listed = ", ".join(usable or nearest(name, names))
        if len(names) > 3 and len(usable) in (0, _MOST_NAMED):
            listed = Lists.IN_ALL(listed=listed, num_names=len(names))
        fetch = Lists.HAVE_ANOTHER(download=_DOWNLOAD) if self.is_published else ""
        if _leads_outside(name):
            outside = Lists.IS_OUTSIDE()
            return ValueError(
                Lists.CHOOSE_ANOTHER(listed=listed, fetch=fetch, what=self.what, name=name, found=outside)
            )
        broken = next(filter(None, (_broken_link(name, folder) for folder, _ in self.sources)), None)
        if broken:
            return ValueError(Lists.BROKEN_LINK(name=broken.name, listed=listed, where=_target_of(broken)))
        found = Lists.NOT_FOUND()
        sentence = Lists.CHOOSE_ANOTHER(listed=listed, fetch=fetch, what=self.what, name=name, found=found)
        return NotThereError(sentence, listed if usable else "")

    def _usable(self, names: Iterable[str]) -> list[str]:
        """Return the first few of the names that load, each model once: not a folder and what is in it."""
        found, chosen = self.found(), list[str]()
        for name in names:
            if any(f"{one}/".startswith(f"{other}/") for each in chosen for one, other in ((each, name), (name, each))):
                continue
            try:
                self.loads(found[name])
            except (LightX2VError, KeyError, OSError, *MALFORMED):
                continue
            chosen.append(name)
            if len(chosen) == _MOST_NAMED:
                break
        return chosen


def _check_checkpoint(path: Path) -> None:
    if resolve_checkpoint(path).transformer is None:
        raise CheckpointError(Folders.EMPTY())


def _check_lora(path: Path) -> None:
    kind = identify_kind(header_of(path))
    if kind is None or kind[0] != Kinds.LORA():
        raise CheckpointError(Folders.EMPTY())


CHECKPOINTS = ModelChoice(
    what=Parts.CHECKPOINT(),
    sources=((FOLDER, _checkpoint_folders), (FOLDER, _transformer_files)),
    put=Lists.PUT_CHECKPOINT(),
    loads=_check_checkpoint,
    is_published=True,
)
TRANSFORMERS = ModelChoice(
    what=Parts.TRANSFORMER(),
    sources=(("diffusion_models", _all_files), (FOLDER, _transformer_folders), (FOLDER, _transformer_files)),
    put=Lists.PUT_TRANSFORMER(),
    loads=resolve_transformer,
    is_published=True,
)
_SECOND_EXPERTS = replace(TRANSFORMERS, what=Parts.SECOND_EXPERT())
TEXT_ENCODERS = ModelChoice(
    what=Parts.TEXT_ENCODER(),
    sources=(("text_encoders", _all_files), (FOLDER, _text_encoder_files)),
    put=Lists.PUT_TEXT_ENCODER(),
    loads=check_text_encoder,
)
TOKENIZERS = ModelChoice(
    what=Parts.TOKENIZER(),
    sources=((FOLDER, _tokenizer_folders), ("text_encoders", _tokenizer_folders)),
    put=Lists.PUT_TOKENIZER(),
    loads=count_pieces,
)
LORAS = ModelChoice(
    what="LoRA",
    sources=(("loras", _all_files),),
    put=Lists.PUT_LORA(),
    loads=_check_lora,
)
VAES = ModelChoice(
    what="VAE",
    sources=(("vae", _all_files), ("vae_approx", _tiny_vae_files), (FOLDER, _vae_files)),
    put=Lists.PUT_VAE(),
    loads=resolve_vae,
)


def resolve_second_expert(name: str, first: str) -> Path | str:
    """Return the path of the transformer that goes with the one named `first`; auto and alone stay as they are.

    Raises:
        NotThereError: there is nothing of that name.
        ValueError: it is not offered for another reason, or `first` is a folder of both experts.
    """
    if name in (AUTO_SECOND, NO_SECOND):
        return name
    try:
        return _SECOND_EXPERTS.resolve(name)
    except NotThereError as error:
        if _holds_both_experts(first):
            raise ValueError(Lists.SECOND_LEFT_OVER(name=name, first=first)) from None
        raise NotThereError(Lists.SECOND_NOT_THERE(problem=error), error.choices) from None
    except ValueError as error:
        raise ValueError(Lists.SECOND_NOT_THERE(problem=error)) from None


def _holds_both_experts(name: str) -> bool:
    try:
        return resolve_transformer(TRANSFORMERS.resolve(name)).second is not None
    except (ValueError, LightX2VError):
        return False


def _leads_outside(name: str) -> bool:
    """Whether a name is an absolute path or climbs up, on any system."""
    path, windows_path = PurePosixPath(name), PureWindowsPath(name)
    return bool(
        path.is_absolute() or windows_path.drive or windows_path.root or ".." in windows_path.parts or "\0" in name
    )


def _is_equal(name: str, offered: str, roots: list[Path]) -> bool:
    return name == offered


def _has_other_separators(name: str, offered: str, roots: list[Path]) -> bool:
    """Whether a name is from a workflow of another system: a\\b of Windows on Linux, or a/b there."""
    return name.replace("\\", "/") == offered.replace("\\", "/")


def _is_another_way(name: str, offered: str, roots: list[Path]) -> bool:
    """Whether a name leads by other links to the very file or folder."""
    if not name or _leads_outside(name):
        return False
    below = name.replace("\\", os.sep)
    return any(
        os.path.exists(root / below) and os.path.realpath(root / below) == os.path.realpath(root / offered)
        for root in roots
    )


def _broken_link(name: str, folder: str) -> Path | None:
    """Return the link to nothing that a name stands for or leads by."""
    for root in _existing_roots(folder):
        path = root / name.replace("\\", os.sep)
        for link in (path, *path.parents):
            if link == root:
                break
            if os.path.islink(link) and not os.path.exists(link):
                return link
    return None


def _target_of(link: Path) -> str:
    return Lists.LINK_TO(link=link, target=os.readlink(link))
