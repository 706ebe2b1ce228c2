"""Gives every unit of a model its weights, in the order of compute, for as long as the host needs them."""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..interfaces import Hooks
from ..memory.placement import Placement
from ..system import page_lock_limit
from .reader import Progress, load_to_device, load_to_ram
from .residence import Course, FileHome, Home, Mapped, Placed, RamHome, Residence, SplitHome, Streamed, map_unit
from .shared import SharedHome
from .units import Finish, Source, Unit


class WeightStreamer:
    """What all units of a model share: the residence, the interrupt check, the pace of the host.

    `check_interrupt` is asked before every unit and while one is waited for; start_pass sets it. `check_unit` is asked
    before every unit alone. `course.then` is to be set before each pass where there are several experts.
    """

    def __init__(self, residence: Residence, device: torch.device, course: Course | None = None) -> None:
        self.residence = residence
        self.course = course or Course()
        self.check_interrupt: Callable[[], None] = Hooks().check_interrupt
        self.check_unit: Callable[[], None] = Hooks().check_interrupt
        self._device = device
        self._streams: Any = getattr(torch, device.type)
        self._launched: deque[Any] = deque()
        self._on_unit: Callable[[int], None] = lambda index: None

    def start_pass(self, hooks: Hooks, units: Sequence[Unit], first: int = 0) -> None:
        """Report a pass over these units, of which the first has this number, to hooks."""
        self.check_interrupt = hooks.check_interrupt
        blocks = units[-1].block + 1

        def on_unit(index: int) -> None:
            index -= first
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


class ExpertUnits:
    """The units of one expert among those of several, as a streamer of its own."""

    def __init__(self, streamer: WeightStreamer, first: int) -> None:
        """Args: first: number of the expert's first unit."""
        self._streamer = streamer
        self._first = first

    @property
    def check_interrupt(self) -> Callable[[], None]:
        return self._streamer.check_interrupt

    @property
    def check_unit(self) -> Callable[[], None]:
        return self._streamer.check_unit

    @check_unit.setter
    def check_unit(self, check: Callable[[], None]) -> None:
        self._streamer.check_unit = check

    def start_pass(self, hooks: Hooks, units: Sequence[Unit]) -> None:
        """Report a pass over these units to hooks."""
        self._streamer.start_pass(hooks, units, self._first)

    @property
    def moved_bytes(self) -> int:
        """Copied to the device so far, of all experts; counted with the first."""
        return 0 if self._first else self._streamer.moved_bytes

    def unit(self, index: int) -> contextlib.AbstractContextManager[dict[str, torch.Tensor]]:
        return self._streamer.unit(self._first + index)

    def close(self) -> None:
        """Give back all memory, of all experts."""
        self._streamer.close()


def place_weights(
    units: Sequence[Unit],
    source: Source,
    placement: Placement,
    device: torch.device,
    hooks: Hooks,
    finish: Finish | None = None,
    shared: SharedHome | None = None,
    num_experts: int = 1,
) -> WeightStreamer:
    """Bring a model's units to where they are to rest.

    Args:
        units: in the order of compute; of several experts, those of one after those of another.
        source: where they come from; stays in use in mode disk and on a CPU.
        placement: the first `resident_blocks` blocks of each expert (in mode none: all) stay on the device, the others
            are streamed from RAM or, in mode disk, from their files. On a CPU everything is mapped from the files; in
            mode disk what is not resident is unmapped again after each use.
        device: the compute device.
        hooks: told of the progress, and asked whether to stop.
        finish: what is done to units that have arrived on the device. What rests there or in RAM is finished once, with
            no second copy of it; what comes from files or from memory of several processes, each time; on a CPU that
            needs copies of what is mapped.
        shared: memory of several processes for what rests in RAM; None is memory of its own.
        num_experts: whose units these are, of each the same number.

    Returns:
        The streamer, to be closed in the end.

    Raises:
        CheckpointError: a file could not be read.
    """
    course = Course(num_experts)
    if device.type == "cpu":
        return WeightStreamer(map_units(units, source, placement, device, hooks, finish), device, course)
    residence = load_units(units, source, placement, device, hooks, finish, shared, course)
    return WeightStreamer(residence, device, course)


