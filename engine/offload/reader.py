"""Brings tensors from their files to buffers in RAM or on the device, on several threads.

What is stored as it is needed is read straight from the file into its place, without a mapping; the rest goes through
`Source.read`, a piece at a time. Reads, conversions and page-locking all run without Python's lock.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from ..checkpoints.content import SMALL_BYTES, Look, Samples, look_together
from ..checkpoints.disk import unreadable
from ..checkpoints.weights import FileRange, TensorSpec
from ..errors import CheckpointError
from ..interfaces import Hooks
from ..sentences.kernels import Running
from .pinned import HostBuffer, locked_bytes, staging_buffer
from .shared import SharedHome
from .units import Finish, Source, Unit

logger = logging.getLogger(__name__)

# A stop is heard between two pieces.
_PIECE_BYTES = 16 * 2**20
_NUM_THREADS = 8
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Piece:
    """A part of a unit that is brought in one go."""

    spec: TensorSpec
    offset: int
    """Where it begins in the unit's buffer."""
    num_bytes: int
    place: FileRange | slice
    """Where it lies in a file; or which elements of the tensor it is, where they must be converted."""
    start: int = 0
    """Where it begins in its tensor."""
    together: tuple[tuple[Look, int, int], ...] = ()
    """Of small tensors that are brought together: each, where it begins in the piece, and its bytes."""

    samples: Samples = field(default_factory=Samples, compare=False)
    """Of the large pieces that are brought with it, which are looked at when all are there."""

    def write(self, source: Source, memory: torch.Tensor, home: torch.Tensor | None = None) -> None:
        """Write the piece to CPU memory uint8 [num_bytes], and look at it; where it is large, with the samples.

        Args: home: where it goes from there; None where it stays.
        """
        if isinstance(self.place, FileRange):
            _read_file(self.place, memory)
            if self.together:
                look_together(self.together, memory)
            elif self.place.look is not None:
                self.samples.add(self.place.look, memory if home is None else home, self.start, self.place.offset)
        else:
            memory.view(self.spec.dtype).copy_(source.read(self.spec, self.place))


class Fill:
    """Memory that is being written by a reader."""

    def __init__(self, parts: Sequence[futures.Future[None]]) -> None:
        self._parts = parts

    def wait(self, check_interrupt: Callable[[], None]) -> None:
        """Wait until it is written, asking ten times a second whether to stop; raises what a thread raised."""
        pending = set(self._parts)
        while pending:
            done, pending = futures.wait(pending, _POLL_SECONDS, futures.FIRST_EXCEPTION)
            for part in done:
                part.result()
            if pending:
                check_interrupt()

    def cancel(self) -> None:
        """Return when no thread writes any more."""
        for part in self._parts:
            part.cancel()
        futures.wait(self._parts)


class Reader:
    """Threads that read from a source. `close` ends them; each finishes the piece it is at."""

    def __init__(self, source: Source, device: torch.device, num_threads: int = _NUM_THREADS) -> None:
        self._source = source
        self._is_closed = threading.Event()
        enter = partial(torch.cuda.set_device, device) if device.type == "cuda" else None
        self._pool = futures.ThreadPoolExecutor(num_threads, "lightx2v-reader", enter)

    def start(self, jobs: Sequence[Callable[[], None]]) -> Fill:
        """Run jobs on the threads."""
        return Fill([self._pool.submit(_run, job) for job in jobs])

    def read(self, unit: Unit, memory: torch.Tensor, part: int = 0, num_parts: int = 1) -> None:
        """Write every num_parts-th piece of a unit to its CPU memory. For jobs."""
        for piece in self.pieces(unit, part, num_parts):
            piece.write(self._source, memory[piece.offset : piece.offset + piece.num_bytes])

    def pieces(self, unit: Unit, part: int = 0, num_parts: int = 1) -> Iterator[Piece]:
        """Yield every num_parts-th piece of a unit until the reader is closed, and look at what was read. For jobs."""
        samples = Samples()
        for piece in _cut(unit, self._source, samples)[part::num_parts]:
            if self._is_closed.is_set():
                raise futures.CancelledError
            yield piece
        samples.look()
        self._source.close()

    def close(self) -> None:
        self._is_closed.set()
        self._pool.shutdown(wait=True, cancel_futures=True)


