"""Where units rest, and how one reaches the device while another computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import torch

from .pinned import HostBuffer, staging_buffer
from .reader import Fill, Reader
from .units import Finish, Source, Unit

# A drive is read faster by several threads, and memory too.
_NUM_FILE_READERS = 4

CheckInterrupt = Callable[[], None]


@dataclass
class Course:
    """Which unit comes after another: units of one expert after the other, each pass over the units of one of them."""

    num_experts: int = 1
    then: int = 0
    """Whose pass is expected to come after the current one. Where another one comes, its first unit is waited for."""

    def after(self, index: int, num_units: int) -> int:
        """Return the unit after one of so many of all experts, of each the same number."""
        length = num_units // self.num_experts
        return index + 1 if (index + 1) % length else self.then * length


class Residence(Protocol):
    """Gives a unit its weights, again and again, in the order of a Course."""

    @property
    def moved_bytes(self) -> int:
        """Copied to the device so far."""

    def prefetch(self, index: int, check_interrupt: CheckInterrupt) -> None:
        """Start bringing a unit, if it is not there; `acquire` would wait for all of it."""

    def acquire(self, index: int, check_interrupt: CheckInterrupt) -> dict[str, torch.Tensor]:
        """Return the weights for the next call of unit `index`."""

    def release(self, index: int, check_interrupt: CheckInterrupt) -> None:
        """Say that the call was launched."""

    def close(self) -> None:
        """Give back all memory and end all threads."""


class Mapped:
    """For the CPU: a unit's tensors are mapped when it runs and unmapped when it has run."""

    moved_bytes = 0

    def __init__(self, units: Sequence[Unit], source: Source, finish: Finish | None = None) -> None:
        self._units = units
        self._source = source
        self._finish = finish

    def prefetch(self, index: int, check_interrupt: CheckInterrupt) -> None:
        pass

    def acquire(self, index: int, check_interrupt: CheckInterrupt) -> dict[str, torch.Tensor]:
        return map_unit(self._units[index], self._source, self._finish)

    def release(self, index: int, check_interrupt: CheckInterrupt) -> None:
        self._source.close()

    def close(self) -> None:
        self._source.close()


def map_unit(unit: Unit, source: Source, finish: Finish | None) -> dict[str, torch.Tensor]:
    """Return a unit's tensors as they are mapped from the files; copies where they have to be finished."""
    tensors = {name: source.read(spec) for name, spec in unit.specs.items()}
    if finish is not None:
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        finish(tensors)
    return tensors


class Placed:
    """The first units of a pass stay on the device; the rest comes from another residence, again and again."""

    def __init__(
        self, held: Sequence[dict[str, torch.Tensor] | None], rest: Residence | None, held_moved_bytes: int
    ) -> None:
        """Args:
        held: the tensors of each unit that stays, None for each that does not.
        rest: of the others, numbered among themselves.
        held_moved_bytes: copied to the device for those that stay.
        """
        self._held = list(held)
        # Of a unit among the others; of one that stays, the next other's.
        self._numbers = [sum(each is None for each in held[:index]) for index in range(len(held))]
        self._rest = rest
        self._held_moved_bytes = held_moved_bytes

    @property
    def moved_bytes(self) -> int:
        return self._held_moved_bytes + (self._rest.moved_bytes if self._rest else 0)

    def prefetch(self, index: int, check_interrupt: CheckInterrupt) -> None:
        if self._rest:
            self._rest.prefetch(self._numbers[index], check_interrupt)

    def acquire(self, index: int, check_interrupt: CheckInterrupt) -> dict[str, torch.Tensor]:
        held = self._held[index]
        if held is not None:
            return held
        assert self._rest is not None
        return self._rest.acquire(self._numbers[index], check_interrupt)

    def release(self, index: int, check_interrupt: CheckInterrupt) -> None:
        if self._held[index] is not None:
            self.prefetch(index, check_interrupt)
        elif self._rest:
            self._rest.release(self._numbers[index], check_interrupt)

    def close(self) -> None:
        self._held.clear()
        rest, self._rest = self._rest, None
        if rest:
            rest.close()


