"""What a run did and cost: one record a stage, carried along by the tensors that the stages return.

Records belong to a tensor's memory, so that a cached ComfyUI output keeps the record of the run that made it, and so
does a view of it; they lie in a side table that holds the memory weakly, so nothing outlives it or is saved with it.
"""

from __future__ import annotations

import logging
import platform
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

import psutil
import torch
from torch.utils.weak import WeakIdKeyDictionary

from . import system
from .backends.trials import pack_version
from .memory.needs import Need
from .sentences.report import Report

_records: MutableMapping[torch.UntypedStorage, tuple[StageRecord, ...]] = WeakIdKeyDictionary(ref_type=weakref.ref)
_SAMPLE_SECONDS = 0.02
# Stages whose results a host keeps for later samplings, and how many samplings have ended in this process.
_BEFORE_SAMPLING = frozenset({"load_text_encoder", "encode", "load_vae_encoder", "encode_video"})
_samplings = 0
# What the log was warned of while a run goes on in this thread, for its report.
_noted: ContextVar[list[str] | None] = ContextVar("noted", default=None)
_PACKAGES = (
    "triton",
    "safetensors",
    "lightx2v",
    "sageattention",
    "q8-kernels",
    "sgl-kernel",
)


@dataclass(kw_only=True)
class StageRecord:
    """Cost and facts of one stage."""

    stage: str
    """load_text_encoder, encode, load_vae_encoder, encode_video, load_transformer, sample, load_vae, decode."""
    seconds: float = 0.0
    peak_ram_bytes: int = 0
    """Largest resident set of the process during the stage, mapped file pages included."""
    peak_vram_allocated_bytes: int = 0
    peak_vram_reserved_bytes: int = 0
    predicted_ram_bytes: int | None = None
    """What the memory plan expected of peak_ram_bytes; None where nothing was planned."""
    predicted_vram_bytes: int | None = None
    """What the memory plan expected of peak_vram_reserved_bytes."""
    details: dict[str, Any] = field(default_factory=dict)
    """Facts of the stage: engine, precision, seconds per step, sizes ...; `warnings` are those of the log."""
    _ram_before: int = field(default=0, repr=False)
    _samplings: int = field(default=0, repr=False)
    """How many samplings had ended before it began."""

    def as_data(self) -> dict[str, Any]:
        """Return the record as JSON data."""
        return {name: value for name, value in asdict(self).items() if not name.startswith("_")}

    def expect(self, need: Need, held: Need) -> None:
        """Note what a plan expects, at the start of the stage, when the process holds so much for the plan already."""
        self.predicted_ram_bytes = self._ram_before - held.ram + need.ram
        self.predicted_vram_bytes = need.vram


class _Notes(logging.Handler):
    """Keeps what the pack warns of."""

    def emit(self, record: logging.LogRecord) -> None:
        noted = _noted.get()
        if noted is not None:
            # The sentence itself, which has other languages.
            is_sentence = isinstance(record.args, tuple) and len(record.args) == 1 and isinstance(record.args[0], str)
            noted.append(record.args[0] if is_sentence else record.getMessage())  # type: ignore[index,arg-type]


logging.getLogger(__package__).addHandler(_Notes(logging.WARNING))


@contextmanager
def noting() -> Iterator[list[str]]:
    """Let the stages that are measured inside the block name what the log was warned of there, before them too."""
    before = _noted.get()
    noted = [] if before is None else before
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)


@contextmanager
def measure(stage: str, device: torch.device) -> Iterator[StageRecord]:
    """Time a stage and watch its peaks of RAM and VRAM; fill `details` inside the block.

    What the log is warned of in it, see noting, is added to them.
    """
    with noting() as noted, _measured(stage, device) as record:
        yield record
        if noted:
            record.details = {**record.details, "warnings": [*dict.fromkeys(noted)]}


