"""What this machine has and lacks for the pack: facts with a state and a one-line remedy each.

Shown by the editor's LightX2V tab and by tools/doctor.py. Looks only; safe to call from a worker thread.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

import psutil
import torch

from .. import system
from ..adapters.lightx2v import bootstrap
from ..backends.choose import Wanted, choose, too_old
from ..backends.remembered import Findings
from ..backends.table import (
    ATTENTION_BACKENDS,
    BLOCK_BACKENDS,
    LIGHTX2V_MATMUL_BACKENDS,
    Backend,
    Machine,
    milliseconds,
    why_not,
)
from ..backends.trials import find_findings, find_machine
from ..backends.versions import newest_tried
from ..checkpoints.content import doubts_about
from ..checkpoints.files import PRECISION_FOLDERS, Checkpoint, resolve_checkpoint
from ..checkpoints.formats import TransformerFormat
from ..checkpoints.published import ALL_PUBLISHED, PUBLISHED_IMAGE_MODELS, PUBLISHED_LORAS, Part, Variant
from ..checkpoints.transformers import noise_of
from ..constants import GIB
from ..errors import MALFORMED, CheckpointError, UnsupportedHardwareError
from ..parallel.links import Links, find_links
from ..quantities import format_bytes
from ..sentences import ENGLISH, Sentence, joined, translated
from ..sentences.between import Between
from ..sentences.doctor import Doctor
from .advice import Advice, faster_files, rank_files
from .downloads import find_missing
from .forecast import cannot_be_used, describe_transformer

OK, NOTE, WARN, MISSING = "ok", "note", "warn", "missing"
# Kinds of items of which the editor does something special.
CHECKPOINT, NO_CHECKPOINTS, MEASURED = "checkpoint", "no_checkpoints", "measured"
# With less, the plan for a card of 8 GB reads FP8 blocks from the drive.
_RAM_GIB = 12
_INSTALL_REQUIREMENTS = Doctor.INSTALL_REQUIREMENTS()
# Name, distribution, and the back end that needs it, whose row knows the rest.
_SPEED_PACKAGES: tuple[tuple[str, str, Backend], ...] = (
    ("Triton", "triton", next(row for row in BLOCK_BACKENDS if row.package == "triton")),
    ("SageAttention", "sageattention", next(row for row in ATTENTION_BACKENDS if row.package == "sageattention")),
    ("q8_kernels", "q8-kernels", next(row for row in LIGHTX2V_MATMUL_BACKENDS if row.package == "q8_kernels")),
    ("sgl-kernel", "sgl-kernel", next(row for row in LIGHTX2V_MATMUL_BACKENDS if row.package == "sgl_kernel")),
)
_OWN_ATTENTION = [row for row in ATTENTION_BACKENDS if row.package == "triton"]
# NCCL takes some tens of MiB of /dev/shm for each pair of GPUs that go through it.
_SHARED_BYTES = 256 * 2**20
_MANY_CLIPS = Doctor.CLIPS_ON_EACH()
_REQUIRED_PACKAGES = ("safetensors", "tokenizers", "sentencepiece", "ftfy")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One fact."""

    name: str
    state: str
    """ok (is there, and right) | note (is not there, or was not tried, and need not be) | warn (works, but slower or
    with less) | missing (does not work without).
    """
    found: str
    remedy: str = ""
    """One line: what to do; empty when there is nothing to do."""
    kind: str = ""
    """checkpoint (can be looked at in full, see panel/verify.py) | no_checkpoints | measured (can be measured again)
    | empty: any other.
    """
    variant: str = ""
    """Of a model that is here in part: the published variant that brings the rest, see checkpoints/published.py."""
    parts: tuple[str, ...] = ()
    """Names of the parts of it that are to be fetched; all of it when empty."""


