"""What every peer's run shares: the same noise and text, the clock of its steps, and the row it fills."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import pack
from .harness import Bench, Row, clean_up, peaks, synchronize, text_rows

SEED = 0


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One line of the comparison."""

    title: str
    runner: str
    """Module that runs it: pack | lightx2v | comfyui | diffusers."""
    precision: str
    needs: tuple[str, ...] = ()
    """Packages, "CUDA", and variables that name a checkout."""
    options: Mapping[str, Any] = field(default_factory=dict)


def make_schedule(bench: Bench) -> pack.Schedule:
    return pack.build_schedule(bench.options.steps, pack.DISTILL_SHIFT)


def make_noise(bench: Bench) -> torch.Tensor:
    """Return what the pack's sampler starts from with this seed: [16, T, h, w] float32 CPU."""
    return torch.randn(bench.shape, generator=torch.Generator().manual_seed(SEED))


def make_text() -> torch.Tensor:
    """Return text rows [512, 4096] float32 CPU."""
    return text_rows(torch.Generator().manual_seed(SEED + 1))


class Clock:
    """Times a peer's run and keeps its row in a file, so that a run that is killed has told what it had."""

    def __init__(self, file: Path, device: torch.device) -> None:
        self.row: Row = {"step_seconds": []}
        self._file = file
        self._device = device
        self._last = time.perf_counter()

    def loading(self) -> None:
        """The peer's weights are on the disk; it begins to load them."""
        self._last = time.perf_counter()

    def loaded(self) -> None:
        """The weights are where the peer keeps them; sampling starts now."""
        synchronize(self._device)
        self.row["load_seconds"] = time.perf_counter() - self._last
        clean_up(self._device)
        self._last = time.perf_counter()

    def step(self, *_: object) -> None:
        """One step more was launched."""
        synchronize(self._device)
        now = time.perf_counter()
        self.row["step_seconds"].append(now - self._last)
        self._last = now
        self.write()

    def write(self, **facts: Any) -> None:
        """Write the row, with more facts in it."""
        self.row |= {**facts, **peaks(self._device)}
        self._file.write_text(json.dumps(self.row))
