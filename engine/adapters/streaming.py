"""Where a model's weights rest, and how they reach the device in time. Shared by the engines.

A unit is a part of a model whose weights travel together: a block, or a third of one. Generic: knows tensors
and byte buffers, neither Wan nor modules.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..interfaces import Hooks

logger = logging.getLogger(__name__)

# Start of every tensor in a unit's buffer: what CUDA's allocator gives, so that kernels are chosen alike.
_ALIGNMENT = 512


@dataclass(frozen=True)
class TensorSpec:
    """A parameter to be: its path in the model, and dtype and shape on the compute device."""

    name: str
    dtype: torch.dtype
    shape: torch.Size

    @property
    def num_bytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


class Source(Protocol):
    """Where the weights come from."""

    def read(self, spec: TensorSpec) -> torch.Tensor:
        """Return a parameter on the CPU, in its final dtype; mapped from the file where nothing had to change."""

    def close(self) -> None:
        """Drop the mappings that no tensor uses any more; `read` maps again."""


class Unit:
    """The weights of one module, and their places in one flat buffer."""

    def __init__(self, path: str, specs: Sequence[TensorSpec]) -> None:
        self.path = path
        self.specs = {spec.name.removeprefix(f"{path}."): spec for spec in specs}
        self._offsets: dict[str, int] = {}
        self.num_bytes = 0
        for name, spec in self.specs.items():
            self._offsets[name] = self.num_bytes
            self.num_bytes += _round_up(spec.num_bytes, _ALIGNMENT)

    def views(self, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the unit's tensors, by name within the module, as parts of a buffer uint8 [num_bytes or more]."""
        return {
            name: buffer[offset : offset + spec.num_bytes].view(spec.dtype).view(spec.shape)
            for (name, spec), offset in zip(self.specs.items(), self._offsets.values(), strict=True)
        }

    def pack(self, buffer: torch.Tensor, source: Source) -> None:
        """Read all tensors into a CPU buffer."""
        for name, view in self.views(buffer).items():
            view.copy_(source.read(self.specs[name]))
        source.close()


class Residence(Protocol):
    """Gives a unit its weights, in the order of the units, again and again."""

    moved_bytes: int
    """Copied to the device so far."""

    def acquire(self, index: int) -> dict[str, torch.Tensor]:
        """Return the weights for the next call of unit `index`; empty where the module holds them itself."""

    def release(self, index: int) -> None:
        """Say that the call was launched."""

    def close(self) -> None:
        """Give back all memory."""


class Conveyor:
    """What all units of a model share: the residence, the interrupt check, the pace of the host."""

    def __init__(self, residence: Residence, device: torch.device) -> None:
        self.residence = residence
        self.check_interrupt: Callable[[], None] = Hooks().check_interrupt
        self._device = device
        self._streams: Any = getattr(torch, device.type)
        self._launched: deque[Any] = deque()

    @contextlib.contextmanager
    def unit(self, index: int) -> Iterator[dict[str, torch.Tensor]]:
        """Give a unit its weights while the block of the `with` launches its compute, after asking whether to stop."""
        self.check_interrupt()
        yield self.residence.acquire(index)
        self.residence.release(index)
        self.keep_pace()

    def keep_pace(self) -> None:
        """Wait until at most one unit is waiting on the GPU, so that Cancel stops within a block."""
        if self._device.type != "cuda":
            return
        event: Any = self._streams.Event()
        event.record()
        self._launched.append(event)
        if len(self._launched) > 1:
            self._launched.popleft().synchronize()


class Resident:
    """All weights are in the modules, on the compute device (on a CPU: mapped from the file)."""

    moved_bytes = 0

    def acquire(self, index: int) -> dict[str, torch.Tensor]:
        return {}

    def release(self, index: int) -> None:
        pass

    def close(self) -> None:
        pass


class Mapped:
    """For the CPU: a unit's tensors are mapped when it runs and unmapped when it has run."""

    moved_bytes = 0

    def __init__(self, units: Sequence[Unit], source: Source) -> None:
        self._units = units
        self._source = source

    def acquire(self, index: int) -> dict[str, torch.Tensor]:
        return {name: self._source.read(spec) for name, spec in self._units[index].specs.items()}

    def release(self, index: int) -> None:
        self._source.close()

    def close(self) -> None:
        self._source.close()


class HostBuffer:
    """RAM of an exact size that can be page-locked; unlocked and given back when dropped.

    torch's own pinned memory is rounded up to a power of two.
    """

    def __init__(self, num_bytes: int) -> None:
        size = _round_up(num_bytes, mmap.PAGESIZE)
        memory = torch.empty(size + mmap.PAGESIZE, dtype=torch.uint8)
        start = -memory.data_ptr() % mmap.PAGESIZE
        # Whole pages of its own: a page cannot be locked twice. By way of numpy, so that the tensor's storage
        # begins there too, which is where torch looks to tell pinned memory.
        self.tensor = torch.from_numpy(memory.numpy()[start : start + size])

    def lock(self) -> bool:
        """Page-lock the memory, so that copies from it run beside compute; False where the system refuses."""
        is_locked = _lock_pages(self.tensor)
        if is_locked:
            weakref.finalize(self, _unlock_pages, self.tensor).atexit = False
        return is_locked