@contextmanager
def _measured(stage: str, device: torch.device) -> Iterator[StageRecord]:
    global _samplings
    record = StageRecord(stage=stage, _samplings=_samplings)
    # What earlier stages left in caches is not of this stage.
    system.release_memory(device)
    has_cuda = device.type == "cuda"
    if has_cuda:
        torch.cuda.reset_peak_memory_stats()
    process = psutil.Process()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            record.peak_ram_bytes = max(record.peak_ram_bytes, process.memory_info().rss)

    watcher = threading.Thread(target=watch, name=f"lightx2v-{stage}", daemon=True)
    record._ram_before = record.peak_ram_bytes = process.memory_info().rss
    watcher.start()
    start = time.perf_counter()
    try:
        yield record
        if has_cuda:
            torch.cuda.synchronize()
        _samplings += stage == "sample"
    finally:
        record.seconds = round(time.perf_counter() - start, 4)
        done.set()
        watcher.join()
        record.peak_ram_bytes = max(record.peak_ram_bytes, process.memory_info().rss)
        if has_cuda:
            record.peak_vram_allocated_bytes = torch.cuda.max_memory_allocated()
            record.peak_vram_reserved_bytes = torch.cuda.max_memory_reserved()


def attach(tensor: torch.Tensor, *groups: Sequence[StageRecord]) -> torch.Tensor:
    """Let `tensor` and its views carry records, a later one of a stage replacing an earlier one; returns it."""
    by_stage = {record.stage: record for records in groups for record in records}
    _records[tensor.untyped_storage()] = tuple(by_stage.values())
    return tensor


def records_of(tensor: torch.Tensor) -> tuple[StageRecord, ...]:
    """Return the records a tensor carries; empty where it was made by someone else's node."""
    return _records.get(tensor.untyped_storage(), ())


def build_report(records: Sequence[StageRecord], host_versions: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the run report as plain JSON data: stages, totals, device, versions.

    A stage whose result was kept from an earlier run has `is_kept`, and is in no total.

    Args:
        host_versions: of the program that the pack runs in, by its name.
    """
    ran = [record for record in records if not _is_kept(record, records)]
    return {
        "stages": [record.as_data() | ({} if record in ran else {"is_kept": True}) for record in records],
        "total_seconds": round(sum(record.seconds for record in ran), 4),
        "peak_ram_bytes": max((record.peak_ram_bytes for record in ran), default=0),
        "peak_vram_allocated_bytes": max((record.peak_vram_allocated_bytes for record in ran), default=0),
        "peak_vram_reserved_bytes": max((record.peak_vram_reserved_bytes for record in ran), default=0),
        "device": _describe_device(),
        "driver": system.driver_version(),
        "system": Report.SYSTEM_IS(system=platform.platform(), cpu=system.cpu_name(), size=_describe_size()),
        "versions": {
            "lightx2v-nodes": pack_version(),
            **(host_versions or {}),
            "python": sys.version.split()[0],
            "os": platform.platform(),
            **_versions(),
        },
    }


def _is_kept(record: StageRecord, records: Sequence[StageRecord]) -> bool:
    """Whether a stage's result is older than the sampling before the one that took it."""
    samplings = [each._samplings for each in records if each.stage == "sample"]
    return record.stage in _BEFORE_SAMPLING and any(record._samplings < number for number in samplings)


def step_timer(
    on_step: Callable[[int, int, torch.Tensor], None],
) -> tuple[Callable[[int, int, torch.Tensor], None], list[float]]:
    """Wrap an `on_step` hook so that the seconds of every step are noted in the returned list."""
    seconds: list[float] = []
    last = time.perf_counter()

    def timed(step: int, steps: int, clean: torch.Tensor) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds.append(round(now - last, 4))
        on_step(step, steps, clean)
        last = now

    return timed, seconds


def _describe_device() -> str:
    if system.compute_device().type == "cuda":
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB, CUDA {torch.version.cuda}"
    return Report.CPU(size=_describe_size())


def _describe_size() -> str:
    return Report.CORES(count=psutil.cpu_count(), ram=psutil.virtual_memory().total / 2**30)


def _versions() -> dict[str, str]:
    # Of torch its own word, which says the build: 2.13.0+cpu, 2.13.0+cu130.
    found = {"torch": str(torch.__version__)}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