def examine(
    checkpoints: Mapping[str, Path],
    models_dir: Path,
    *,
    elsewhere: Mapping[str, Sequence[Path]] | None = None,
    measures_links: bool = False,
) -> list[Item]:
    """Look at the machine, the packages and the checkpoints.

    Args:
        checkpoints: name shown -> path, of every checkpoint that the loaders offer.
        models_dir: where models lie; its disk is looked at.
        elsewhere: further folders of models, by the name of the folder in models_dir that they go with.
        measures_links: time copies between GPUs too; see parallel/links.py.
    """
    device = system.compute_device()
    machine = find_machine(device)
    files = rank_files(machine, system.card_name(device))
    missing = find_missing(ALL_PUBLISHED.values(), models_dir, elsewhere or {})
    return [
        *_examine_card(machine),
        _examine_torch(),
        *(_examine_required(name) for name in _REQUIRED_PACKAGES),
        _examine_lightx2v(machine),
        *(_examine_speed(label, row, machine, _find_package(package, row)) for label, package, row in _SPEED_PACKAGES),
        *_examine_kernels(find_findings(device)),
        *_examine_gpus(find_links(measures=measures_links)),
        _examine_ram(),
        _examine_disk(models_dir, 0 if checkpoints else files[0].variant.num_bytes),
        *_examine_files(files, missing),
        *_examine_published(Doctor.IMAGE_TO_VIDEO(), PUBLISHED_IMAGE_MODELS, missing, Doctor.WITH_IMAGE_NODE),
        *_examine_published(Doctor.LORAS(), PUBLISHED_LORAS, missing, Doctor.DISTILLING_LORAS),
        *_examine_checkpoints(checkpoints, models_dir, machine, files),
    ]


def rank_files_here() -> list[Advice]:
    """Return the published variants, the best for this machine first."""
    device = system.compute_device()
    return rank_files(find_machine(device), system.card_name(device))


def faster_files_here(names: Iterable[str]) -> dict[str, str]:
    """Return, by those of the names that are transformers, the file of the same model that is faster here."""
    device = system.compute_device()
    return faster_files(names, find_machine(device), system.card_name(device))


def as_json(items: list[Item]) -> list[dict[str, Any]]:
    """Return items as plain data."""
    return [asdict(item) for item in items]


def summarize(items: list[Item]) -> str:
    """Return the verdict in a few words: Ready., or how many things there are to do."""
    to_do = sum(1 for item in items if item.remedy)
    if not to_do:
        return Doctor.READY()
    return Doctor.ONE_TO_DO() if to_do == 1 else Doctor.TO_DO(count=to_do)


def as_text(items: list[Item], language: str = ENGLISH) -> str:
    """Return the verdict and items as a table for a terminal, problems first, remedies on lines of their own."""
    said = [
        [item.state, *(translated(each, language) for each in (item.name, item.found, item.remedy))]
        for item in sorted(items, key=lambda item: (MISSING, WARN, NOTE, OK).index(item.state))
    ]
    width = max(_columns_of(name) for _, name, _, _ in said)
    lines = [translated(summarize(items), language), ""]
    for state, name, found, remedy in said:
        lines.append(f"{state:7}  {name}{' ' * (width - _columns_of(name))}  {found}")
        if remedy:
            lines.append(f"{'':{width + 11}}-> {remedy}")
    return "\n".join(lines)


def _columns_of(text: str) -> int:
    """Return how wide a terminal shows a text: Chinese characters take two columns."""
    return sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text)


def _examine_card(machine: Machine) -> list[Item]:
    driver = system.driver_version()
    if not torch.cuda.is_available():
        remedy: str = Doctor.USE_NVIDIA()
        if driver:
            remedy = Doctor.INSTALL_CUDA_BUILD()
        card = Item(name=Doctor.CARD(), state=WARN, found=Doctor.NO_CARD(), remedy=remedy)
        return [card, *([Item(name=Doctor.DRIVER(), state=OK, found=driver)] if driver else [])]
    if system.compute_device().type != "cuda":
        found, remedy = Doctor.CARD_NOT_USED(), Doctor.START_WITHOUT_CPU()
        card = Item(name=Doctor.CARD(), state=WARN, found=found, remedy=remedy)
        return [card, Item(name=Doctor.DRIVER(), state=OK, found=driver or Doctor.VERSION_UNKNOWN())]
    properties = torch.cuda.get_device_properties(system.compute_device())
    free = system.free_vram_bytes() or 0
    found = Doctor.CARD_IS(
        name=properties.name,
        total=properties.total_memory / GIB,
        free=free / GIB,
        major=properties.major,
        minor=properties.minor,
    )
    remedy = too_old(machine)
    return [
        Item(name=Doctor.CARD(), state=MISSING if remedy else OK, found=found, remedy=remedy),
        Item(name=Doctor.DRIVER(), state=OK, found=driver or Doctor.VERSION_UNKNOWN()),
    ]