def load_units(
    units: Sequence[Unit],
    source: Source,
    placement: Placement,
    device: torch.device,
    hooks: Hooks,
    finish: Finish | None = None,
    shared: SharedHome | None = None,
    course: Course | None = None,
) -> Residence:
    """Load units to the device and to RAM; see `place_weights`."""
    course, stays = course or Course(), _stays(units, placement)
    held_units, streamed = _split(units, stays)
    in_ram = _in_ram(units, placement, course)
    in_files = streamed[len(in_ram) :]
    # Of several processes some may stream less than others of what is in RAM for all of them.
    all_in_ram = in_ram if shared is None else _in_ram(units, shared.placement, course)
    limit = page_lock_limit(placement.pinned_limit_bytes)
    progress = Progress(hooks, len(held_units) + len(all_in_ram))
    held = load_to_device(held_units, source, device, limit, progress, finish)
    homes: list[Home] = []
    if all_in_ram:
        own = [not is_held for is_held in _stays(all_in_ram, placement)]
        buffers = load_to_ram(all_in_ram, source, device, limit, replace(progress, done=len(held)), shared, own)
        if in_ram:
            homes.append(RamHome(list(itertools.compress(buffers, own)), keeps=shared is None))
    if in_files:
        homes.append(FileHome(in_files, source, device, limit))
    progress.report(progress.total)
    rest: Residence | None = None
    if homes:
        home = homes[0] if len(homes) == 1 else SplitHome(homes[0], len(in_ram), homes[1])
        rest = Streamed(streamed, home, device, finish, course)
    return Placed(_spread(held, stays), rest, sum(unit.num_bytes for unit in held_units))


def map_units(
    units: Sequence[Unit],
    source: Source,
    placement: Placement,
    device: torch.device,
    hooks: Hooks,
    finish: Finish | None = None,
) -> Residence:
    """Map units from their files; in mode disk those that are not resident are mapped anew for each use."""
    stays = _stays(units, placement) if placement.mode == "disk" else [True] * len(units)
    held_units, streamed = _split(units, stays)
    progress = Progress(hooks, len(held_units))
    held = []
    for number, unit in enumerate(held_units):
        progress.report(number)
        held.append(map_unit(unit, source, finish))
    source.close()
    progress.report(progress.total)
    return Placed(_spread(held, stays), Mapped(streamed, source, finish) if streamed else None, 0)


def _stays(units: Sequence[Unit], placement: Placement) -> list[bool]:
    """Say of each unit whether it stays on the device."""
    return [placement.mode == "none" or unit.block < placement.resident_blocks for unit in units]


def _in_ram(units: Sequence[Unit], placement: Placement, course: Course) -> list[Unit]:
    """Return the units that rest in RAM: of those that are streamed, the first experts'."""
    _, streamed = _split(units, _stays(units, placement))
    return streamed[: len(streamed) * placement.experts_in_ram(course.num_experts) // course.num_experts]


def _split(units: Sequence[Unit], stays: Sequence[bool]) -> tuple[list[Unit], list[Unit]]:
    """Return the units that stay on the device, and those that are streamed."""
    pairs = list(zip(units, stays, strict=True))
    return [unit for unit, is_held in pairs if is_held], [unit for unit, is_held in pairs if not is_held]


def _spread(held: Sequence[dict[str, torch.Tensor]], stays: Sequence[bool]) -> list[dict[str, torch.Tensor] | None]:
    """Return the tensors of units that stay at the places of these among all."""
    tensors = iter(held)
    return [next(tensors) if each else None for each in stays]
