"""Gives every unit of a model its weights, in the order of compute, for as long as the host needs them."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..interfaces import Hooks
from ..memory.placement import Placement
from ..system import page_lock_limit
from .reader import Progress, load_to_device, load_to_ram
from .residence import FileHome, Mapped, Placed, RamHome, Residence, Streamed, map_unit
from .shared import SharedHome
from .units import Finish, Source, Unit


class WeightStreamer:
    """What all units of a model share: the residence, the interrupt check, the pace of the host.

    `check_interrupt` is asked before every unit and while one is waited for; start_pass sets it. `check_unit` is asked
    before every unit alone.
    """

    def __init__(self, residence: Residence, device: torch.device) -> None:
        self.residence = residence
        self.check_interrupt: Callable[[], None] = Hooks().check_interrupt
        self.check_unit: Callable[[], None] = Hooks().check_interrupt
        self._device = device
        self._streams: Any = getattr(torch, device.type)
        self._launched: deque[Any] = deque()
        self._on_unit: Callable[[int], None] = lambda index: None

    def start_pass(self, hooks: Hooks, units: Sequence[Unit]) -> None:
        """Report a pass over these units to hooks."""
        self.check_interrupt = hooks.check_interrupt
        blocks = units[-1].block + 1

        def on_unit(index: int) -> None:
            if index + 1 == len(units) or units[index + 1].block != units[index].block:
                hooks.on_block(units[index].block + 1, blocks)

        self._on_unit = on_unit

    @property
    def moved_bytes(self) -> int:
        """Copied to the device so far."""
        return self.residence.moved_bytes

    @contextlib.contextmanager
    def unit(self, index: int) -> Iterator[dict[str, torch.Tensor]]:
        """Give a unit's tensors, by name within the block, to the compute that the `with` launches."""
        self.check_interrupt()
        self.check_unit()
        yield self.residence.acquire(index, self.check_interrupt)
        self.residence.release(index, self.check_interrupt)
        self.keep_pace()
        self._on_unit(index)

    def keep_pace(self) -> None:
        """Wait until at most one unit is waiting on the GPU, so that Cancel stops within a block."""
        if self._device.type != "cuda":
            return
        event: Any = self._streams.Event()
        event.record()
        self._launched.append(event)
        if len(self._launched) > 1:
            self._launched.popleft().synchronize()

    def close(self) -> None:
        """Give back all memory and end all threads."""
        self.residence.close()


def place_weights(
    units: Sequence[Unit],
    source: Source,
    placement: Placement,
    device: torch.device,
    hooks: Hooks,
    finish: Finish | None = None,
    shared: SharedHome | None = None,
) -> WeightStreamer:
    """Bring a model's units to where they are to rest.

    Args:
        units: in the order of compute.
        source: where they come from; stays in use in mode disk and on a CPU.
        placement: its first `resident_blocks` blocks (in mode none: all) stay on the device, the others are streamed
            from RAM or, in mode disk, from their files. On a CPU everything is mapped from the files; in mode
            disk what is not resident is unmapped again after each use.
        device: the compute device.
        hooks: told of the progress, and asked whether to stop.
        finish: what is done to units that have arrived on the device. What rests there or in RAM is finished once, with
            no second copy of it; what comes from files or from memory of several processes, each time; on a CPU that
            needs copies of what is mapped.
        shared: memory of several processes for what rests in RAM; None is memory of its own.

    Returns:
        The streamer, to be closed in the end.

    Raises:
        CheckpointError: a file could not be read.
    """
    if device.type == "cpu":
        return WeightStreamer(map_units(units, source, placement, device, hooks, finish), device)
    return WeightStreamer(load_units(units, source, placement, device, hooks, finish, shared), device)


def load_units(
    units: Sequence[Unit],
    source: Source,
    placement: Placement,
    device: torch.device,
    hooks: Hooks,
    finish: Finish | None = None,
    shared: SharedHome | None = None,
) -> Residence:
    """Load units to the device and to RAM; see `place_weights`."""
    held_units, streamed = _split(units, placement)
    limit = page_lock_limit(placement.pinned_limit_bytes)
    progress = Progress(hooks, len(held_units) if placement.mode == "disk" else len(units))
    held = load_to_device(held_units, source, device, limit, progress, finish)
    rest: Residence | None = None
    if streamed and placement.mode == "disk":
        rest = Streamed(streamed, FileHome(streamed, source, device, limit), device, finish)
    elif streamed:
        buffers = load_to_ram(streamed, source, device, limit, replace(progress, done=len(held)), shared)
        rest = Streamed(streamed, RamHome(buffers, keeps=shared is None), device, finish)
    progress.report(progress.total)
    return Placed(held, rest, sum(unit.num_bytes for unit in held_units))


def map_units(
    units: Sequence[Unit],
    source: Source,
    placement: Placement,
    device: torch.device,
    hooks: Hooks,
    finish: Finish | None = None,
) -> Residence:
    """Map units from their files; in mode disk those that are not resident are mapped anew for each use."""
    held_units, streamed = _split(units, placement) if placement.mode == "disk" else (units, ())
    progress = Progress(hooks, len(held_units))
    held = []
    for number, unit in enumerate(held_units):
        progress.report(number)
        held.append(map_unit(unit, source, finish))
    source.close()
    progress.report(progress.total)
    return Placed(held, Mapped(streamed, source, finish) if streamed else None, 0)


def _split(units: Sequence[Unit], placement: Placement) -> tuple[Sequence[Unit], Sequence[Unit]]:
    """Return the units that stay on the device and those that are streamed."""
    num_held = sum(placement.mode == "none" or unit.block < placement.resident_blocks for unit in units)
    return units[:num_held], units[num_held:]