def _examine_torch() -> Item:
    found = f"{torch.__version__}, Python {platform.python_version()}"
    if torch.version.cuda:
        found += f", CUDA {torch.version.cuda}"
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    remedy = "" if version >= (2, 4) else Doctor.UPDATE_TORCH()
    return _noting(
        "torch", torch.__version__, Item(name="torch", state=WARN if remedy else OK, found=found, remedy=remedy)
    )


def _noting(package: str, version: str, item: Item) -> Item:
    """Return an item that is right, with a note where its version is newer than what was tried."""
    newest = newest_tried(package, version) if item.state == OK else ""
    if not newest:
        return item
    return replace(item, state=NOTE, found=Doctor.NEWER_THAN_TRIED(found=item.found, newest=newest))


def _examine_required(package: str) -> Item:
    version = _version(package)
    if version is None:
        return Item(name=package, state=MISSING, found=Doctor.NOT_INSTALLED(), remedy=_INSTALL_REQUIREMENTS)
    return Item(name=package, state=OK, found=version)


def _examine_lightx2v(machine: Machine) -> Item:
    problem = bootstrap.unavailable_reason()
    if problem is None:
        version = _version("lightx2v") or Doctor.INSTALLED()
        found = version if machine.capability else Doctor.NOT_USED_WITHOUT_CARD(version=version)
        return Item(name="LightX2V", state=OK if machine.capability else NOTE, found=found)
    if machine.capability is None:
        return Item(name="LightX2V", state=NOTE, found=Doctor.NOT_NEEDED_WITHOUT_CARD())
    if bootstrap.missing_packages():
        return Item(name="LightX2V", state=NOTE, found=Doctor.ONLY_ENGINE_LIGHTX2V())
    found, _, remedy = problem.partition(" Run: ")
    return Item(
        name="LightX2V",
        state=WARN,
        found=Doctor.AUTO_DOES_WITHOUT(problem=found.rstrip(".")),
        remedy=remedy,
    )


def _find_package(package: str, row: Backend) -> str | None:
    """Return the version of the distribution that a back end needs, or that it is installed where it does not say."""
    return _version(package) or (Doctor.INSTALLED() if importlib.util.find_spec(row.package or "") else None)


def _examine_speed(label: str, row: Backend, machine: Machine, installed: str | None) -> Item:
    """Look at an optional package that one back end needs, of which this version is installed."""
    name = row.package or ""
    version = machine.packages.get(name) or installed
    known = Machine(
        capability=machine.capability,
        packages={**machine.packages, **({name: version} if version and name not in machine.problems else {})},
        problems=machine.problems,
    )
    problem = why_not(row, known, sorted(row.dtypes)[0])
    if problem is None:
        return _noting(name, str(version), Item(name=label, state=OK, found=str(version)))
    if version is None and Doctor.IS_NOT_INSTALLED(name=name) in problem:
        reason = _why_not_needed(row, machine)
        if reason:
            return Item(name=label, state=NOTE, found=Doctor.NOT_NEEDED(reason=reason))
        return Item(name=label, state=WARN, found=Doctor.FASTER_WITH_IT(), remedy=row.install)
    found = Doctor.NOT_USED(version=version or Doctor.NOT_INSTALLED(), problem=problem)
    is_broken = version is not None and name in machine.problems
    return Item(name=label, state=WARN if is_broken else NOTE, found=found, remedy=row.install if is_broken else "")


def _why_not_needed(row: Backend, machine: Machine) -> str:
    """Return why a card that could use a back end's package gains nothing from it, or ""."""
    if row in LIGHTX2V_MATMUL_BACKENDS:
        return Doctor.ONLY_LIGHTX2V_USES_IT()
    problems = {name: problem for name, problem in machine.problems.items() if name != "triton"}
    packages = {**machine.packages, "triton": ""}
    with_triton = replace(machine, packages=packages, problems=problems)
    if row in ATTENTION_BACKENDS and any(why_not(own, with_triton, "bf16") is None for own in _OWN_ATTENTION):
        return Doctor.OWN_ATTENTION_RUNS()
    return ""


