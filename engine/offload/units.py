"""What travels: tensors, and the units in which they do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from ..checkpoints.weights import FileRange, TensorSpec
from ..memory.rounding import round_up
from ..memory.weights import WeightSizes

Finish = Callable[[Mapping[str, torch.Tensor]], None]
"""Makes of a unit's tensors, by name within the block, what is computed with: in their memory on the device, on the
current stream."""


class Source(Protocol):
    """Where the weights come from. Threads call it side by side."""

    def read(self, spec: TensorSpec, elements: slice | None = None) -> torch.Tensor:
        """Return a parameter on the CPU, in its final dtype; mapped from the file where nothing had to change.

        Args:
            elements: those of the flattened parameter to return, flat, in the dtype of the file; None is all of it.
        """

    def location(self, spec: TensorSpec) -> FileRange | None:
        """Return where in a file the parameter's bytes lie as they are needed; None where `read` changes them."""

    def close(self) -> None:
        """Drop the mappings that no tensor uses any more; `read` maps again."""


class Joined:
    """Several sources as one: names of parameters begin with their source's, e.g. `low.blocks.0.ffn.0.weight`."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = sources

    def read(self, spec: TensorSpec, elements: slice | None = None) -> torch.Tensor:
        source, own = self._find(spec)
        return source.read(own, elements)

    def location(self, spec: TensorSpec) -> FileRange | None:
        source, own = self._find(spec)
        return source.location(own)

    def close(self) -> None:
        for source in self._sources.values():
            source.close()

    def _find(self, spec: TensorSpec) -> tuple[Source, TensorSpec]:
        name, _, own = spec.name.partition(".")
        return self._sources[name], replace(spec, name=own)


class Unit:
    """Weights that travel together, a block or a phase of one, and their places in one flat buffer."""

    def __init__(self, path: str, specs: Sequence[TensorSpec], block: int = 0, phases: tuple[int, ...] = ()) -> None:
        """Args: path: what the names of all specs begin with; phases: the phases of the block that it serves."""
        self.path = path
        self.block = block
        self.phases = phases
        self.specs = {spec.name.removeprefix(f"{path}."): spec for spec in specs}
        self.offsets: dict[str, int] = {}
        self.num_bytes = 0
        for name, spec in self.specs.items():
            self.offsets[name] = self.num_bytes
            self.num_bytes += round_up(spec.num_bytes)

    def views(self, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the unit's tensors, by name within the block, as parts of a buffer uint8 [num_bytes or more]."""
        return {
            name: buffer[offset : offset + spec.num_bytes].view(spec.dtype).view(spec.shape)
            for (name, spec), offset in zip(self.specs.items(), self.offsets.values(), strict=True)
        }


def weigh(
    specs: Sequence[TensorSpec],
    phases: Sequence[tuple[str, ...]],
    image_keys: tuple[str, ...],
    loras: Sequence[TensorSpec] = (),
) -> WeightSizes:
    """Return the bytes of `make_units` of the same specs, and of what is in no block; those of LoRAs are in both.

    Args:
        phases: see make_units.
        image_keys: starts of the names of what a clip needs once of a block; see wan/layout.py.
    """
    by_phase: dict[tuple[str, int], int] = defaultdict(int)
    blocks: dict[str, int] = defaultdict(int)
    lora_blocks: dict[str, int] = defaultdict(int)
    image_blocks: dict[str, int] = defaultdict(int)
    others = 0
    for number, spec in enumerate((*specs, *loras)):
        folder, _, rest = spec.name.partition(".")
        index, _, name = rest.partition(".")
        if folder != "blocks":
            others += spec.num_bytes
            continue
        phase = next((number for number, starts in enumerate(phases) if name.startswith(starts)), None)
        if phase is not None:
            by_phase[index, phase] += round_up(spec.num_bytes)
            blocks[index] += round_up(spec.num_bytes)
            if number >= len(specs):
                lora_blocks[index] += round_up(spec.num_bytes)
        elif name.startswith(image_keys):
            image_blocks[index] += round_up(spec.num_bytes)
    return WeightSizes(
        block=max(blocks.values()),
        phase=max(by_phase.values()),
        num_blocks=len(blocks),
        others=others,
        lora_block=max(lora_blocks.values(), default=0),
        image_block=max(image_blocks.values(), default=0),
    )


def make_units(
    specs: Sequence[TensorSpec],
    num_layers: int,
    phases: Sequence[tuple[str, ...]],
    by_phase: bool,
    source: str = "",
) -> list[Unit]:
    """Return the units of `blocks.<i>.` in the order of compute: one a block, or one a phase.

    Args:
        phases: of a block, in the order of compute, each by the starts of its tensors' names under `blocks.<i>.`. What
            is in none of them is in no unit.
        source: of these parameters among several, see Joined; their names do not have it yet.
    """
    root = f"{source}." if source else ""
    named = [replace(spec, name=f"{root}{spec.name}") for spec in specs] if root else specs
    parts: list[tuple[tuple[str, ...], tuple[int, ...]]] = [(starts, (i,)) for i, starts in enumerate(phases)]
    if not by_phase:
        parts = [(tuple(start for starts in phases for start in starts), tuple(range(len(phases))))]
    units = []
    for index in range(num_layers):
        path = f"{root}blocks.{index}"
        for starts, numbers in parts:
            prefixes = tuple(f"{path}.{start}" for start in starts)
            units.append(Unit(path, [spec for spec in named if spec.name.startswith(prefixes)], index, numbers))
    return units
