"""Which files form a checkpoint: finds transformer, text encoder, tokenizer and VAE on disk.

Paths and safetensors headers only; no weight is read. What the tensors mean is formats.py.
"""

from __future__ import annotations

import heapq
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..constants import PRECISIONS
from ..errors import MALFORMED, CheckpointError, check_choice, in_words
from ..quantities import format_bytes
from ..sentences import joined
from ..sentences.between import Between
from ..sentences.checkpoints import Reading
from ..sentences.folders import Folders
from ..sentences.kinds import Kinds, Parts
from .cast import check_cast
from .checks import block_indices, describe_blocks, find_unscaled, strip_prefix
from .declared import check_declared
from .disk import check_ending, find_size, list_folder, read_small, read_start, reading, stamp
from .folders import walk
from .formats import detect_transformer, find_missing_blocks, find_spiece, holds_text_encoder, holds_vae, keep_known
from .header import Header, TensorInfo, check_number, read_header
from .kinds import MODEL_REPOSITORY, TRANSFORMER_FILES
from .transformers import (
    EXPERTS,
    TransformerFiles,
    find_counterpart,
    is_guess,
    join,
    noise_of,
    other_names,
    word_of,
)
from .vocabulary import TOKENIZER_FILES

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a path resolves to."""

    path: Path
    transformer: TransformerFiles | None
    text_encoder: Path | None
    tokenizer: Path | None
    """Folder with tokenizer.json or spiece.model."""
    vae: Path | None
    has_text: bool
    """Whether there is a text encoder, and a tokenizer beside it or inside."""
    notes: tuple[str, ...]
    """What was resolved and why, one sentence each."""
    missing: tuple[str, ...]
    """What is not there, where it is expected and where to get it, one sentence each."""
    passed_over: tuple[str, ...] = ()
    """Transformers that would have been taken before this one and cannot be, one sentence each."""


# Sub-folders of the model repository, in the order in which precision "auto" takes them.
PRECISION_FOLDERS = {"fp8": "distill_fp8", "int8": "distill_int8", "bf16": "distill_models"}
# Sub-folders of a repository that may hold text encoder, VAE and tokenizer.
_COMPANION_FOLDERS = (*PRECISION_FOLDERS.values(), "original")
_TOKENIZER_FOLDERS = (Path("google", "umt5-xxl"), Path("umt5-xxl"))

_BLOCK_FILE = re.compile(r"block_(\d{1,4})\.safetensors", re.IGNORECASE)
_NON_BLOCK_FILE = "non_block.safetensors"
_SHARD_FILE = re.compile(r"(.+)-(\d{1,5})-of-(\d{1,5})\.safetensors", re.IGNORECASE)
# Of a file in the folder itself.
_NAME = re.compile(r"[^/\\\0]*[^/\\\0.][^/\\\0]*")
_INDEX_ENDING = ".safetensors.index.json"
_MAX_INDEX_BYTES = 32 * 2**20
# What the root of a pipeline of diffusers has; it names the pipeline's class.
_PIPELINE_FILE, _MAX_PIPELINE_BYTES = "model_index.json", 2**20
_TEXT_ENCODER_FILE = re.compile(r".*umt5.*\.(pth|safetensors)", re.IGNORECASE)
_VAE_FILE = re.compile(r"wan[._]?2[._]1[._]vae.*\.(pth|safetensors)", re.IGNORECASE)
# Safetensors files that sit beside transformers and are none.
_NOT_TRANSFORMER = re.compile(r"umt5|(^|[_-])t5|vae|taew|lora|clip|xlm", re.IGNORECASE)
# Files that do not hold a whole transformer: its blocks and shards, and what lies beside it.
_NO_TRANSFORMER_FILE = re.compile(r"^(non_block|block_\d+)\.|-\d+-of-\d+\.|t5|vae|tae|lora|clip", re.IGNORECASE)

_OTHER = dict(zip(EXPERTS, reversed(EXPERTS), strict=True))

# What may be said of the other expert instead of its path: look for it by name; leave it out.
AUTO_SECOND, NO_SECOND = "auto", "alone"

# Part of a checkpoint -> the file's name in the model repository.
_PARTS = {
    "transformer": Folders.EXPECTED_TRANSFORMER(),
    "text encoder": "models_t5_umt5-xxl-enc-{precision}.pth",
    "VAE": "Wan2.1_VAE.pth",
    "tokenizer": "google/umt5-xxl/",
}
# Pattern of file names where a transformer was expected, what they are, what to do.
_FOREIGN_FILES = (
    ("*.gguf", Reading.GGUF(), Folders.USE_EIGHT_BIT()),
    ("*.pt", Folders.PT(), Folders.SAFETENSORS_ONLY()),
    ("*.pth", Folders.PTH(), Folders.SAFETENSORS_ONLY()),
)


def resolve_checkpoint(
    path: Path, precision: str = "auto", *, text_encoder: Path | None = None, vae: Path | None = None
) -> Checkpoint:
    """Find everything that belongs to a checkpoint.

    Args:
        path: a model repository (with distill_fp8/, distill_int8/ or distill_models/), a folder with a
            transformer, or a single safetensors file.
        precision: auto (fp8, then int8, then bf16) | fp8 | int8 | bf16.
        text_encoder: a file to take in place of the checkpoint's.
        vae: the same.

    Raises:
        CheckpointError: the path is missing, holds no transformer, or not one of that precision.
    """
    check_choice("precision", precision, PRECISIONS)
    if not os.path.lexists(path):
        raise CheckpointError(Folders.DOES_NOT_EXIST(path=path))
    transformer, notes, passed_over = _choose_transformer(path, precision)
    home = transformer.folder if transformer else path
    scheme = transformer.format.precision if transformer else precision.replace("auto", "fp8")
    folders = _companion_folders(path, home)
    near = [] if text_encoder is None else find_tokenizers(text_encoder)
    text_encoder = text_encoder or _choose_text_encoder(folders, scheme)
    vae = vae or next(iter(_find_files(folders, _VAE_FILE)), None)
    if transformer is not None and transformer.layout == "single" and None in (text_encoder, vae):
        # ComfyUI's files of a whole model hold the others too.
        whole = read_header(transformer.files[0])
        text_encoder = transformer.files[0] if text_encoder is None and holds_text_encoder(whole) else text_encoder
        vae = transformer.files[0] if vae is None and holds_vae(whole) else vae
    tokenizer = next(iter([*near, *(found for folder in folders if (found := _tokenizer_in(folder)))]), None)
    tokenizer_source = tokenizer
    if tokenizer is None and text_encoder is not None and holds_tokenizer(text_encoder):
        tokenizer_source = text_encoder
    parts = {Parts.TEXT_ENCODER(): text_encoder, "VAE": vae, Parts.TOKENIZER(): tokenizer_source}
    is_whole = transformer is not None and text_encoder in transformer.files
    if text_encoder is not None and not is_whole and _precision_in_name(text_encoder) != scheme:
        notes.append(Folders.OTHER_TEXT_ENCODER(scheme=scheme, name=text_encoder.name))
    notes += [Folders.PART_IS(part=part, found=found) for part, found in parts.items() if found is not None]
    return Checkpoint(
        path=path,
        transformer=transformer,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        vae=vae,
        has_text=text_encoder is not None and tokenizer_source is not None,
        notes=tuple(notes),
        passed_over=tuple(passed_over),
        missing=tuple(
            Folders.PART_MISSING(
                part=part,
                file=_PARTS[part].format(precision=scheme),
                home=home,
                at_root=Folders.AT_ROOT() if part == Parts.TOKENIZER() else "",
                folder=PRECISION_FOLDERS[scheme],
                model_repository=MODEL_REPOSITORY,
            )
            for part, found in {Parts.TRANSFORMER(): transformer, **parts}.items()
            if found is None
        ),
    )


def resolve_transformer(path: Path) -> TransformerFiles:
    """Read how the transformer in a file, or in a folder of blocks or shards, is stored; of a folder with both experts
    of Wan2.2 (sub-folders such as high_noise_model and low_noise_model, or two files), both.

    Raises:
        CheckpointError: it is missing, incomplete, damaged, or not a Wan2.1 text-to-video transformer.
    """
    pair = _experts_in(path)
    if pair is not None:
        high, low = map(_resolve_one, pair)
        return join(high, low)
    return _resolve_one(path)


def resolve_experts(path: Path, second: Path | str = AUTO_SECOND, first_is: str = "auto") -> TransformerFiles:
    """Read a transformer, and the other expert with it where it is one of Wan2.2's.

    Args:
        path: a file, or a folder of one transformer or of both experts.
        second: the other expert's file or folder; auto looks for it beside `path`, by its name; alone leaves it out.
        first_is: high | low: which expert `path` is; auto goes by names.

    Raises:
        CheckpointError: see resolve_transformer; or the two do not fit together.
    """
    first = resolve_transformer(path)
    if first.second is not None:
        if isinstance(second, Path):
            raise CheckpointError(Folders.BOTH_EXPERTS(path=path))
        return first
    other = second if isinstance(second, Path) else _counterpart_of(path) if second == AUTO_SECOND else None
    if other is None:
        return replace(first, noise=first_is) if first_is in EXPERTS else first
    joined = join(first, _resolve_one(other), first_is)
    if second != AUTO_SECOND or not is_guess(path):
        return joined
    guess = Folders.EXPERTS_BY_WORD(title=joined.title)
    return replace(joined, notes=(*joined.notes, guess))


def _resolve_one(path: Path) -> TransformerFiles:
    notes: list[str] = []
    if os.path.isdir(path):
        layout, files = _list_transformer_files(path, notes)
    else:
        find_size(path, Folders.FILE_OR_FOLDER())
        if not _is_safetensors(path.name):
            with reading(path), path.open("rb") as opened:
                check_ending(path, read_start(opened), Folders.EXPECTED_TRANSFORMER())
            raise _refuse(path, [path.name])
        check_whole(path)
        layout, files = "single", (path,)
    stamps = tuple(map(stamp, files))
    header: dict[str, TensorInfo] = {}
    tables: dict[Path, dict[str, TensorInfo]] = {}
    for file in files:
        tables[file] = tensors = read_header(file)
        twice = header.keys() & tensors.keys()
        if twice:
            raise _held_twice(path, layout, tables, min(twice))
        header.update(tensors)
        check_number(path, len(header))
    if layout == "blocks":
        _check_block_files(path, files, find_missing_blocks(header))
    found = detect_transformer(header, str(path))
    check_declared(files, found.precision, str(path), wanted="transformer")
    named = strip_prefix(header, found.prefix)
    if found.precision == "fp8":
        check_cast(tables, find_unscaled(header))
    return TransformerFiles(
        files=files,
        layout=layout,
        format=found,
        num_bytes=sum(info.num_bytes for info in named.values()),
        header=keep_known(named, found),
        notes=(*found.notes, *notes),
        stamps=stamps,
        noise=noise_of(files[0] if layout == "single" else files[0].parent),
    )


def _held_twice(path: Path, layout: str, tables: Mapping[Path, Header], name: str) -> CheckpointError:
    """Return the error for a tensor that two files of a folder hold."""
    first, second = [file for file, table in tables.items() if name in table][:2]
    if layout == "blocks":
        # What its name does not say is the copy.
        wrong, other = (second, first) if _is_of_block(first, tables[first]) else (first, second)
        return CheckpointError(Folders.BLOCK_COPIED(path=wrong, other=other.name, twice=name))
    if _SHARD_FILE.fullmatch(first.name) and _SHARD_FILE.fullmatch(second.name):
        return CheckpointError(Folders.SHARD_COPIED(path=path, name=first.name, other=second.name, twice=name))
    return CheckpointError(Folders.SEVERAL_TRANSFORMERS(path=path, name=first.name, other=second.name, twice=name))


def _is_of_block(file: Path, table: Header) -> bool:
    """Say whether a file of blocks holds the one that its name says."""
    named = _BLOCK_FILE.fullmatch(file.name)
    return block_indices(table, "blocks") == ({int(named[1])} if named else set())


def _experts_in(folder: Path) -> tuple[Path, Path] | None:
    """Return the high-noise and the low-noise expert in a folder: two sub-folders, or the only two transformers."""
    names = _names_in(folder)
    for found in (
        [folder / name for name in names if noise_of(Path(name)) and _holds_files(folder / name)],
        [folder / name for name in names if _is_transformer_name(name)],
    ):
        by_noise = {word_of(path): path for path in found}
        if len(found) == 2 and by_noise.keys() == set(EXPERTS):
            return by_noise["high"], by_noise["low"]
    return None


def check_whole(path: Path) -> None:
    """Raise where a file, by its name, is one of several that make a model.

    Raises:
        CheckpointError: it is a shard, or a file of blocks.
    """
    shard, block = _SHARD_FILE.fullmatch(path.name), _BLOCK_FILE.fullmatch(path.name)
    if shard and int(shard[3]) > 1:
        part = Folders.SHARD(number=int(shard[2]), total=int(shard[3]))
    elif block or path.name.lower() == _NON_BLOCK_FILE:
        part = Folders.ONE_OF_BLOCKS()
    else:
        return
    raise CheckpointError(Folders.PART_ALONE(path=path, part=part, name=path.parent.name))


def find_tokenizers(near: Path) -> list[Path]:
    """Return the tokenizer folders near a file or folder, nearest first; another model's may be among them.

    Looks for google/umt5-xxl in the folder itself, in up to two folders above, and in the repository sub-folders of
    these; then at what lies in the folder itself.
    """
    start = near if os.path.isdir(near) else near.parent
    above = (start, *start.parents[:2])
    places = [place for folder in above for place in (folder, *(folder / name for name in _COMPANION_FOLDERS))]
    found = [found for place in places if (found := _tokenizer_in(place))]
    return list(dict.fromkeys([*found, *([start] if _is_tokenizer(start) else [])]))


def list_checkpoint_folders(root: Path) -> list[str]:
    """List the folders below `root` that hold a transformer, as sorted relative paths with forward slashes.

    A model repository is listed, each of its precision folders, and what holds the folders of two experts. File names
    decide; no file is opened. Links are followed, and every folder is listed once, by its own name before a link's;
    what may not be looked at is left out with a warning.
    """
    if not os.path.isdir(root):
        return []
    found: set[str] = set()
    for folder, entries in walk(root, _leave_out, skip=("loras",), links_last=True):
        if any(_is_transformer_name(entry.name) or _is_index(entry.name) for entry in entries):
            name = folder.replace(os.sep, "/")
            parts = name.split("/")
            above = [depth for depth, part in enumerate(parts) if is_a_version(Path(part))]
            found.update((name, *("/".join(parts[:depth]) for depth in above)))
    return sorted(found - {""})


def list_checkpoints(root: Path) -> list[str]:
    """List what can be chosen as a checkpoint below `root`: the folders, see above, then the transformers' files."""
    files = (
        os.path.join(folder, entry.name).replace(os.sep, "/")
        for folder, entries in (walk(root, _leave_out) if os.path.isdir(root) else ())
        for entry in entries
        if is_transformer_file(entry.name) and os.path.isfile(entry.path)
    )
    return [*list_checkpoint_folders(root), *sorted(files)]