def _examine_kernels(findings: Findings | None) -> list[Item]:
    """Look at what was measured and what ended the process of its trial run; nothing where nothing is kept."""
    if findings is None:
        return []
    measured = [
        Doctor.MEASURED_AS(problem=problem, seconds=milliseconds(seconds))
        for problem, seconds in findings.measured.items()
        if seconds
    ]
    found = joined(measured, Between.SEMICOLON) or Doctor.NOT_MEASURED()
    items = [Item(name=Doctor.MEASURED(), state=OK if measured else NOTE, found=found, kind=MEASURED)]
    died = [Doctor.DIED(trial=trial, how=how) for trial, how in findings.trials.items() if how]
    if died:
        remedy = Doctor.UPDATE_DRIVER()
        found = Doctor.ENDED_THEIR_TRIAL(died=joined(died, Between.SEMICOLON))
        items.append(Item(name=Doctor.KERNELS(), state=WARN, found=found, remedy=remedy))
    return items


def _examine_gpus(links: Links | None) -> list[Item]:
    """Look at what several GPUs need to compute one clip together; nothing where there is one."""
    if links is None:
        return []
    kinds = dict.fromkeys(links.names)
    found = ", ".join(f"{links.names.count(kind)} x {kind}" for kind in kinds)
    gpus = Item(name=Doctor.GPUS(), state=OK, found=found)
    if links.system != "linux":
        remedy = Doctor.USE_WSL2(many_clips=_MANY_CLIPS)
        return [gpus, Item(name="NCCL", state=WARN, found=Doctor.NCCL_FOR_LINUX(), remedy=remedy)]
    if not links.nccl:
        remedy = Doctor.INSTALL_CUDA_BUILD_OR(many_clips=_MANY_CLIPS)
        return [gpus, Item(name="NCCL", state=WARN, found=Doctor.BUILT_WITHOUT_NCCL(), remedy=remedy)]
    if len(kinds) > 1:
        gpus = replace(gpus, state=WARN, remedy=Doctor.NAME_ONE_KIND(many_clips=_MANY_CLIPS))
    is_slow = not links.peers
    reach = Doctor.THROUGH_RAM() if is_slow else Doctor.DIRECTLY()
    remedy = Doctor.GAINS_LESS()
    items = [
        gpus,
        Item(name=Doctor.BETWEEN_GPUS(), state=WARN if is_slow else OK, found=reach, remedy=remedy if is_slow else ""),
        Item(name="NCCL", state=OK, found=links.nccl),
    ]
    if links.speeds:
        least, most = min(links.speeds) / 1e9, max(links.speeds) / 1e9
        range_of = f"{least:.0f}" if most < 1.1 * least else Doctor.RANGE(least=least, most=most)
        items.append(Item(name=Doctor.LINK_SPEED(), state=OK, found=Doctor.COPIES_PER_SECOND(range_of=range_of)))
    return [*items, _examine_shared_memory(links)]


def _examine_shared_memory(links: Links) -> Item:
    name = Doctor.SHARED_MEMORY()
    if not links.has_memory:
        remedy = Doctor.OTHER_PYTHON()
        return Item(name=name, state=MISSING, found=Doctor.CANNOT_SHARE_MEMORY(), remedy=remedy)
    free = links.shared_bytes
    if not links.peers and (free is None or free < _SHARED_BYTES):
        found = Doctor.SHARED_MEMORY_FREE(free=(free or 0) / 2**20)
        return Item(name=name, state=WARN, found=found, remedy=Doctor.DOCKER_SHM_SIZE())
    room = "" if free is None else Doctor.AND_SHARED_MEMORY(free=free / 2**20)
    return Item(name=name, state=OK, found=Doctor.WEIGHTS_ONCE_IN_RAM(room=room))


