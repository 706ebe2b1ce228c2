"""What a run will do, need and take, before anything is queued: from file headers, this machine, and past runs.

Nothing is loaded. The same tables and rules that a run follows decide; only a back end's trial run on the GPU is
left to the run itself. Safe to call from a worker thread.
"""

from __future__ import annotations

import functools
import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from .. import report, shapes, system
from ..backends.trials import find_machine
from ..checkpoints.content import doubts_about
from ..checkpoints.files import AUTO_SECOND, Checkpoint, is_a_version, resolve_checkpoint, resolve_experts
from ..checkpoints.transformers import TransformerFiles
from ..errors import MALFORMED, LightX2VError, NothingFitsError
from ..handles import ONE_GPU, TransformerHandle
from ..interfaces import Host
from ..lora.experts import ExpertLoras, read_for_experts
from ..memory.clip import Clip
from ..quantities import format_bytes
from ..sentences import joined
from ..sentences.between import Between
from ..sentences.doctor import Doctor
from ..sentences.refusals import Refusals
from ..settings import EngineSettings, GpuSettings, HostPolicy, OffloadSettings, SamplingSettings
from ..stages.given import NO_IMAGE
from . import speed
from .advice import faster_precision

_history = speed.History()


@dataclass(frozen=True, kw_only=True)
class Question:
    """A checkpoint, how it is to be run, and on what size."""

    path: Path
    is_checkpoint: bool
    """A whole checkpoint, or a transformer alone."""
    precision: str = "auto"
    settings: EngineSettings = field(default_factory=EngineSettings)
    offload: OffloadSettings = field(default_factory=OffloadSettings)
    gpus: GpuSettings = ONE_GPU
    policy: HostPolicy = field(default_factory=HostPolicy)
    uses: frozenset[str] = frozenset()
    """Further parts that the graph takes from the checkpoint: text_encoder, vae."""
    second: Path | str = AUTO_SECOND
    first_is: str = "auto"
    """The other expert of Wan2.2, and which one `path` is; see checkpoints/files.py resolve_experts."""
    loras: tuple[tuple[Path, str], ...] = ()
    """What is put on the transformer, at any strength but 0, and on which expert."""
    clip: Clip
    steps: int = 4
    sampling: SamplingSettings | None = None
    """What LightX2V Sampler is set to; None where another one samples."""
    has_own_sampler: bool = False
    """Whether a sampler of the host runs it, whose steps and cfg the user chooses."""
    has_picture: bool | None = None
    """Whether the condition that is sampled has a picture in it; None where that is not known."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Bytes that will be taken at the peak, of those that can be had."""

    needed: int
    available: int


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The answer; fields that could not be found out are empty."""

    ok: bool
    sentence: str
    """Whether it fits, or what is wrong and what to do."""
    detected: str = ""
    """Precision of the file and, where it is another one, of the compute; blocks and size of the transformer."""
    engine: str = ""
    attention: str = ""
    matmul: str = ""
    offload: str = ""
    num_blocks: int = 0
    """Of the transformer; of each expert where there are two."""
    resident_blocks: int = 0
    """In a streaming mode: blocks that stay on the GPU."""
    is_tiled: bool = False
    plan: str = ""
    """The memory plan in one line."""
    loras: tuple[str, ...] = ()
    """How much of each LoRA applies, a sentence each."""
    reasons: tuple[str, ...] = ()
    """Why this engine and these back ends, and the plan."""
    vram: Share | None = None
    """None without a GPU."""
    ram: Share | None = None
    seconds: float | None = None
    """Sampling and decoding, and encoding a picture where that was measured; None when nothing is known about the card.
    """
    step_seconds: float | None = None
    basis: str = "unknown"
    """measured | scaled | kernels | estimate | rough | unknown, see panel/speed.py."""
    tokens: int = 0
    is_absent: bool = False
    """No such model is there."""
    absent: str = ""
    """The name of what is not there, as it was chosen: of the model, or of its second expert."""
    absent_is_second: bool = False
    """It is the second expert."""
    choices: str = ""
    """What can be chosen instead of what is not there."""
    waits_for: str = ""
    """Name of the LoRA that something is wrong with, which its own node says."""
    missing: tuple[str, ...] = ()
    """Parts that the checkpoint lacks, one sentence each."""
    warnings: tuple[str, ...] = ()
    """What may make the picture another one than is meant, one sentence each."""
    hint: str = ""
    """What is there too and would be faster here."""


@dataclass(frozen=True, kw_only=True)
class LoraLine:
    """What is said of a LoRA on its node."""

    ok: bool
    sentence: str
    """How much of it applies, or what is wrong and what to do."""
    is_absent: bool = False
    """No such file is there."""
    choices: str = ""
    """What can be chosen instead of what is not there."""
    is_published: bool = False
    """It is not there, and can be downloaded."""
    waits: bool = False
    """Something is wrong with the transformer, which its loader says."""


WAITING_LORA = LoraLine(ok=False, sentence=Doctor.WAITING_FOR_TRANSFORMER(), waits=True)


def forecast(question: Question) -> Forecast:
    """Answer a question; a size, checkpoint or choice that cannot run is an answer too, with ok False."""
    clip = question.clip
    problem = shapes.size_problem(clip.width, clip.height, clip.num_frames)
    if problem:
        return Forecast(ok=False, sentence=problem)
    try:
        files, checkpoint = _find(question)
        missing = checkpoint.missing if checkpoint else ()
        if files is None:
            return Forecast(ok=False, sentence=joined(missing, Between.BLANK), missing=missing, tokens=clip.tokens)
        for lora, expert in question.loras:
            line = _describe_lora(lora, files, expert)
            if not line.ok:
                return Forecast(ok=False, sentence=line.sentence, waits_for=lora.name, tokens=clip.tokens)
        answer = _forecast_run(question, files, checkpoint)
    except LightX2VError as error:
        return Forecast(ok=False, sentence=str(error), tokens=clip.tokens)
    except (OSError, *MALFORMED) as error:
        return Forecast(ok=False, sentence=cannot_be_used(question.path, error), tokens=clip.tokens)
    if checkpoint is not None and _lacks(checkpoint, question.uses):
        answer = replace(answer, ok=False, sentence=joined(missing, Between.BLANK))
    if question.has_picture and not files.format.architecture.takes_image and answer.ok:
        answer = replace(answer, ok=False, sentence=Refusals.NOT_FOR_TEXT_MODEL(joined=Refusals.PICTURE()))
    if question.has_picture is False and files.format.architecture.takes_image and answer.ok:
        answer = replace(answer, ok=False, sentence=NO_IMAGE)
    return replace(answer, missing=missing)


def describe_lora(question: Question) -> LoraLine:
    """Say whether the first LoRA of a question can be put on its transformer, and how much of it applies or why not."""
    lora, expert = question.loras[0]
    try:
        files, _ = _find(question)
    except (LightX2VError, OSError, *MALFORMED):
        files = None
    return WAITING_LORA if files is None else _describe_lora(lora, files, expert)


def _describe_lora(lora: Path, files: TransformerFiles, expert: str) -> LoraLine:
    try:
        return LoraLine(ok=True, sentence=str(_read_lora(lora, _signature(lora), files, expert).report))
    except LightX2VError as error:
        return LoraLine(ok=False, sentence=str(error))
    except (OSError, *MALFORMED) as error:
        return LoraLine(ok=False, sentence=cannot_be_used(lora, error))


def cannot_be_used(path: Path, error: BaseException) -> str:
    """Return the sentence about files that nobody can make sense of."""
    return Doctor.CHOOSE_ANOTHER(name=path.name, kind=type(error).__name__, error=error)


def keep_speeds_in(path: Path | None) -> None:
    """Keep the speeds of runs in this file from now on; None keeps none."""
    global _history
    if path != _history.path:
        _history = speed.History(path)


def remember_sampling(handle: TransformerHandle, samples: torch.Tensor) -> None:
    """Note how fast the sampling was that made `samples` [B, 16, T, h, w]."""
    details = {record.stage: record.details for record in report.records_of(samples)}.get("sample")
    if details and "step_seconds" in details:
        setup = speed.Setup(
            card=_card(system.compute_device(), details.get("gpus", 1)),
            architecture=handle.files.format.architecture,
            engine=details["engine"],
            compute=details["compute"],
            attention=details["attention"],
            matmul=details["matmul"],
            ops=details["ops"],
            offload=details["offload"],
        )
        _history.add_steps(setup, details["tokens"], details["step_seconds"])


def remember_decoding(frames: torch.Tensor) -> None:
    """Note how fast the decoding was that made `frames` [F, H, W, 3]."""
    record = {record.stage: record for record in report.records_of(frames)}.get("decode")
    if record is not None:
        count, height, width, _ = frames.shape
        clip = Clip(width=width, height=height, num_frames=count)
        card = _card(system.compute_device(), record.details.get("gpus", 1))
        _history.add_decode(card, clip, record.seconds, is_tiled=record.details["tiled"])


def remember_encoding(latents: torch.Tensor) -> None:
    """Note how fast the pictures of a clip were encoded, to `latents` [1, 16, T, h, w]."""
    record = {record.stage: record for record in report.records_of(latents)}.get("encode_video")
    if record is not None:
        card = _card(system.compute_device(), record.details.get("gpus", 1))
        _history.add_encode(card, Clip.of_latents(latents.shape), record.seconds)


def _forecast_run(question: Question, files: TransformerFiles, checkpoint: Checkpoint | None) -> Forecast:
    """Plan as a run would now, with a handle of its own."""
    host = Host(policy=question.policy)
    handle = TransformerHandle(files, question.settings, question.offload, question.gpus)
    loras = [_read_lora(path, _signature(path), files, expert) for path, expert in question.loras]
    for lora in loras:
        handle = handle.with_lora(lora)
    sizes = handle.sizes_now(question.clip, host.device)
    if checkpoint is not None and checkpoint.text_encoder is not None and "text_encoder" in question.uses:
        sizes = replace(sizes, text_encoder_bytes=checkpoint.text_encoder.stat().st_size)
    backends, architecture = sizes.backends, files.format.architecture
    answer = Forecast(
        ok=True,
        sentence=Doctor.FITS(),
        detected=describe_transformer(files, backends.numbers),
        engine=backends.engine,
        attention=backends.attention.name,
        matmul=backends.matmul.name,
        loras=tuple(str(lora.report) for lora in loras),
        reasons=backends.reasons,
        tokens=question.clip.tokens,
        warnings=(
            *(checkpoint.passed_over if checkpoint else ()),
            *files.warnings,
            *doubts_about(files.every_file),
            *([handle.doubts] if handle.doubts and not question.has_own_sampler else []),
            *(question.sampling.doubts(len(files.names)) if question.sampling else []),
        ),
        hint=_hint_at_precision(question, files, host.device),
    )
    try:
        plan = handle.room(host).plan_run(sizes)
    except NothingFitsError as error:
        return replace(answer, ok=False, sentence=str(error))
    # The plan's: they may be others where memory is short.
    backends, tokens = plan.backends, question.clip.tokens
    answer = replace(answer, attention=backends.attention.name, matmul=backends.matmul.name, reasons=backends.reasons)
    setup = speed.setup_of(backends, _card(host.device, sizes.ranks), architecture, plan.placement.mode, tokens)
    if sizes.ranks > 1:
        # What was measured of kernels is of one GPU; several are known once they have sampled.
        setup = replace(setup, parts=None)
    is_tiled = plan.decode.tile is not None
    duration = _history.predict(
        setup, question.clip, question.steps, is_tiled=is_tiled, has_picture=bool(question.has_picture)
    )
    return replace(
        answer,
        offload=plan.placement.mode,
        num_blocks=architecture.num_layers,
        resident_blocks=plan.placement.resident_blocks,
        is_tiled=is_tiled,
        plan=str(plan),
        reasons=(*answer.reasons, str(plan)),
        vram=None if plan.budget.vram is None else Share(needed=plan.vram, available=plan.budget.vram),
        ram=Share(needed=plan.ram, available=plan.budget.ram),
        seconds=duration.seconds,
        step_seconds=duration.step_seconds,
        basis=duration.basis,
    )


def _hint_at_precision(question: Question, files: TransformerFiles, device: torch.device) -> str:
    """Say that a checkpoint has the model also in a precision that is faster on this card, where auto took another."""
    if not question.is_checkpoint or question.precision != "auto":
        return ""
    taken = files.format.precision
    found = faster_precision(taken, find_machine(device), system.card_name(device))
    if found is None:
        return ""
    faster, times = found
    with suppress(LightX2VError):
        if _resolve_checkpoint(question.path, faster, _signature(question.path)).transformer is not None:
            return Doctor.FASTER_PRECISION(faster=faster, taken=taken, times=f"{times:.1f}")
    return ""


def describe_transformer(files: TransformerFiles, numbers: str) -> str:
    """Return e.g. "fp8, 40 blocks, 13.1 GiB". Args: numbers: what it has and what is computed in."""
    num_layers, size = files.format.architecture.num_layers, format_bytes(files.total_bytes)
    if files.second is not None:
        return Doctor.TWO_EXPERTS(numbers=numbers, num_layers=num_layers, size=size)
    return Doctor.ONE_TRANSFORMER(numbers=numbers, size=Doctor.BLOCKS(num_layers=num_layers, size=size))


def _card(device: torch.device, count: int = 1) -> str:
    """Return what computes; several GPUs have a history of their own."""
    name = system.card_name(device)
    return name if count == 1 else f"{count} x {name}"


def _lacks(checkpoint: Checkpoint, uses: frozenset[str]) -> bool:
    return ("text_encoder" in uses and not checkpoint.has_text) or ("vae" in uses and checkpoint.vae is None)


def _find(question: Question) -> tuple[TransformerFiles | None, Checkpoint | None]:
    """Return the files of a transformer, if there are any, and the whole checkpoint, if it is one."""
    path, second = question.path, question.second
    if question.is_checkpoint:
        checkpoint = _resolve_checkpoint(path, question.precision, _signature(path))
        return checkpoint.transformer, checkpoint
    signatures = (_signature(path), _signature(second) if isinstance(second, Path) else 0)
    return _resolve_transformer(path, second, question.first_is, signatures), None


@functools.lru_cache(maxsize=32)
def _resolve_checkpoint(path: Path, precision: str, signature: int) -> Checkpoint:
    return resolve_checkpoint(path, precision)


@functools.lru_cache(maxsize=32)
def _resolve_transformer(
    path: Path, second: Path | str, first_is: str, signatures: tuple[int, int]
) -> TransformerFiles:
    return resolve_experts(path, second, first_is)


@functools.lru_cache(maxsize=32)
def _read_lora(path: Path, signature: int, files: TransformerFiles, expert: str) -> ExpertLoras:
    return read_for_experts(path, files.header, files.names, expert)


def _signature(path: Path) -> int:
    """Return a number that changes when a file changes that resolving `path` may look at."""
    home = path if os.path.isdir(path) else path.parent
    folders = [home, *([home.parent] if is_a_version(home) else [])]
    facts = [(str(path), path.stat().st_mtime_ns)] if os.path.exists(path) else []
    for folder in folders:
        facts += _facts_below(folder, depth=1)
    return hash(tuple(sorted(facts)))


def _facts_below(folder: Path | str, depth: int) -> list[tuple[str, int]]:
    """Return what changes with the files in a folder; what may not be looked at does not change."""
    facts = []
    with suppress(OSError):
        for entry in os.scandir(folder):
            with suppress(OSError):
                if entry.is_file():
                    status = entry.stat()
                    facts.append((entry.path, status.st_mtime_ns + status.st_size))
                elif depth and entry.is_dir():
                    facts += _facts_below(entry.path, depth - 1)
    return facts
