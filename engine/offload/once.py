"""Units of which a clip needs each once: they rest in their files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch

from ..interfaces import Hooks
from ..memory.placement import Placement
from .streamer import WeightStreamer, place_weights
from .units import Finish, Source, Unit


class OnceUnits:
    """One unit a block, in the order of compute. Nothing of them is in memory before the first and after the last."""

    def __init__(
        self,
        units: Sequence[Unit],
        source: Source,
        placement: Placement,
        device: torch.device,
        finish: Finish | None = None,
    ) -> None:
        """Args:
        units: of some blocks, or of all.
        placement: of the other weights, for how much RAM may be page-locked.
        source, device, finish: see place_weights.
        """
        self._units = [unit for unit in units if unit.specs]
        self._numbers = {unit.block: number for number, unit in enumerate(self._units)}
        self._source = source
        self._placement = Placement(mode="disk", pinned_limit_bytes=placement.pinned_limit_bytes)
        self._device = device
        self._finish = finish
        self._streamer: WeightStreamer | None = None
        self._moved_bytes = 0

    @property
    def moved_bytes(self) -> int:
        """Copied to the device so far."""
        return self._moved_bytes + (self._streamer.moved_bytes if self._streamer else 0)

    @contextlib.contextmanager
    def block(self, index: int, check_interrupt: Callable[[], None]) -> Iterator[dict[str, torch.Tensor]]:
        """Give a block's tensors, by name within the block; while it is in use the next one is brought."""
        number = self._numbers.get(index)
        if number is None:
            yield {}
            return
        if self._streamer is None:
            # Threads write what they read to memory that is made here.
            with torch.inference_mode(False):
                self._streamer = place_weights(
                    self._units, self._source, self._placement, self._device, Hooks(), self._finish
                )
        self._streamer.check_interrupt = check_interrupt
        with self._streamer.unit(number) as tensors:
            yield tensors
        if number == len(self._units) - 1:
            self.close()

    def close(self) -> None:
        """Give back all memory and end all threads; `block` begins again."""
        self._moved_bytes = self.moved_bytes
        streamer, self._streamer = self._streamer, None
        if streamer is not None:
            streamer.close()