def _examine_ram() -> Item:
    total, free = system.total_ram_bytes(), system.free_ram_bytes()
    limited = "" if total >= psutil.virtual_memory().total else Doctor.LIMIT_OF_GROUP()
    found = Doctor.RAM_IS(total=total / GIB, limited=limited, free=free / GIB)
    remedy = ""
    if free < _RAM_GIB * GIB:
        remedy = Doctor.CLOSE_PROGRAMS()
    return Item(name=Doctor.RAM(), state=WARN if remedy else OK, found=found, remedy=remedy)


def free_disk_bytes(models_dir: Path) -> int:
    """Return what is free where models lie, or will once the folder is there.

    Raises:
        OSError: it cannot be looked at.
    """
    place = next((folder for folder in (models_dir, *models_dir.parents) if os.path.isdir(folder)), models_dir)
    return shutil.disk_usage(place).free


def _examine_disk(models_dir: Path, wanted_bytes: int) -> Item:
    """Look at the drive. Args: wanted_bytes: what there has to be room for."""
    try:
        free = free_disk_bytes(models_dir)
    except OSError as error:
        remedy: str = Doctor.CHECK_MODELS_FOLDER(models_dir=models_dir)
        return Item(name=Doctor.DISK(), state=WARN, found=Doctor.NOT_LOOKED_AT(error=error), remedy=remedy)
    remedy = ""
    if free < wanted_bytes:
        remedy = Doctor.MAKE_ROOM(size=format_bytes(wanted_bytes))
    found = Doctor.DISK_FREE(free=format_bytes(free))
    return Item(name=Doctor.DISK(), state=WARN if remedy else OK, found=found, remedy=remedy)


def _examine_files(files: list[Advice], missing: Mapping[Part, int]) -> list[Item]:
    """Name the file that is for this card, and what others would be like."""
    folders = [advice for advice in files if advice.variant.is_folder]
    if not folders or folders[0].step_seconds is None:
        return []
    best, *others = folders
    rest = joined(
        (
            Doctor.OTHER_FILE(name=other.variant.name, seconds=other.step_seconds)
            for other in others
            if other.step_seconds
        ),
        Between.COMMA,
    )
    found = Doctor.BEST_FILE(best=best, size=format_bytes(best.variant.num_bytes), rest=rest)
    if any(missing[part] for part in best.variant.parts):
        return [Item(name=Doctor.FILE_FOR_CARD(), state=NOTE, found=Doctor.FILE_NOT_HERE(found=found))]
    return [Item(name=Doctor.FILE_FOR_CARD(), state=OK, found=found)]


def _examine_published(
    name: str, variants: Mapping[str, Variant], missing: Mapping[Part, int], describe: Sentence
) -> list[Item]:
    """Name the published variants of a kind: what is here, what is begun, each by itself, and what could be fetched.

    Args:
        missing: see find_missing, of every published part: another one of its kind serves as well.
        describe: says what `listed` names is for.
    """
    here, absent, items = [], [], []
    for variant in variants.values():
        lacking = [part for part in variant.parts if not _is_served(part, missing)]
        if not lacking:
            here.append(variant.name)
        elif any(missing[part] < part.num_bytes for part in variant.parts if not part.is_companion):
            items.append(_describe_begun(variant, lacking))
        else:
            size = format_bytes(sum(missing[part] for part in lacking))
            absent.append(Doctor.TO_FETCH(name=variant.name, size=size))
    if here:
        items.append(Item(name=name, state=OK, found=describe(listed=joined(here, Between.COMMA))))
    if absent:
        found = Doctor.NOT_HERE(what=describe(listed=joined(absent, Between.COMMA)))
        items.append(Item(name=Doctor.NOT_HERE_YET(name=name), state=NOTE, found=found))
    return items


def _is_served(part: Part, missing: Mapping[Part, int]) -> bool:
    """Whether a part is here, or one that does the same: a model's own parts are like no others."""
    return not missing[part] or (
        part.is_companion and any(not missing[other] for other in missing if other.what == part.what)
    )


def _describe_begun(variant: Variant, lacking: list[Part]) -> Item:
    """Return what to do about a variant of which the model itself is here, or a part of it."""
    parts = tuple(part.name for part in lacking) if all(part.is_companion for part in lacking) else ()
    options = [word for name in parts for word in ("--part", name)]
    names = [PurePosixPath(part.patterns[0]).name if variant.is_lora else part.what for part in lacking]
    return Item(
        name=variant.name,
        state=WARN,
        found=Doctor.NOT_WHOLE(missing=joined(names, Between.COMMA)),
        remedy=Doctor.FETCH_REST(command=" ".join([variant.name, *options])),
        variant=variant.name,
        parts=parts,
    )