def is_transformer_file(name: str) -> bool:
    """Say by its name whether a file holds a whole transformer."""
    return _is_safetensors(name) and not _NO_TRANSFORMER_FILE.search(name)


def list_transformer_folders(root: Path) -> list[str]:
    """List those of `list_checkpoint_folders` that hold a transformer or both experts themselves, as
    `resolve_transformer` takes them: not a repository, which has a folder for each precision.
    """
    return [name for name in list_checkpoint_folders(root) if _holds_transformer(root / name)]


def _leave_out(path: str, error: OSError) -> None:
    logger.warning("%s", Folders.NOT_SEARCHED(path=path, error=error))


def _is_transformer_name(name: str) -> bool:
    return _is_safetensors(name) and not _NOT_TRANSFORMER.search(name)


def _is_index(name: str) -> bool:
    """Say by its name whether a file lists the shards of a transformer; without them it is part of one too."""
    return name.lower().endswith(_INDEX_ENDING) and not _NOT_TRANSFORMER.search(name)


def _is_safetensors(name: str) -> bool:
    return name.lower().endswith(".safetensors")


def is_a_version(folder: Path) -> bool:
    """Say by its name whether a folder is one of several of a model: of a precision, or of an expert."""
    return folder.name in PRECISION_FOLDERS.values() or bool(noise_of(Path(folder.name)))


