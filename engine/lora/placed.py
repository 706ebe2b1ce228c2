"""Where a stack's tensors rest, and how they reach the device beside the weights of their blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from ..checkpoints.weights import TensorSpec
from ..interfaces import Hooks
from ..memory.placement import Placement
from ..offload import OnceUnits, Source, Unit, WeightStreamer, load_tensors, make_units, place_weights
from ..sentences.loras import Loras
from .changes import Stack
from .compose import Composition, split

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class PlacedLoras:
    """A loaded stack; nothing of it is in the checkpoint's weights."""

    stack: Stack = field(default_factory=Stack)
    rank: int = 0
    """The highest of a layer's branch in a block."""
    others: Tensors = field(default_factory=dict)
    """What is in no block, by full names: to go before the checkpoint's of the same names."""
    numbers: Mapping[int, int] = field(default_factory=dict)
    """Position among the checkpoint's units -> among the stack's, of those that the stack changes."""
    streamer: WeightStreamer | None = None
    image_weights: OnceUnits | None = None
    """What a clip needs once; see wan/layout.py."""

    @contextlib.contextmanager
    def unit(self, index: int, weights: Tensors) -> Iterator[Tensors]:
        """Give the tensors of one of the checkpoint's units, and the stack's beside or instead of them."""
        number = self.numbers.get(index)
        if number is None or self.streamer is None:
            yield weights
            return
        with self.streamer.unit(number) as own:
            yield {**weights, **own}

    @property
    def moved_bytes(self) -> int:
        """Copied to the device so far, of blocks."""
        parts = (self.streamer, self.image_weights)
        return sum(part.moved_bytes for part in parts if part is not None)

    def close(self) -> None:
        """Give back all memory and end all threads."""
        for part in (self.streamer, self.image_weights):
            if part is not None:
                part.close()


def place_loras(
    stack: Stack,
    base: Sequence[TensorSpec],
    source: Source,
    units: Sequence[Unit],
    phases: Sequence[tuple[str, ...]],
    image_keys: tuple[str, ...],
    inputs: str,
    placement: Placement,
    device: torch.device,
    hooks: Hooks,
) -> PlacedLoras:
    """Bring a stack to where it is to rest: on the device for blocks that are there, else in RAM.

    Args:
        base: all parameters of the checkpoint.
        source: where the checkpoint's parameters come from.
        units: of the checkpoint, in the order of compute.
        phases, image_keys: see offload/units.py weigh.
        inputs: see Composition.
        placement: of the checkpoint's weights.

    Raises:
        CheckpointError: a file could not be read, or holds NaN or infinity.
    """
    composition = Composition(stack, base, inputs).read_from(source)
    specs = split(composition.specs)
    on_progress = hooks.on_progress
    hooks = replace(hooks, on_progress=lambda done, total, _: on_progress(done, total, Loras.LOADING()))
    others = load_tensors(specs[False], composition, device, hooks) if specs[False] else {}
    by_phase = placement.mode == "phase"
    num_layers = 1 + max(unit.block for unit in units)
    own = make_units(specs[True], num_layers, phases, by_phase)
    changed = [index for index, unit in enumerate(own) if unit.specs]
    streamer = None
    if changed:
        # What is not on the device rests in RAM: the files hold nothing as it is needed.
        placement = replace(placement, mode="block") if placement.mode == "disk" else placement
        placement = replace(placement, reads_second_expert=False)
        streamer = place_weights([own[index] for index in changed], composition, placement, device, hooks)
    numbers = {index: number for number, index in enumerate(changed)}
    of_image = make_units(specs[True], num_layers, (image_keys,), by_phase=False)
    image_weights = OnceUnits(of_image, composition, placement, device) if any(u.specs for u in of_image) else None
    return PlacedLoras(
        stack=stack,
        rank=composition.rank,
        others=others,
        numbers=numbers,
        streamer=streamer,
        image_weights=image_weights,
    )
