"""What every peer's run shares: the same noise and text, the clock of its steps, and the row it fills.

Imported as `lightx2v_pack.tools.bench.peer_clock`, after the script has registered the pack.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...engine.constants import DISTILL_SHIFT, GIB, TEXT_ROWS
from ...engine.shapes import latent_shape
from ...engine.stages.schedule import Schedule, build_schedule
from .full_size import TEXT_DIM, Shape, synchronize

SEED = 0
NUM_WORDS = 40
"""Rows of the text that are not padding."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One line of the comparison."""

    title: str
    runner: str
    """Module that runs it: pack | lightx2v | comfyui | diffusers."""
    precision: str
    needs: tuple[str, ...] = ()
    """Packages, and COMFYUI_DIR."""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Task:
    """The same for every peer of a run."""

    shape: Shape
    steps: int
    device: torch.device
    folder: Path
    """Holds the template and the weights."""
    arguments: argparse.Namespace

    @property
    def schedule(self) -> Schedule:
        return build_schedule(self.steps, DISTILL_SHIFT)

    def noise(self) -> torch.Tensor:
        """Return what the pack's sampler starts from with this seed: [16, T, h, w] float32 CPU."""
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(SEED))

    def context(self) -> torch.Tensor:
        """Return text rows [512, 4096] float32 CPU, bfloat16 numbers, zero after the words."""
        rows = torch.randn(TEXT_ROWS, TEXT_DIM, generator=torch.Generator().manual_seed(SEED + 1)).bfloat16().float()
        rows[NUM_WORDS:] = 0
        return rows


def make_task(arguments: argparse.Namespace, folder: Path, device: torch.device) -> Task:
    """Return the task that the size options describe."""
    shape = latent_shape(arguments.width, arguments.height, arguments.frames)
    return Task(shape=shape, steps=arguments.steps, device=device, folder=folder, arguments=arguments)


class Clock:
    """Times a peer's run and keeps its row in a file, so that a run that is killed has told what it had."""

    def __init__(self, file: Path, device: torch.device) -> None:
        self.row: dict[str, Any] = {"step_seconds": []}
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
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
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
        self.row |= facts
        if self._device.type == "cuda":
            self.row["allocated_gib"] = torch.cuda.max_memory_allocated(self._device) / GIB
            self.row["reserved_gib"] = torch.cuda.max_memory_reserved(self._device) / GIB
        self._file.write_text(json.dumps(self.row))