def _holds_transformer(folder: Path) -> bool:
    return _holds_files(folder) or _experts_in(folder) is not None


def _holds_files(folder: Path) -> bool:
    return any(_is_transformer_name(name) or _is_index(name) for name in _names_in(folder))


def _names_in(folder: Path) -> list[str]:
    """Return the names in a folder that nobody asked for by name: none where it may not be looked at."""
    if not os.path.isdir(folder):
        return []
    try:
        return list_folder(folder)
    except CheckpointError as error:
        logger.warning("LightX2V: %s", Folders.NOT_LOOKED_AT(error=error))
        return []


def _choose_transformer(path: Path, precision: str) -> tuple[TransformerFiles | None, list[str], list[str]]:
    """Return the first usable transformer, or None where only its companions are there, notes, and what of those
    before it cannot be used.
    """
    failures: dict[Path, CheckpointError] = {}
    for candidate in _list_candidates(path, precision):
        try:
            found = resolve_experts(candidate)
        except CheckpointError as error:
            failures[candidate] = error
            continue
        scheme = found.format.precision
        if precision not in ("auto", scheme):
            raise CheckpointError(Folders.OTHER_PRECISION(candidate=candidate, scheme=scheme, precision=precision))
        why = Folders.CHOSEN_PRECISION()
        if precision == "auto":
            why = Folders.AUTO_PRECISION()
        num_blocks, total = found.format.architecture.num_layers, format_bytes(found.total_bytes)
        size = Folders.SIZE(num_blocks=num_blocks, size=total)
        if found.second is not None:
            size = Folders.TWO_EXPERTS(num_blocks=num_blocks, size=total, title=found.title)
        passed_over: list[str] = [
            Folders.PASSED_OVER(name=other.name, taken=candidate.name, scheme=scheme, failure=failure)
            for other, failure in failures.items()
        ]
        return found, [Folders.TRANSFORMER_IS(candidate=candidate, scheme=scheme, size=size, why=why)], passed_over
    for failure in failures.values():
        raise failure
    return None, [], []


