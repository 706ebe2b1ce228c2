"""A group of GPUs as one Transformer; the sampler loop, noise, preview and report stay where they are."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any

import torch

from ..backends.choose import Backends
from ..checkpoints.transformers import TransformerFiles
from ..interfaces import Conditioning, Hooks
from ..lora.changes import Stack
from ..lora.experts import loras_of_experts
from ..memory.placement import Placement
from ..sentences.gpus import Gpus
from .channel import Region
from .group import Members, WorkerGroup, group_of

_numbers = itertools.count()


class GroupTransformer:
    """The denoiser, whose blocks are computed by several processes; see interfaces.Transformer.

    Latents are expected on the CPU, where the arithmetic between two passes gives the bits that a GPU's gives.
    """

    def __init__(
        self, files: TransformerFiles, backends: Backends, placements: Sequence[Placement], members: Members
    ) -> None:
        """Args:
        backends: confirmed on this process's device; every rank computes with them.
        placements: of the weights on each card, of one mode.
        members: which cards.
        """
        self._files, self._backends = files, backends
        self.placements = tuple(placements)
        self._members = members
        self._number = next(_numbers)
        self._group: WorkerGroup | None = None
        self._weight_bytes = files.total_bytes
        self._loras = [Stack() for _ in files.experts]
        self._answers: list[dict[str, Any]] = []
        self._conditioning: weakref.ref[Conditioning] | None = None
        """What the ranks have of this transformer's."""
        self._memory: list[torch.Tensor] | None = None
        """For latents and flow, which the ranks have too."""

    @property
    def euler_dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def moved_bytes(self) -> int:
        """Of the rank that was told to move most."""
        return max((answer["moved_bytes"] for answer in self._answers), default=0)

    def load(self, hooks: Hooks) -> None:
        if self._is_loaded:
            return
        self._forget()
        group = self._group = group_of(self._members, hooks)
        # Weights that rest in RAM are there once for all ranks.
        is_shared = self._least.mode in ("block", "phase") and self._members.device == "cuda"
        regions = [Region.new()] if is_shared else []
        value = (self._number, self._files, self._backends, self.placements, self._least)
        try:
            answers = group.ask(Gpus.LOADING_TRANSFORMER(), "load", value, regions, hooks=hooks)
        except BaseException:
            self._group = None
            if group.is_alive():
                group.tell("unload", self._number)
            raise
        self._weight_bytes = answers[0]

    def use_loras(self, stack: Stack, hooks: Hooks, expert: int = 0) -> None:
        group = self._running
        if stack.key == self._loras[expert].key:
            return
        self._loras[expert] = Stack()
        group.ask(Gpus.LOADING_LORAS(), "loras", (self._number, stack, expert), hooks=hooks)
        self._loras[expert] = stack

    def unload(self) -> None:
        group = self._group
        self._forget()
        if group is not None and group.is_alive():
            group.tell("unload", self._number)

    def release_workspace(self) -> None:
        self._conditioning = self._memory = None
        if self._is_loaded:
            self._running.tell("release", self._number)

    def predict_flow(
        self,
        latents: torch.Tensor,
        timestep: float,
        conditioning: Conditioning,
        hooks: Hooks,
        expert: int = 0,
        then: int = 0,
    ) -> torch.Tensor:
        group = self._running
        if self._conditioning is None or self._conditioning() is not conditioning:
            group.ask(Gpus.SAMPLING(), "conditioning", (self._number, conditioning), hooks=hooks)
            self._conditioning = weakref.ref(conditioning)
        mine, flow = self._memory_of(tuple(latents.shape), hooks)
        mine.copy_(latents)
        self._answers = group.ask(Gpus.SAMPLING(), "predict", (self._number, timestep, expert, then), hooks=hooks)
        return flow.to(latents.device, copy=True)

    def describe(self) -> dict[str, Any]:
        names = self._members.names
        ranks = [
            {
                "device": name,
                "resident_blocks": placement.resident_blocks,
                **{key: value for key, value in answer.items() if key != "moved_bytes"},
            }
            for name, placement, answer in zip(names, self.placements, self._answers, strict=False)
        ]
        return {
            **self._backends.as_facts(),
            "offload": self._least.mode,
            "resident_blocks": self._least.resident_blocks,
            "weight_bytes": self._weight_bytes,
            "moved_bytes": self.moved_bytes,
            "device": ", ".join(names),
            "loras": loras_of_experts(self._files.names, [stack.as_facts() for stack in self._loras]),
            "gpus": self._members.size,
            "ranks": ranks,
        }

    @property
    def _least(self) -> Placement:
        """That of the card which keeps the fewest blocks."""
        return min(self.placements, key=lambda placement: placement.resident_blocks)

    @property
    def _is_loaded(self) -> bool:
        return self._group is not None and self._group.is_alive()

    @property
    def _running(self) -> WorkerGroup:
        assert self._group is not None, "predict_flow before load"
        return self._group

    def _forget(self) -> None:
        self._group = self._conditioning = self._memory = None
        self._loras, self._answers = [Stack() for _ in self._files.experts], []

    def _memory_of(self, shape: tuple[int, ...], hooks: Hooks) -> list[torch.Tensor]:
        """Return memory for latents and flow that all ranks see."""
        if self._memory is None or self._memory[0].shape != shape:
            regions = [Region.of_floats(shape) for _ in range(2)]
            self._running.ask(Gpus.SAMPLING(), "memory", (self._number, shape), regions, hooks=hooks)
            self._memory = [region.floats(shape) for region in regions]
        return self._memory