class Home(Protocol):
    """Where streamed units are when they are not on the device."""

    def expect(self, index: int) -> None:
        """Start making a unit ready; it is the next one to be asked for."""

    def packed(self, index: int, check_interrupt: CheckInterrupt) -> torch.Tensor:
        """Return a unit in RAM, ready to be copied."""

    def keep(self, index: int, finished: torch.Tensor) -> bool:
        """Queue on the current stream to keep a unit as it has become on the device; False where there is no place."""

    def copied(self) -> None:
        """Say that the copy of the last unit asked for is queued on the current stream."""

    def close(self) -> None:
        """Give back all memory and end all threads."""


class RamHome:
    """Units rest in RAM."""

    def __init__(self, buffers: Sequence[HostBuffer], *, keeps: bool = True) -> None:
        """Args: keeps: whether units may be replaced by what they have become: not where others read them too."""
        self._buffers = list(buffers)
        self._keeps = keeps

    def expect(self, index: int) -> None:
        pass

    def packed(self, index: int, check_interrupt: CheckInterrupt) -> torch.Tensor:
        return self._buffers[index].tensor

    def keep(self, index: int, finished: torch.Tensor) -> bool:
        if self._keeps:
            self._buffers[index].tensor[: finished.numel()].copy_(finished, non_blocking=True)
        return self._keeps

    def copied(self) -> None:
        pass

    def close(self) -> None:
        self._buffers.clear()


class _Staging:
    """RAM that a unit is read into."""

    def __init__(self, num_bytes: int, pinned_limit_bytes: int, device: torch.device) -> None:
        self.buffer = staging_buffer(num_bytes, pinned_limit_bytes)
        self.copied = getattr(torch, device.type).Event()
        self.index: int | None = None
        self.fill = Fill(())


class FileHome:
    """Units rest in their files; while one is copied from one staging buffer, threads read the next into the other."""

    def __init__(self, units: Sequence[Unit], source: Source, device: torch.device, pinned_limit_bytes: int) -> None:
        self._units = units
        self._source = source
        self._reader = Reader(source, device, _NUM_FILE_READERS)
        largest = max(unit.num_bytes for unit in units)
        self._staging = [_Staging(largest, pinned_limit_bytes, device) for _ in range(min(2, len(units)))]
        self._current = self._staging[0]

    def expect(self, index: int) -> None:
        self._start(index)

    def packed(self, index: int, check_interrupt: CheckInterrupt) -> torch.Tensor:
        self._current = self._start(index)
        try:
            self._current.fill.wait(check_interrupt)
        except BaseException:
            self._current.index = None
            raise
        return self._current.buffer.tensor

    def keep(self, index: int, finished: torch.Tensor) -> bool:
        return False

    def copied(self) -> None:
        self._current.copied.record()

    def close(self) -> None:
        self._reader.close()
        self._source.close()

    def _start(self, index: int) -> _Staging:
        """Start reading a unit, unless it is read already; returns where to."""
        for staging in self._staging:
            if staging.index == index:
                return staging
        staging = other(self._staging, self._current)
        staging.fill.cancel()
        staging.index = index
        unit = self._units[index]
        staging.fill = self._reader.start(
            [partial(self._read, staging, unit, part) for part in range(_NUM_FILE_READERS)]
        )
        return staging

    def _read(self, staging: _Staging, unit: Unit, part: int) -> None:
        # Here and not where it is started: the host goes on while the last copy from the buffer is under way.
        staging.copied.synchronize()
        self._reader.read(unit, staging.buffer.tensor, part, _NUM_FILE_READERS)


