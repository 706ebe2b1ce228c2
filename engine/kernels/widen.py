"""8-bit weights to the dtype that is computed in, exactly and fast on a CPU."""

from __future__ import annotations

import torch

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

    Exact for finite FP8 and for INT8. On the CPU FP8 E4M3 is widened by moving bits: a copy converts element by
    element, ten times slower. (E4M3's only NaN, which no usable weight is, becomes 480.)
    """
    if not stored.is_cpu:
        return wide.copy_(stored)
    if stored.dtype == torch.float16:
        return wide.copy_(stored.float())  # twice as fast as straight to bfloat16
    if stored.dtype != torch.float8_e4m3fn or wide.dtype not in _E4M3_LAYOUTS:
        return wide.copy_(stored)
    integer, shift, mask = _E4M3_LAYOUTS[wide.dtype]
    bits = wide.view(integer).copy_(stored.view(torch.int8))  # as signed: the sign fills the upper bits
    bits.bitwise_left_shift_(shift).bitwise_and_(mask)
    return wide.mul_(_E4M3_RESCALE)
