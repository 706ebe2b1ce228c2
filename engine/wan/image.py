"""What the blocks attend to beside the text: rows of CLIP Vision, each block's keys and values of them made once.

Source: Wan2.1 wan/modules/model.py (WanI2VCrossAttention).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch

from ..offload import OnceUnits
from .kernels import Inputs, Kernels


class Image:
    """The image of a clip, or its first and last one.

    Its keys and values stay beside the blocks while it is sampled, and in RAM until another image comes, so that their
    weights, which rest in their files, are read once for all clips of an image.
    """

    def __init__(
        self,
        tokens: torch.Tensor,
        embed: Callable[[torch.Tensor], torch.Tensor],
        kernels: Kernels,
        weights: Sequence[OnceUnits],
    ) -> None:
        """Args:
        tokens: [tokens, image_dim] of CLIP Vision.
        embed: turns them into [tokens, D] BF16 on the compute device.
        weights: the checkpoint's, then those that LoRAs put beside them or in their place.
        """
        self.tokens = tokens
        self._embed = embed
        self._kernels = kernels
        self._weights = weights
        self._inputs: Inputs | None = None
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def keys_values(
        self, block: int, query_norm: torch.Tensor, num_heads: int, check_interrupt: Callable[[], None]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a block's keys and values [tokens, D]; blocks are asked for in their order.

        Args: query_norm: [D], the weight of the queries' norm, which is put on the keys.
        """
        if block in self._kept:
            k, v = (part.to(query_norm.device, non_blocking=True) for part in self._kept[block])
        else:
            k, v = self._make(block, query_norm, num_heads, check_interrupt)
        self._kept[block] = (k, v)
        return k, v

    def rest(self) -> None:
        """Move to RAM what was made, and give back everything else."""
        self._inputs = None
        self._kept = {block: (k.cpu(), v.cpu()) for block, (k, v) in self._kept.items()}
        self.close()

    def close(self) -> None:
        """Give back what weights still take after a pass that was not finished."""
        for each in self._weights:
            each.close()

    def _make(
        self, block: int, query_norm: torch.Tensor, num_heads: int, check_interrupt: Callable[[], None]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._inputs is None:
            self._inputs = self._kernels.inputs_of(self._embed(self.tokens))
        with contextlib.ExitStack() as opened:
            weights: dict[str, torch.Tensor] = {}
            for each in self._weights:
                weights |= opened.enter_context(each.block(block, check_interrupt))
            return self._kernels.keys_values(self._inputs, weights, query_norm, num_heads, "_img")
