"""The memory in which a block computes: allocated once for a number of tokens, used by every block and step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..kernels.ops import Rotary
from ..memory.activations import FFN_CHUNKS, workspace_sizes
from ..memory.rounding import round_up

_PRECISIONS = {None: "bf16", torch.float8_e4m3fn: "fp8", torch.int8: "int8"}


class Chunk(NamedTuple):
    """What the feed-forward of some rows is computed in."""

    rows: slice
    wide: torch.Tensor
    """[rows, F] BF16."""
    inputs: torch.Tensor
    """[rows, F] input of the second linear: 8-bit, or `wide` itself."""
    scales: torch.Tensor | None
    """[rows, 1] fp32 of `inputs`, if they are 8-bit."""


class Workspace:
    """Views into one region of memory; its layout is memory/activations.py's.

    `hidden` [N, D] BF16 is what the blocks pass on. `inputs` [N, D] with `scales` [N, 1] is what the next linear takes:
    8-bit, with `room` columns before each row (kernels/joined.py), or BF16 and None. `parts` are three of [N, D] BF16:
    q, k and v, then the outputs of the linears.

    `chunks` are the feed-forward's, and lie where the parts do, one on top of the other. Their outputs go to `output`
    [N, D] BF16. That is the first part: the last chunk's `wide` lies over its own rows of it, which are written when
    `wide` is no longer needed. Linears in BF16 still need `wide` then; with them `output` is `inputs`, of which a
    chunk's rows are no longer needed.
    """

    def __init__(
        self,
        tokens: int,
        dim: int,
        ffn_dim: int,
        quantized: torch.dtype | None,
        device: torch.device,
        room: int = 0,
    ) -> None:
        """Args:
        quantized: what activations are quantized to; None keeps them in BF16.
        room: columns before the inputs of linears in 8 bits, for LoRAs.
        """
        self.tokens, self.room = tokens, room
        # Inside ComfyUI inference mode is on; what is made under it cannot be written to outside of it.
        with torch.inference_mode(False):
            self._allocate(dim, ffn_dim, quantized, device)

    @property
    def size(self) -> tuple[int, int]:
        """Tokens, and columns before the inputs of linears."""
        return self.tokens, self.room

    @property
    def num_bytes(self) -> int:
        return self._memory.numel()

    def _allocate(self, dim: int, ffn_dim: int, quantized: torch.dtype | None, device: torch.device) -> None:
        tokens = self.tokens
        room = self.room
        precision = _PRECISIONS[quantized]
        sizes = workspace_sizes(tokens=tokens, dim=dim, ffn_dim=ffn_dim, precision=precision, room=room)
        self._memory = torch.empty(sizes.total, dtype=torch.uint8, device=device)
        taker = _Taker(self._memory)
        self.hidden = taker.take(tokens, dim, torch.bfloat16)
        self.inputs = taker.take(tokens, room + dim, quantized or torch.bfloat16)[:, room:]
        self.scales = taker.take(tokens, 1, torch.float32) if quantized else None
        region = taker.position
        self.parts = tuple(taker.take(tokens, dim, torch.bfloat16) for _ in range(3))
        self.output = self.parts[0] if quantized else self.inputs
        self.chunks: list[Chunk] = []
        step = -(-tokens // FFN_CHUNKS)
        for start in range(0, tokens, step):
            taker.position = region
            if quantized:
                taker.take((FFN_CHUNKS - 1) * step, dim, torch.bfloat16)  # what earlier chunks have written
            rows = slice(start, min(start + step, tokens))
            self.chunks.append(_take_chunk(taker, rows, ffn_dim, quantized, room))


@dataclass
class ClipMemory:
    """What passes of one size of clip take beside the weights; the experts of a model, which take turns, share it."""

    workspace: Workspace | None = None
    rotary: tuple[tuple[int, int, int], Rotary] | None = None
    """Of the last clip's grid."""

    def release(self) -> None:
        """Give it back."""
        self.workspace = self.rotary = None


class _Taker:
    """Hands out tensors from a region, one after the other."""

    def __init__(self, memory: torch.Tensor) -> None:
        self._memory = memory
        self.position = 0

    def take(self, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
        num_bytes = rows * columns * dtype.itemsize
        taken = self._memory[self.position : self.position + num_bytes]
        self.position += round_up(num_bytes)
        return taken.view(dtype).view(rows, columns)


def _take_chunk(taker: _Taker, rows: slice, ffn_dim: int, quantized: torch.dtype | None, room: int) -> Chunk:
    count = rows.stop - rows.start
    wide = taker.take(count, ffn_dim, torch.bfloat16)
    inputs = taker.take(count, room + ffn_dim, quantized)[:, room:] if quantized else wide
    scales = taker.take(count, 1, torch.float32) if quantized else None
    return Chunk(rows, wide, inputs, scales)
