"""A linear layer that keeps its weight as the file stores it: memory-mapped, 8-bit or 16-bit, on the CPU.

Each forward widens the weight to the dtype of the input, a few rows at a time, and multiplies; nothing
wide outlives the call. On a GPU the stored bytes are moved for the call only.
"""

from __future__ import annotations

import torch

from ..kernels.widen import widen

# Elements widened at a time: 8 MiB of bfloat16 stay in the CPU's cache between widening and multiplying.
_CHUNK_ELEMENTS = 4 * 1024**2


class StoredLinear(torch.nn.Module):
    """`inputs @ (weight * scale).T` without a bias, computed in the dtype and on the device of the inputs."""

    def __init__(self, stored: torch.Tensor, scale: torch.Tensor | None) -> None:
        """Keep `stored` [N, K] without a copy, as no parameter or buffer: `.to(device)` leaves it where it is.

        `scale` holds one factor an output row, or one for all; None means 1.
        """
        super().__init__()
        self.stored = stored
        self.scale = None if scale is None else scale.float().flatten()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Multiply inputs [..., K] to outputs [..., N]."""
        stored = self.stored.to(inputs.device)
        if stored.dtype == inputs.dtype:
            return torch.nn.functional.linear(inputs, stored)
        num_outputs, num_inputs = stored.shape
        rows = max(1, _CHUNK_ELEMENTS // num_inputs)
        wide = inputs.new_empty(min(rows, num_outputs), num_inputs)
        outputs = inputs.new_empty(*inputs.shape[:-1], num_outputs)
        for start in range(0, num_outputs, rows):
            chunk = stored[start : start + rows]
            outputs[..., start : start + rows] = torch.nn.functional.linear(inputs, widen(chunk, wide[: len(chunk)]))
        return outputs if self.scale is None else outputs.mul_(self.scale.to(inputs.device))