class RamHome:
    """Weights rest in RAM, one buffer a unit, page-locked up to a limit."""

    def __init__(self, units: Sequence[Unit], source: Source, pinned_limit_bytes: int | None, hooks: Hooks) -> None:
        self._buffers: list[HostBuffer] = []
        locked_bytes = 0
        for number, unit in enumerate(units):
            report_load(hooks, number, len(units))
            buffer = HostBuffer(unit.num_bytes)
            unit.pack(buffer.tensor, source)
            if pinned_limit_bytes is None or locked_bytes + unit.num_bytes <= pinned_limit_bytes:
                locked_bytes += unit.num_bytes if buffer.lock() else 0
            self._buffers.append(buffer)
        total = sum(unit.num_bytes for unit in units)
        if locked_bytes < total:
            logger.info("LightX2V: %d of %d MiB are page-locked.", locked_bytes // 2**20, total // 2**20)

    def packed(self, index: int, slot: int) -> torch.Tensor:
        """Return the host buffer of a unit, ready to be copied."""
        return self._buffers[index].tensor


class FileHome:
    """Weights rest in their files; a unit is read into one of two pinned buffers when it is needed."""

    def __init__(self, units: Sequence[Unit], source: Source) -> None:
        self._units = units
        self._source = source
        largest = max(unit.num_bytes for unit in units)
        self._staging = [HostBuffer(largest) for _ in range(2)]
        for buffer in self._staging:
            buffer.lock()

    def packed(self, index: int, slot: int) -> torch.Tensor:
        """Return the staging buffer of a slot, filled with a unit. The slot's last copy must be over."""
        self._units[index].pack(self._staging[slot].tensor, self._source)
        return self._staging[slot].tensor


class _Slot:
    """A buffer on the device that holds one unit at a time."""

    def __init__(self, number: int, num_bytes: int, device: torch.device) -> None:
        streams = getattr(torch, device.type)
        self.number = number
        self.buffer = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        self.index: int | None = None
        self.filled = streams.Event()
        self.used = streams.Event()


class Streamed:
    """Two buffers on the device: while one unit computes, the next is copied on a stream of its own.

    Compute stays on the current stream (see kernels/attention.py); events order copies and compute. After the
    last unit comes the first one again, for the next step.
    """

    def __init__(self, units: Sequence[Unit], home: RamHome | FileHome, device: torch.device) -> None:
        self.moved_bytes = 0
        self._units = units
        self._home = home
        self._device = device
        self._streams = getattr(torch, device.type)
        self._copies = self._streams.Stream()
        largest = max(unit.num_bytes for unit in units)
        self._slots = [_Slot(number, largest, device) for number in range(2)]
        for slot in self._slots:
            slot.used.record()
        self._current = self._slots[0]

    def acquire(self, index: int) -> dict[str, torch.Tensor]:
        self._current = self._fetch(index)
        self._current.filled.wait()
        return self._units[index].views(self._current.buffer)

    def release(self, index: int) -> None:
        self._current.used.record()
        self._fetch((index + 1) % len(self._units))

    def close(self) -> None:
        self._streams.synchronize(self._device)
        self._slots.clear()

    def _fetch(self, index: int) -> _Slot:
        """Start copying a unit, unless a slot holds it already; returns the slot."""
        for slot in self._slots:
            if slot.index == index:
                return slot
        slot = next(slot for slot in self._slots if slot is not self._current)
        slot.index = None
        slot.filled.synchronize()  # a staging buffer may be filled again once its last copy is over
        packed = self._home.packed(index, slot.number)
        num_bytes = self._units[index].num_bytes
        with self._streams.stream(self._copies):
            slot.used.wait()
            slot.buffer[:num_bytes].copy_(packed[:num_bytes], non_blocking=True)
            slot.filled.record()
        self.moved_bytes += num_bytes
        slot.index = index
        return slot


def report_load(hooks: Hooks, done: int, total: int) -> None:
    """Say how many of the units are loaded, after asking whether to stop."""
    hooks.check_interrupt()
    hooks.on_progress(done, total, "loading the transformer")


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _lock_pages(memory: torch.Tensor) -> bool:
    """Page-lock CPU memory for CUDA copies; False where the system refuses."""
    if not torch.cuda.is_available():
        return False
    cuda: Any = torch.cuda
    status = int(cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), 0))
    if status == 0:
        return True
    # The refusal stays behind as CUDA's last error, and the next kernel launch would report it as its own.
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda").add_(1)
    logger.warning("LightX2V: %d bytes of RAM could not be page-locked (CUDA error %d).", memory.numel(), status)
    return False


def _unlock_pages(memory: torch.Tensor) -> None:
    cuda: Any = torch.cuda
    cuda.synchronize()
    cuda.cudart().cudaHostUnregister(memory.data_ptr())