class SplitHome:
    """The first units rest in one home, the others, numbered among themselves, in another."""

    def __init__(self, first: Home, num_first: int, second: Home) -> None:
        self._homes = (first, second)
        self._num_first = num_first
        self._last = first

    def expect(self, index: int) -> None:
        home, number = self._find(index)
        home.expect(number)

    def packed(self, index: int, check_interrupt: CheckInterrupt) -> torch.Tensor:
        self._last, number = self._find(index)
        return self._last.packed(number, check_interrupt)

    def keep(self, index: int, finished: torch.Tensor) -> bool:
        home, number = self._find(index)
        return home.keep(number, finished)

    def copied(self) -> None:
        self._last.copied()

    def close(self) -> None:
        for home in self._homes:
            home.close()

    def _find(self, index: int) -> tuple[Home, int]:
        first, second = self._homes
        return (first, index) if index < self._num_first else (second, index - self._num_first)


class _Slot:
    """A buffer on the device that holds one unit at a time."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        streams = getattr(torch, device.type)
        self.buffer = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        self.index: int | None = None
        self.filled = streams.Event()
        self.used = streams.Event()


class Streamed:
    """Two buffers on the device: while one unit computes, the next is copied on a stream of its own.

    Compute stays on the current stream (see kernels/attention.py); events order copies and compute. After the
    last unit of a pass comes the first one of the next, as the course says.

    What has to be finished is so on the stream of copies when it arrives: once, where its home keeps the result.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        home: Home,
        device: torch.device,
        finish: Finish | None = None,
        course: Course | None = None,
    ) -> None:
        self.moved_bytes = 0
        self._course = course or Course()
        self._units = units
        self._home = home
        self._finish = finish
        self._kept: set[int] = set()
        self._device = device
        self._streams = getattr(torch, device.type)
        self._copies = self._streams.Stream()
        largest = max(unit.num_bytes for unit in units)
        self._slots = [_Slot(largest, device) for _ in range(min(2, len(units)))]
        for slot in self._slots:
            slot.used.record()
        self._current = self._slots[0]

    def prefetch(self, index: int, check_interrupt: CheckInterrupt) -> None:
        self._fetch(index, check_interrupt)

    def acquire(self, index: int, check_interrupt: CheckInterrupt) -> dict[str, torch.Tensor]:
        self._current = self._fetch(index, check_interrupt)
        self._current.filled.wait()
        return self._units[index].views(self._current.buffer)

    def release(self, index: int, check_interrupt: CheckInterrupt) -> None:
        self._current.used.record()
        self._fetch(self._after(index), check_interrupt)

    def close(self) -> None:
        self._home.close()
        self._streams.synchronize(self._device)

    def _after(self, index: int) -> int:
        return self._course.after(index, len(self._units))

    def _holder(self, index: int) -> _Slot | None:
        return next((slot for slot in self._slots if slot.index == index), None)

    def _fetch(self, index: int, check_interrupt: CheckInterrupt) -> _Slot:
        """Start copying a unit, unless a slot holds it already, and reading the one after it; returns the slot."""
        slot = self._holder(index)
        if slot:
            return slot
        slot = other(self._slots, self._current)
        slot.index = None
        packed = self._home.packed(index, check_interrupt)
        num_bytes = self._units[index].num_bytes
        arrived = slot.buffer[:num_bytes]
        with self._streams.stream(self._copies):
            slot.used.wait()
            arrived.copy_(packed[:num_bytes], non_blocking=True)
            if self._finish is not None and index not in self._kept:
                self._finish(self._units[index].views(arrived))
                if self._home.keep(index, arrived):
                    self._kept.add(index)
            slot.filled.record()
            self._home.copied()
        self.moved_bytes += num_bytes
        slot.index = index
        if self._holder(self._after(index)) is None:
            self._home.expect(self._after(index))
        return slot


Kind = TypeVar("Kind")


def other(pair: Sequence[Kind], one: Kind) -> Kind:
    """Return the one of two that is not `one`; of a single one, that."""
    return pair[-1] if one is pair[0] else pair[0]