class _Ring:
    """Page-locked chunks through which pieces travel to the device on a stream of their own."""

    def __init__(self, device: torch.device, pinned_limit_bytes: int) -> None:
        self._device = device
        self._streams: Any = getattr(torch, device.type)
        self._stream: Any = self._streams.Stream()
        # The memory that is written may have been given back by kernels that still run.
        self._stream.wait_stream(self._streams.current_stream())
        self._free: queue.SimpleQueue[tuple[HostBuffer, Any]] = queue.SimpleQueue()
        # Two a thread: one is read into while the other is copied.
        for _ in range(2 * _NUM_THREADS):
            self._free.put((staging_buffer(_PIECE_BYTES, pinned_limit_bytes), self._streams.Event()))

    def send(self, reader: Reader, source: Source, unit: Unit, target: torch.Tensor, part: int, num_parts: int) -> None:
        """Bring every num_parts-th piece of a unit to its device memory. A job for a reader."""
        # Samples are looked at on the device, behind the copies.
        with self._streams.stream(self._stream):
            for piece in reader.pieces(unit, part, num_parts):
                memory = target[piece.offset : piece.offset + piece.num_bytes]
                chunk, copied = self._free.get()
                try:
                    copied.synchronize()
                    piece.write(source, chunk.tensor[: piece.num_bytes], memory)
                    memory.copy_(chunk.tensor[: piece.num_bytes], non_blocking=True)
                    copied.record()
                finally:
                    self._free.put((chunk, copied))

    def finish(self) -> None:
        """Wait for the last copy."""
        self._streams.synchronize(self._device)


@dataclass(frozen=True)
class Progress:
    """Reports loaded units, of which `done` were loaded before."""

    hooks: Hooks
    total: int
    done: int = 0

    def wait(self, fills: Sequence[Fill]) -> None:
        """Wait for one fill a unit."""
        for number, fill in enumerate(fills):
            self.report(number)
            fill.wait(self.hooks.check_interrupt)

    def report(self, number: int) -> None:
        """Say how many of the units are loaded, after asking whether to stop."""
        self.hooks.check_interrupt()
        self.hooks.on_progress(self.done + number, self.total, Running.LOADING_TRANSFORMER())


