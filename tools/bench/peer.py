"""What every peer's run shares: the same noise, text and image, the clock of its steps, and the row it fills."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import pack
from .harness import Bench, Row, clean_up, peaks, synchronize, text_rows
from .weights import KINDS

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
    kinds: Collection[str] = tuple(KINDS)
    """Of weights.KINDS, those that it can be compared with."""
    kind: str = "t2v"
    """The kind of this run."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """The first frame that is given, as a transformer takes it: float32 CPU, bfloat16 numbers."""

    latents: torch.Tensor
    """[16, T, h, w], normalized."""
    is_given: torch.Tensor
    """[4, T, h, w]: 1 where a frame is given."""
    rows: torch.Tensor | None
    """[257, 1280] of CLIP Vision; None for a model without them."""

    @property
    def channels(self) -> torch.Tensor:
        """[20, T, h, w]: what stands behind the noise in Wan's input."""
        return torch.cat([self.is_given, self.latents])


def make_schedule(bench: Bench) -> pack.Schedule:
    return pack.build_schedule(bench.options.steps, pack.DISTILL_SHIFT)


def make_noise(bench: Bench) -> torch.Tensor:
    """Return what the pack's sampler starts from with this seed: [16, T, h, w] float32 CPU."""
    return torch.randn(bench.shape, generator=torch.Generator().manual_seed(SEED))


def make_text() -> torch.Tensor:
    """Return text rows [512, 4096] float32 CPU."""
    return text_rows(torch.Generator().manual_seed(SEED + 1))


def make_image(bench: Bench, kind: str) -> Image | None:
    """Return the image of a kind of model; None for text to video."""
    width = KINDS[kind].get("image_dim", 0)
    if "in_dim" not in KINDS[kind]:
        return None
    generator = torch.Generator().manual_seed(SEED + 2)
    is_given = torch.zeros(pack.MASK_CHANNELS, *bench.shape[1:])
    is_given[:, 0] = 1
    return Image(
        latents=torch.randn(bench.shape, generator=generator).bfloat16().float(),
        is_given=is_given,
        rows=torch.randn(pack.CLIP_VISION_ROWS, width, generator=generator).bfloat16().float() if width else None,
    )


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
