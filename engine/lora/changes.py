"""A LoRA as what it changes: one entry for each tensor of the model, whatever the file calls it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..checkpoints.disk import Stamp, check_unchanged
from ..checkpoints.header import Header
from ..checkpoints.weights import Weights
from ..errors import CheckpointError
from ..sentences.loras import Loras
from .report import LoraReport

# Of a strength, either way; ComfyUI's own loaders have the same. Ten times what anybody uses.
MOST_STRENGTH = 100.0
# Of a number of a LoRA, and of what it adds after its factors: the largest of FP16, in which LoRAs are published.
MOST_NUMBER = 65504.0


@dataclass(frozen=True, kw_only=True)
class Change:
    """What is to be added to one tensor of the model."""

    target: str
    """Native name of the tensor, e.g. blocks.0.self_attn.q.weight."""
    names: tuple[str, ...]
    """Of a pair (down [r, K], up [N, r]), or of a full difference alone."""
    rank: int = 0
    """Of a pair; 0 is a full difference."""
    factor: float = 1.0
    """What it is to be multiplied with beside the strength: alpha / rank."""
    replaces: bool = False
    """Whether the full tensor takes the place of the model's, at any strength but 0."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Lora:
    """A LoRA as it applies to one checkpoint. Its tensors are read when they are needed."""

    identity: Hashable
    """The same for the same content; what is loaded is compared by it."""
    title: str
    changes: tuple[Change, ...]
    tensors: Mapping[str, torch.Tensor]
    report: LoraReport
    may_distill: bool = True
    """Whether it may make of a model one of a few steps: False where its name is known and does not say so."""
    path: Path | None = None
    """Of its file, where it has one, and what that was when it was read."""
    stamp: Stamp = (0, 0)
    _digests: dict[tuple[str, ...], bytes] = field(default_factory=dict)

    @property
    def says_it_distills(self) -> bool:
        """Whether its name says that it makes of a model one of a few steps."""
        return self.may_distill and self.path is not None

    def check_unchanged(self) -> None:
        """Raise where its file is another one than was read.

        Raises:
            CheckpointError: see checkpoints/disk.py check_unchanged.
        """
        if self.path is not None:
            check_unchanged(self.path, self.stamp)

    def read(self, name: str, part: tuple[slice, ...] = ()) -> torch.Tensor:
        """Return one of its tensors in fp32 on the CPU.

        Args: part: of it.

        Raises:
            CheckpointError: it holds NaN or infinity, or numbers that no LoRA has.
        """
        values = self.tensors[name].detach()[part].to("cpu", torch.float32)
        largest = _largest(values)
        # NaN is no number that compares.
        if not largest < math.inf:
            raise CheckpointError(Loras.NO_NUMBERS(title=self.title, name=name))
        if largest > MOST_NUMBER:
            raise CheckpointError(Loras.TOO_LARGE(title=self.title, name=name, size=largest))
        return values

    def check_effect(self, values: torch.Tensor, change: Change, strength: float, reach: float = 1.0) -> None:
        """Raise where what a change makes of its numbers, by alpha, rank and strength, is none of a model.

        Args: reach: what the numbers are multiplied with at most.

        Raises:
            CheckpointError: names all three.
        """
        largest = _largest(values) * reach
        if not largest <= MOST_NUMBER:
            raise CheckpointError(
                Loras.ODD_EFFECT(
                    title=self.title, strength=strength, factor=change.factor, target=change.target, size=largest
                )
            )

    def close(self) -> None:
        """Drop the mapping of its file; `read` maps it again."""
        if isinstance(self.tensors, Weights):
            self.tensors.close()

    def digest(self, change: Change) -> bytes:
        """Return a hash of the content of a change, for an order that does not depend on names or places."""
        found = self._digests.get(change.names)
        if found is None:
            total = hashlib.blake2b(digest_size=16)
            for name in change.names:
                total.update(_raw(self.tensors[name]))
            found = self._digests[change.names] = total.digest()
        return found


@dataclass(frozen=True)
class Stack:
    """LoRAs and their strengths. The order in which they were added does not matter; the same one twice adds up."""

    entries: tuple[tuple[Lora, float], ...] = ()

    def add(self, lora: Lora, strength: float) -> Stack:
        """Return the stack with one more; what adds up to a strength of 0 is not in it.

        Raises:
            ValueError: the strength is no number that makes sense.
        """
        check_strength(strength, lora.title)
        strengths = {each.identity: (each, number) for each, number in self.entries}
        _, before = strengths.get(lora.identity, (lora, 0.0))
        strengths[lora.identity] = (lora, before + strength)
        kept = [entry for entry in strengths.values() if entry[1]]
        return Stack(tuple(sorted(kept, key=lambda entry: str(entry[0].identity))))

    def __bool__(self) -> bool:
        return bool(self.entries)

    @property
    def key(self) -> Hashable:
        """What two stacks with the same effect have in common."""
        return tuple((lora.identity, strength) for lora, strength in self.entries)

    def as_facts(self) -> list[dict[str, object]]:
        """Return the stack as the run report shows it."""
        return [{"lora": lora.title, "strength": strength, **lora.report.as_data()} for lora, strength in self.entries]


def check_strength(strength: float, title: str) -> None:
    """Raise ValueError where a strength is no number, or none that makes sense."""
    if not abs(strength) <= MOST_STRENGTH:
        raise ValueError(Loras.ODD_STRENGTH(title=title, strength=strength, most=MOST_STRENGTH))


def _largest(values: torch.Tensor) -> float:
    """Return the largest absolute value; NaN where there is one."""
    if not values.numel():
        return 0.0
    low, high = (float(each) for each in torch.aminmax(values))
    return max(-low, high) if low == low else low


def fits(change: Change, shapes: Iterable[tuple[int, ...]], model: Header) -> bool:
    """Say whether tensors of these shapes can be added to the model's.

    Args: shapes: of a pair's down and up, or of the full difference.
    """
    wanted = model[change.target].shape
    if change.rank:
        down, up = shapes
        return (up[0], math.prod(down[1:])) == (wanted[0], math.prod(wanted[1:])) and len(wanted) > 1
    (full,) = shapes
    return [size for size in full if size > 1] == [size for size in wanted if size > 1]


def _raw(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().flatten()
    return flat.view(torch.uint8).numpy().data