def _list_candidates(path: Path, precision: str) -> list[Path]:
    """Return files or folders to take the transformer from, best first."""
    if not os.path.isdir(path):
        return [path]
    names = list_folder(path)
    if precision != "auto" and os.path.isdir(path / PRECISION_FOLDERS[precision]):
        # What is asked for by name has to be one that can be looked at.
        list_folder(path / PRECISION_FOLDERS[precision])
    folders = {name: path / folder for name, folder in PRECISION_FOLDERS.items() if _holds_transformer(path / folder)}
    if precision in folders:
        return [folders[precision]]
    if folders and precision != "auto":
        there = ", ".join(f"{folder.name}/" for folder in folders.values())
        raise CheckpointError(
            Folders.NO_SUCH_PRECISION(
                path=path,
                precision=precision,
                there=there,
                folder=PRECISION_FOLDERS[precision],
                model_repository=MODEL_REPOSITORY,
            )
        )
    if folders:
        return list(folders.values())
    if _holds_transformer(path):
        return [path]
    experts = _expert_folders(path, names)
    if experts:
        raise _refuse_experts(path, experts)
    if any(_find_files(_companion_folders(path, path), pattern) for pattern in (_TEXT_ENCODER_FILE, _VAE_FILE)):
        return []
    raise _refuse(path, names)


