"""What travels: tensors, and the units in which they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ..checkpoints.weights import FileRange

# Start of every tensor in a unit's buffer: what CUDA's allocator gives, so that kernels are chosen alike.
ALIGNMENT = 512
# Tensors of a block that a phase uses, by the start of their native names under `blocks.<i>.`; in the order of compute.
PHASES = (("modulation", "self_attn."), ("norm3.", "cross_attn."), ("ffn.",))


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
            self.num_bytes += round_up(spec.num_bytes, ALIGNMENT)

    def views(self, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the unit's tensors, by name within the block, as parts of a buffer uint8 [num_bytes or more]."""
        return {
            name: buffer[offset : offset + spec.num_bytes].view(spec.dtype).view(spec.shape)
            for (name, spec), offset in zip(self.specs.items(), self.offsets.values(), strict=True)
        }


def make_units(specs: Sequence[TensorSpec], num_layers: int, by_phase: bool) -> list[Unit]:
    """Return the units of `blocks.<i>.` in the order of compute: one a block, or one a phase."""
    parts: list[tuple[tuple[str, ...], tuple[int, ...]]] = [(("",), tuple(range(len(PHASES))))]
    if by_phase:
        parts = [(starts, (number,)) for number, starts in enumerate(PHASES)]
    units = []
    for index in range(num_layers):
        path = f"blocks.{index}"
        for starts, phases in parts:
            prefixes = tuple(f"{path}.{start}" for start in starts)
            units.append(Unit(path, [spec for spec in specs if spec.name.startswith(prefixes)], index, phases))
    return units


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
