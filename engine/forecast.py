"""What a run will do, need and take, before anything is queued: from file headers, this machine, and past runs.

Nothing is loaded. The same tables and rules that a run follows decide; only a back end's trial run on the GPU is
left to the run itself. Safe to call from a worker thread.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from . import engines, report
from .adapters import system
from .adapters.kernels.probe import find_machine
from .adapters.lightx2v import config as lightx2v_config
from .constants import GIB
from .errors import LightX2VError
from .handles import TransformerHandle, held_ram_bytes
from .logic import estimate, memory_plan, shapes, support
from .logic.checkpoint_files import (
    PRECISION_FOLDERS,
    Checkpoint,
    TransformerFiles,
    resolve_checkpoint,
    resolve_transformer,
)
from .settings import EngineSettings, OffloadSettings

_history = estimate.History()


@dataclass(frozen=True, kw_only=True)
class Question:
    """A checkpoint, how it is to be run, and on what size."""

    path: Path
    is_checkpoint: bool
    """A whole checkpoint, or a transformer alone."""
    precision: str = "auto"
    settings: EngineSettings = field(default_factory=EngineSettings)
    offload: OffloadSettings = field(default_factory=OffloadSettings)
    uses: frozenset[str] = frozenset()
    """Further parts that the graph takes from the checkpoint: text_encoder, vae."""
    width: int
    height: int
    num_frames: int
    batch: int = 1
    steps: int = 4


@dataclass(frozen=True, kw_only=True)
class Need:
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
    """Precision, blocks and size of the transformer."""
    engine: str = ""
    attention: str = ""
    matmul: str = ""
    offload: str = ""
    is_tiled: bool = False
    reasons: tuple[str, ...] = ()
    """Why this engine, these back ends, this offload mode."""
    vram: Need | None = None
    """None without a GPU."""
    ram: Need | None = None
    seconds: float | None = None
    """Sampling and decoding; None when nothing is known about this card."""
    step_seconds: float | None = None
    basis: str = "unknown"
    """measured | scaled | estimate | unknown, see logic/estimate.py."""
    tokens: int = 0
    is_absent: bool = False
    """No such model is there."""
    missing: tuple[str, ...] = ()
    """Parts that the checkpoint lacks, one sentence each."""


def forecast(question: Question) -> Forecast:
    """Answer a question; a size, checkpoint or choice that cannot run is an answer too, with ok False."""
    problem = shapes.size_problem(question.width, question.height, question.num_frames)
    if problem:
        return Forecast(ok=False, sentence=problem)
    latent = shapes.latent_shape(question.width, question.height, question.num_frames)
    clip = estimate.Clip(
        width=question.width,
        height=question.height,
        num_frames=question.num_frames,
        tokens=shapes.num_tokens(latent),
        steps=question.steps,
        batch=question.batch,
    )
    checkpoint: Checkpoint | None = None
    try:
        if question.is_checkpoint:
            checkpoint = _resolve_checkpoint(question.path, question.precision, _signature(question.path))
            files = checkpoint.transformer
        else:
            files = _resolve_transformer(question.path, _signature(question.path))
        missing = checkpoint.missing if checkpoint else ()
        if files is None:
            return Forecast(ok=False, sentence=" ".join(missing), missing=missing, tokens=clip.tokens)
        answer = _forecast_run(question, files, clip)
    except LightX2VError as error:
        return Forecast(ok=False, sentence=str(error), tokens=clip.tokens)
    if checkpoint is not None and _lacks(checkpoint, question.uses):
        answer = replace(answer, ok=False, sentence=" ".join(missing))
    return replace(answer, missing=missing)


def remember_sampling(handle: TransformerHandle, samples: torch.Tensor) -> None:
    """Note how fast the sampling was that made `samples` [B, 16, T, h, w]."""
    details = {record.stage: record.details for record in report.records_of(samples)}.get("sample")
    if details:
        setup = estimate.Setup(
            card=_card(),
            architecture=handle.files.format.architecture,
            engine=details["engine"],
            scheme=details["precision"],
            attention=details["attention"],
            matmul=details["matmul"],
            is_compiled=bool(details["compile"]),
            offload=details["offload"],
        )
        _history.add_steps(setup, details["tokens"], details["step_seconds"])


def remember_decoding(frames: torch.Tensor) -> None:
    """Note how fast the decoding was that made `frames` [F, H, W, 3]."""
    record = {record.stage: record for record in report.records_of(frames)}.get("decode")
    if record is not None:
        count, height, width, _ = frames.shape
        clip = estimate.Clip(width=width, height=height, num_frames=count, tokens=0)
        _history.add_decode(_card(), clip, record.seconds, is_tiled=record.details["tiled"])


@dataclass(frozen=True, kw_only=True)
class _Memory:
    """Where weights will rest and what will be needed."""

    plan: memory_plan.OffloadPlan
    is_tiled: bool
    vram: Need | None
    ram: Need

    @property
    def fits(self) -> bool:
        return all(need.needed <= need.available for need in (self.vram, self.ram) if need)


def _forecast_run(question: Question, files: TransformerFiles, clip: estimate.Clip) -> Forecast:
    layout = files.format
    engine = engines.choose_engine(question.settings.engine)
    attention, matmul = _choose_backends(engine, layout.scheme, question.settings.attention)
    memory = _plan_memory(question.offload, files, clip)
    setup = estimate.Setup(
        card=_card(),
        architecture=layout.architecture,
        engine=engine,
        scheme=layout.scheme,
        attention=attention.name,
        matmul=matmul.name if matmul else layout.scheme,
        is_compiled=question.settings.compile == "on",
        offload=memory.plan.mode,
    )
    duration = _history.predict(setup, clip, is_tiled=memory.is_tiled)
    reasons = (_engine_reason(engine, question.settings.engine), str(attention), str(matmul or ""), memory.plan.reason)
    return Forecast(
        ok=memory.fits,
        sentence=_verdict(memory),
        detected=f"{layout.scheme}, {layout.architecture.num_layers} blocks, {files.num_bytes / GIB:.3g} GiB",
        engine=engine,
        attention=attention.name,
        matmul=setup.matmul,
        offload=memory.plan.mode,
        is_tiled=memory.is_tiled,
        reasons=tuple(reason for reason in reasons if reason),
        vram=memory.vram,
        ram=memory.ram,
        seconds=duration.seconds,
        step_seconds=duration.step_seconds,
        basis=duration.basis,
        tokens=clip.tokens,
    )


def _plan_memory(offload: OffloadSettings, files: TransformerFiles, clip: estimate.Clip) -> _Memory:
    vram, ram = _available(offload)
    plan = memory_plan.plan_offload(
        offload.mode,
        weight_bytes=files.num_bytes,
        dim=files.format.architecture.dim,
        tokens=clip.tokens,
        vram_bytes=vram,
        ram_bytes=ram,
    )
    decode_space, element_bytes = (ram, 4) if vram is None else (vram, 2)
    whole = estimate.decode_bytes(clip, element_bytes, is_tiled=False)
    is_tiled = memory_plan.use_tiles(offload.vae_tiling, needed_bytes=whole, free_bytes=decode_space)
    device_bytes = max(
        estimate.sampling_vram_bytes(plan.mode, files, clip.tokens),
        estimate.decode_bytes(clip, element_bytes, is_tiled=is_tiled),
    )
    host_bytes = estimate.ram_bytes(plan.mode, files, clip)
    if vram is None:
        need = Need(needed=max(host_bytes, device_bytes), available=ram)
        return _Memory(plan=plan, is_tiled=is_tiled, vram=None, ram=need)
    return _Memory(
        plan=plan,
        is_tiled=is_tiled,
        vram=Need(needed=device_bytes, available=vram),
        ram=Need(needed=host_bytes, available=ram),
    )


def _verdict(memory: _Memory) -> str:
    if memory.fits:
        return "Fits."
    lacking = [
        f"{need.needed / GIB:.1f} GiB of {name} ({need.available / GIB:.1f} GiB can be had)"
        for name, need in (("VRAM", memory.vram), ("RAM", memory.ram))
        if need and need.needed > need.available
    ]
    easier = {"none": "offload mode auto, ", "block": "offload mode disk, ", "phase": "offload mode disk, "}
    advice = easier.get(memory.plan.mode, "") if memory.vram else ""
    return f"Does not fit: needs {' and '.join(lacking)}. Try {advice}a smaller size or fewer frames."


def _choose_backends(
    engine: str, scheme: str, requested_attention: str
) -> tuple[support.Choice, support.Choice | None]:
    """Return the choices for attention and, with 8-bit weights, for matmul."""
    machine = find_machine(system.compute_device())
    attention = support.choose_backend(
        "attention", support.ATTENTION_BACKENDS, requested_attention, machine, dtype="bf16"
    )
    if scheme == "bf16":
        return attention, None
    table: Sequence[support.Backend] = support.MATMUL_BACKENDS
    if engine == "lightx2v":
        table = lightx2v_config.MATMUL_BACKENDS
        packages = {row.package: "" for row in table if row.package and importlib.util.find_spec(row.package)}
        machine = replace(machine, packages={**machine.packages, **packages})
    return attention, support.choose_backend(f"{scheme} matmul", table, "auto", machine, dtype=scheme)


def _engine_reason(engine: str, wanted: str) -> str:
    if wanted != "auto":
        return ""
    if engine == "lightx2v":
        return "engine: LightX2V is installed and there is a CUDA card"
    if not torch.cuda.is_available():
        return "engine: portable, as there is no CUDA card"
    from .adapters.lightx2v import bootstrap

    return f"engine: portable; {bootstrap.unavailable_reason()}"


def _available(offload: OffloadSettings) -> tuple[int | None, int]:
    """Return VRAM (None without a GPU) and RAM that a run can have.

    What torch holds in this process counts as free: ComfyUI unloads models to make room for the next.
    """
    ram = system.free_ram_bytes() + held_ram_bytes()
    free = system.free_vram_bytes()
    if free is None:
        return None, ram
    free += torch.cuda.memory_allocated()
    if offload.vram_budget_gib:
        free = min(free, int(offload.vram_budget_gib * GIB))
    return free, ram


def _card() -> str:
    device = system.compute_device()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _lacks(checkpoint: Checkpoint, uses: frozenset[str]) -> bool:
    lacks_text = checkpoint.text_encoder is None or any("The tokenizer" in part for part in checkpoint.missing)
    return ("text_encoder" in uses and lacks_text) or ("vae" in uses and checkpoint.vae is None)


@functools.lru_cache(maxsize=32)
def _resolve_checkpoint(path: Path, precision: str, signature: int) -> Checkpoint:
    return resolve_checkpoint(path, precision)


@functools.lru_cache(maxsize=32)
def _resolve_transformer(path: Path, signature: int) -> TransformerFiles:
    return resolve_transformer(path)


def _signature(path: Path) -> int:
    """Return a number that changes when a file changes that resolving `path` may look at."""
    home = path if path.is_dir() else path.parent
    folders = [home, *([home.parent] if home.name in PRECISION_FOLDERS.values() else [])]
    facts = [(str(path), path.stat().st_mtime_ns)] if path.exists() else []
    for folder in folders:
        for entry in _files_below(folder, depth=1):
            status = entry.stat()
            facts.append((entry.path, status.st_mtime_ns + status.st_size))
    return hash(tuple(sorted(facts)))


def _files_below(folder: Path | str, depth: int) -> list[os.DirEntry[str]]:
    if not os.path.isdir(folder):
        return []
    entries = list(os.scandir(folder))
    below = [_files_below(entry.path, depth - 1) for entry in entries if depth and entry.is_dir()]
    return [*(entry for entry in entries if entry.is_file()), *(entry for each in below for entry in each)]