def _list_transformer_files(folder: Path, notes: list[str]) -> tuple[str, tuple[Path, ...]]:
    """Return the layout of a folder and its transformer's files; add to `notes` what is not taken of it."""
    everything = list_folder(folder)
    names = [name for name in everything if _is_transformer_name(name)]
    numbered = [(int(match[1]), name) for name in names if (match := _BLOCK_FILE.fullmatch(name))]
    non_block = [name for name in names if name.lower() == _NON_BLOCK_FILE]
    if numbered or non_block:
        blocks = dict(numbered)
        if len(blocks) < len(numbered):
            twice = next(index for index, name in numbered if blocks[index] != name)
            # The published names have no zeros before the number.
            own, strange, *_ = sorted((name for index, name in numbered if index == twice), key=len)
            raise CheckpointError(Folders.BLOCK_TWICE(folder=folder, one=strange, other=own))
        taken = [*non_block[:1], *(blocks[index] for index in sorted(blocks))]
        _note_leftovers(folder, names, taken, notes)
        return "blocks", tuple(folder / name for name in taken)
    index_files = [name for name in everything if _is_index(name)]
    if not names and not index_files:
        raise _refuse(folder, everything)
    shards = [match for name in names if (match := _SHARD_FILE.fullmatch(name))]
    expected = set(names)
    if index_files:
        expected = _read_shard_index(folder / index_files[0])
    elif shards:
        stem, number, total = shards[0].groups()
        expected = {f"{stem}-{i:0{len(number)}}-of-{total}.safetensors" for i in range(1, int(total) + 1)}
    absent = expected - set(names)
    if absent:
        few = ", ".join(heapq.nsmallest(6, absent))
        raise CheckpointError(
            Folders.FILES_MISSING(folder=folder, num_absent=len(absent), num_expected=len(expected), absent=few)
        )
    _note_leftovers(folder, names, expected, notes)
    return ("single" if len(expected) == 1 else "sharded"), tuple(folder / name for name in sorted(expected))