def load_to_device(
    units: Sequence[Unit],
    source: Source,
    device: torch.device,
    pinned_limit_bytes: int,
    progress: Progress,
    finish: Finish | None = None,
) -> list[dict[str, torch.Tensor]]:
    """Return the tensors of units on the device, by name within the block; RAM is needed for a few pieces only."""
    if not units:
        return []
    buffers = [torch.empty(unit.num_bytes, dtype=torch.uint8, device=device) for unit in units]
    ring = _Ring(device, pinned_limit_bytes)
    num_parts = max(1, _NUM_THREADS // len(units))
    with closing(Reader(source, device)) as reader:
        progress.wait(
            [
                reader.start(
                    [partial(ring.send, reader, source, unit, buffer, part, num_parts) for part in range(num_parts)]
                )
                for unit, buffer in zip(units, buffers, strict=True)
            ]
        )
    ring.finish()
    loaded = [unit.views(buffer) for unit, buffer in zip(units, buffers, strict=True)]
    if finish is not None:
        for tensors in loaded:
            finish(tensors)
    return loaded


def load_to_ram(
    units: Sequence[Unit],
    source: Source,
    device: torch.device,
    pinned_limit_bytes: int,
    progress: Progress,
    shared: SharedHome | None = None,
    own: Sequence[bool] = (),
) -> list[HostBuffer]:
    """Return units in RAM, one buffer each, the first ones page-locked up to the limit.

    Args:
        shared: memory of several processes, each of which reads some of the units; None is memory of its own.
        own: of that memory, which units this process is going to use; the others are not locked.
    """
    sizes = [unit.num_bytes for unit in units]
    buffers = shared.buffers(sizes) if shared else [HostBuffer(size) for size in sizes]
    room = pinned_limit_bytes - locked_bytes()
    fills, to_lock = [], []
    with closing(Reader(source, device)) as reader:
        for index, (unit, buffer) in enumerate(zip(units, buffers, strict=True)):
            if shared is None or own[index]:
                room -= buffer.num_bytes
                to_lock += [buffer] if room >= 0 else []
            if shared is None or shared.is_mine(index):
                fills.append(
                    reader.start([partial(_read_and_lock, reader, unit, buffer, shared is None and room >= 0)])
                )
        if shared is None:
            progress.wait(fills)
        else:
            # Nothing is locked before all of it is written, by whomever: see HostBuffer.lock.
            with shared.meeting():
                progress.wait(fills)
            for buffer in to_lock:
                buffer.lock()
    num_locked = sum(buffer.is_locked for buffer in buffers)
    if num_locked < len(buffers):
        logger.info("LightX2V: %s", Running.PARTS_PAGE_LOCKED(num_locked=num_locked, num_buffers=len(buffers)))
    return buffers


def load_tensors(
    specs: Sequence[TensorSpec], source: Source, device: torch.device, hooks: Hooks
) -> dict[str, torch.Tensor]:
    """Return tensors on the device by their full names; on a CPU mapped where nothing has to change.

    For what is no block: it stays on the device in every mode.
    """
    if device.type == "cpu":
        tensors = {spec.name: source.read(spec) for spec in specs}
        source.close()
        return tensors
    (tensors,) = load_to_device([Unit("", specs)], source, device, 0, Progress(hooks, 1))
    return tensors


def _read_and_lock(reader: Reader, unit: Unit, buffer: HostBuffer, is_to_lock: bool) -> None:
    reader.read(unit, buffer.tensor)
    if is_to_lock:
        buffer.lock()


def _run(job: Callable[[], None]) -> None:
    # A thread starts outside of ComfyUI's inference mode, where tensors made in it cannot be written.
    with torch.inference_mode():
        job()


def _cut(unit: Unit, source: Source, samples: Samples) -> list[Piece]:
    """Return a unit's tensors, large ones in several pieces, small ones that lie one after the other in one."""
    pieces: list[Piece] = []
    for name, spec in unit.specs.items():
        place, width = source.location(spec), spec.dtype.itemsize
        for offset in range(0, spec.num_bytes, _PIECE_BYTES):
            size = min(_PIECE_BYTES, spec.num_bytes - offset)
            part: FileRange | slice = slice(offset // width, (offset + size) // width)
            if place is not None:
                part = place.part(offset, size)
            piece = Piece(spec, unit.offsets[name] + offset, size, part, offset, samples=samples)
            joined = _joined(pieces[-1], piece) if pieces else None
            if joined is None:
                pieces.append(_with_look(piece))
            else:
                pieces[-1] = joined
    return pieces


def _with_look(piece: Piece) -> Piece:
    """Return a piece as one of which further small tensors may be brought; others as they are."""
    place = piece.place
    if not isinstance(place, FileRange) or place.look is None or piece.start or piece.num_bytes > SMALL_BYTES:
        return piece
    return replace(piece, together=((place.look, 0, piece.num_bytes),))


def _joined(first: Piece, second: Piece) -> Piece | None:
    """Return two pieces of small tensors as one, where they follow each other in file and unit."""
    second = _with_look(second)
    size = first.num_bytes + second.num_bytes
    if not (first.together and second.together) or first.spec.dtype != second.spec.dtype or size > _PIECE_BYTES:
        return None
    one, other = first.place, second.place
    assert isinstance(one, FileRange) and isinstance(other, FileRange)
    follows_in_file = one.path == other.path and one.offset + one.num_bytes == other.offset
    if not follows_in_file or first.offset + first.num_bytes != second.offset:
        return None
    (look, _, num_bytes), *_ = second.together
    together = (*first.together, (look, first.num_bytes, num_bytes))
    return replace(first, num_bytes=size, place=replace(one, num_bytes=size), together=together)


def _read_file(place: FileRange, memory: torch.Tensor) -> None:
    """Read a stretch of a file into memory uint8 [num_bytes]; on a handle of its own, as threads share no position."""
    rest = memory.numpy().data
    try:
        with place.path.open("rb", buffering=0) as file:
            file.seek(place.offset)
            while rest:
                count = file.readinto(rest)
                if not count:
                    raise CheckpointError(
                        Running.CUT_SHORT(path=place.path, end=file.tell(), place=place.offset + place.num_bytes)
                    )
                rest = rest[count:]
    except OSError as error:
        raise unreadable(place.path, error) from error
