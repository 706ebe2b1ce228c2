"""A linear layer that keeps its weight as the file stores it: memory-mapped, 8-bit or 16-bit, on the CPU.

Each forward widens the weight to the dtype of the input, a few rows at a time, and multiplies; nothing
wide outlives the call. On a GPU the stored bytes are moved for the call only.
"""

from __future__ import annotations

import torch

# Elements widened at a time: 8 MiB of bfloat16 stay in the CPU's cache between widening and multiplying.
_CHUNK_ELEMENTS = 4 * 1024**2

# Target dtype: (integer of its width, left shift of an E4M3 byte, mask of the bits that stay). The shift puts
# the 4 exponent bits and 3 mantissa bits where the target has its lowest exponent and highest mantissa bits.
_E4M3_LAYOUTS = {
    torch.bfloat16: (torch.int16, 4, 0x87F0 - 2**16),
    torch.float32: (torch.int32, 20, 0x87F0_0000 - 2**32),
}
# The exponent biases of E4M3 and of the targets are 7 and 127.
_E4M3_RESCALE = 2.0**120


def widen(stored: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
    """Write `stored` (any dtype) to `wide` (a floating dtype, same shape) and return `wide`.

    Exact for finite FP8 and for INT8. FP8 E4M3 is widened by moving bits: a copy converts element by element on the
    CPU, ten times slower. (E4M3's only NaN, which no usable weight is, becomes 480.)
    """
    if stored.dtype == torch.float16:
        return wide.copy_(stored.float())  # twice as fast on the CPU as straight to bfloat16
    if stored.dtype != torch.float8_e4m3fn or wide.dtype not in _E4M3_LAYOUTS:
        return wide.copy_(stored)
    integer, shift, mask = _E4M3_LAYOUTS[wide.dtype]
    bits = wide.view(integer).copy_(stored.view(torch.int8))  # as signed: the sign fills the upper bits
    bits.bitwise_left_shift_(shift).bitwise_and_(mask)
    return wide.mul_(_E4M3_RESCALE)


class StoredLinear(torch.nn.Module):
    """`inputs @ (weight * scale).T` without a bias, computed in the dtype and on the device of the inputs."""

    # transformers' T5 feed-forward casts its input to `wo.weight.dtype` where that is a tensor; 8-bit is no such dtype.
    weight: None = None

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