def _note_leftovers(folder: Path, names: Iterable[str], taken: Iterable[str], notes: list[str]) -> None:
    leftovers = sorted(set(names) - set(taken))
    if leftovers:
        more = Folders.AND_MORE(number=len(leftovers) - 3) if leftovers[3:] else ""
        notes.append(Folders.LEFT_OVER_FILES(folder=folder, leftovers=", ".join(leftovers[:3]), more=more))


def _read_shard_index(path: Path) -> set[str]:
    try:
        names = set(json.loads(read_small(path, _MAX_INDEX_BYTES, Folders.EXPECTED_INDEX()))["weight_map"].values())
        if not names or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
            raise ValueError(Folders.ODD_INDEX())
        return names
    except MALFORMED as error:
        raise CheckpointError(Folders.NO_INDEX(path=path, error=in_words(error))) from error


def _check_block_files(folder: Path, files: tuple[Path, ...], missing: list[int]) -> None:
    names = [f"block_{index}.safetensors" for index in missing]
    parts = [Folders.MISSING_BLOCKS(describe_blocks=describe_blocks(missing))] if missing else []
    if folder / _NON_BLOCK_FILE not in files:
        names.insert(0, _NON_BLOCK_FILE)
        parts.insert(0, Folders.ONE_MISSING(non_block_file=_NON_BLOCK_FILE))
    if parts:
        more = Folders.AND_MORE(number=len(names) - 6) if len(names) > 6 else ""
        raise CheckpointError(
            Folders.BLOCKS_MISSING(
                folder=folder,
                parts=joined(parts, Between.AND),
                names=", ".join(names[:6]),
                more=more,
                name=folder.name,
                model_repository=MODEL_REPOSITORY,
            )
        )


def _refuse(path: Path, files: list[str]) -> CheckpointError:
    """Return the error for a path without a safetensors transformer, by the names of the files there."""
    experts = _expert_folders(path, files)
    if experts:
        return _refuse_experts(path, experts)
    expected = Folders.EXPECTED_AS_IN(transformer=_PARTS["transformer"], transformer_files=TRANSFORMER_FILES)
    pipeline = next((name for name in files if name.lower() == _PIPELINE_FILE), None)
    if pipeline is not None:
        kind, advice = _describe_pipeline(path / pipeline)
        return CheckpointError(
            Folders.FOREIGN_FILE(path=path, found=pipeline, kind=kind, expected=expected, advice=advice)
        )
    for pattern, kind, advice in _FOREIGN_FILES:
        found = next((name for name in files if Path(name.lower()).match(pattern)), None)
        if found is not None:
            return CheckpointError(
                Folders.FOREIGN_FILE(path=path, found=found, kind=kind, expected=expected, advice=advice)
            )
    there = Folders.FOUND(names=", ".join(files[:4])) if files else Folders.EMPTY()
    return CheckpointError(Folders.NO_TRANSFORMER(path=path, there=there, expected=expected))