def _examine_checkpoints(
    checkpoints: Mapping[str, Path], models_dir: Path, machine: Machine, files: list[Advice]
) -> list[Item]:
    if not checkpoints:
        remedy = Doctor.DOWNLOAD(name=files[0].variant.name)
        return [
            Item(
                name=Doctor.CHECKPOINTS(),
                state=MISSING,
                found=Doctor.NO_CHECKPOINTS(models_dir=models_dir / "lightx2v"),
                remedy=remedy,
                kind=NO_CHECKPOINTS,
            )
        ]
    return [
        _examine_checkpoint(name, checkpoints[name], machine)
        for name in checkpoints
        if not _has_parts(name, checkpoints) and not _is_part(name, checkpoints)
    ]


def _has_parts(name: str, checkpoints: Mapping[str, Path]) -> bool:
    """Whether a name is a repository whose precision folders are in the list themselves."""
    return any(f"{name}/{folder}" in checkpoints for folder in PRECISION_FOLDERS.values())


def _is_part(name: str, checkpoints: Mapping[str, Path]) -> bool:
    """Whether a name is an expert's folder in one that is in the list as both."""
    folder, _, own = name.rpartition("/")
    return folder in checkpoints and bool(noise_of(Path(own)))


def _examine_checkpoint(name: str, path: Path, machine: Machine) -> Item:
    try:
        checkpoint = resolve_checkpoint(path)
        found = _describe(checkpoint, machine)
    except CheckpointError as error:
        return Item(kind=CHECKPOINT, name=name, state=WARN, found=Doctor.CANNOT_BE_USED(), remedy=str(error))
    except (OSError, *MALFORMED) as error:
        # Of one among many: the others are shown all the same.
        return Item(
            kind=CHECKPOINT, name=name, state=WARN, found=Doctor.CANNOT_BE_USED(), remedy=cannot_be_used(path, error)
        )
    if checkpoint.missing:
        remedy = joined(checkpoint.missing, Between.BLANK)
        return Item(kind=CHECKPOINT, name=name, state=MISSING, found=found, remedy=remedy)
    warnings = _warnings(checkpoint)
    if warnings:
        remedy = joined(warnings, Between.BLANK)
        return Item(kind=CHECKPOINT, name=name, state=WARN, found=found, remedy=remedy)
    return Item(kind=CHECKPOINT, name=name, state=OK, found=found)


def _warnings(checkpoint: Checkpoint) -> list[str]:
    """Return what is known of a whole checkpoint's files that a user should know."""
    of_transformer = checkpoint.transformer.warnings if checkpoint.transformer else ()
    files = [*(checkpoint.transformer.every_file if checkpoint.transformer else ())]
    files += [file for file in (checkpoint.text_encoder, checkpoint.vae) if file is not None]
    return [*checkpoint.passed_over, *of_transformer, *doubts_about(dict.fromkeys(files))]


def _describe(checkpoint: Checkpoint, machine: Machine) -> str:
    parts: list[str] = []
    if checkpoint.transformer is not None:
        numbers = _numbers(checkpoint.transformer.format, machine)
        parts.append(Doctor.TRANSFORMER(described=describe_transformer(checkpoint.transformer, numbers)))
    if checkpoint.text_encoder is not None:
        parts.append(Doctor.TEXT_ENCODER(name=checkpoint.text_encoder.name))
    if checkpoint.vae is not None:
        parts.append(f"VAE {checkpoint.vae.name}")
    return joined(parts, Between.SEMICOLON) or Doctor.NO_PART()


def _numbers(layout: TransformerFormat, machine: Machine) -> str:
    """Return what the file has and what this machine computes with it in."""
    sizes = layout.architecture
    try:
        wanted = Wanted(precision=layout.precision, dim=sizes.dim, ffn_dim=sizes.ffn_dim)
        return choose(machine, wanted).numbers
    except UnsupportedHardwareError:
        return layout.precision


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