def _describe_pipeline(path: Path) -> tuple[str, str]:
    """Return what a folder with a pipeline of diffusers is, and what to do."""
    try:
        said = json.loads(read_small(path, _MAX_PIPELINE_BYTES, Folders.EXPECTED_PIPELINE()))["_class_name"]
    except (CheckpointError, *MALFORMED):
        said = None
    if not isinstance(said, str) or not said.isidentifier():
        return Folders.DIFFUSERS(), Folders.USE_NATIVE_WAN()
    if said.startswith("Wan"):
        return Folders.DIFFUSERS_WAN(name=said[:60]), Kinds.USE_NATIVE_MODEL()
    return Folders.DIFFUSERS_OTHER(name=said[:60]), Kinds.USE_OWN_NODES()


def _expert_folders(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return the folders in a folder that hold a transformer which is an expert by its name."""
    return [folder / name for name in names if noise_of(Path(name)) and _holds_files(folder / name)]


def _counterpart_of(path: Path) -> Path | None:
    """Return the other expert of a file or folder; None where there is none, or an empty folder for it."""
    other = find_counterpart(path)
    return None if other is not None and os.path.isdir(other) and not _holds_files(other) else other


def _refuse_experts(path: Path, experts: Sequence[Path]) -> CheckpointError:
    """Return the error for a folder whose folders of experts are no pair."""
    names = ", ".join(expert.name for expert in experts)
    by_noise = {noise_of(Path(expert.name)): expert for expert in experts}
    if len(by_noise) == 1:
        (noise,) = by_noise
        missing = next(iter(other_names(experts[0].name)))
        return CheckpointError(
            Folders.EXPERT_MISSING(
                path=path, names=names, noise=noise, other=_OTHER[noise], missing=missing, name=experts[0].name
            )
        )
    for choice in experts:
        other = _counterpart_of(choice)
        if other is not None and other in experts:
            name = f"{path.name}/{choice.name}"
            return CheckpointError(Folders.EXPERTS_TOO_MANY(path=path, choice=name, other=other.name, names=names))
    return CheckpointError(Folders.EXPERTS_UNPAIRED(path=path, names=names))


def _companion_folders(path: Path, home: Path) -> list[Path]:
    """Return where text encoder, VAE and tokenizer may lie: beside the transformer, then in the same repository."""
    folders = [home]
    repositories = [path] if os.path.isdir(path) else []
    if home.name in _COMPANION_FOLDERS and not os.path.isfile(path):
        repositories.append(home.parent)
    for repository in repositories:
        folders += [repository, *(repository / name for name in _COMPANION_FOLDERS)]
    return [folder for folder in dict.fromkeys(folders) if os.path.isdir(folder)]


def _find_files(folders: Iterable[Path], pattern: re.Pattern[str]) -> list[Path]:
    found = (folder / name for folder in folders for name in _names_in(folder) if pattern.fullmatch(name))
    return [file for file in found if os.path.isfile(file)]


def _choose_text_encoder(folders: Iterable[Path], precision: str) -> Path | None:
    """Return the text encoder of the transformer's precision, or else the first one."""
    files = _find_files(folders, _TEXT_ENCODER_FILE)
    return min(files, key=lambda file: _precision_in_name(file) != precision, default=None)


def _precision_in_name(file: Path) -> str:
    return next((precision for precision in ("fp8", "int8") if precision in file.name.lower()), "bf16")


def holds_tokenizer(text_encoder: Path) -> bool:
    """Say whether a text encoder's file has its tokenizer inside.

    Raises:
        CheckpointError: see read_header.
    """
    return _is_safetensors(text_encoder.name) and find_spiece(read_header(text_encoder)) is not None


def _is_tokenizer(folder: Path) -> bool:
    return any(os.path.isfile(folder / name) for name in TOKENIZER_FILES)


def _tokenizer_in(folder: Path) -> Path | None:
    return next((folder / name for name in _TOKENIZER_FOLDERS if _is_tokenizer(folder / name)), None)
