"""Whether what is read of a file can be weights: no holes of zeros, as interrupted downloads leave, and only numbers.

Small tensors (scales, norms, biases) are looked at in full, of large ones a few bytes in every part that is read
anyway; where these are zero, the part is looked at in full. Each part is looked at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import CheckpointError
from ..sentences.checkpoints import Reading

# Up to here a tensor is looked at in full.
_SMALL_BYTES = 2**18
# Of larger ones eight bytes every so often.
_EVERY = 2**19
# Zeros in a row that are no weights: a hundred rows of the 14B model's.
_HOLE_BYTES = 2**19
_PAGE, _PART_BYTES = 4096, 2**24
_ALL_ZEROS, _NO_NUMBERS = Reading.ALL_ZEROS(), Reading.NO_NUMBERS()
# Bits of an exponent that are all set in infinity and NaN; e4m3fn has NaN alone.
_EXPONENTS: dict[torch.dtype, tuple[Any, int]] = {
    torch.float32: (np.uint32, 0x7F800000),
    torch.float16: (np.uint16, 0x7C00),
    torch.bfloat16: (np.uint16, 0x7F80),
    torch.float8_e4m3fn: (np.uint8, 0x7F),
    torch.float8_e5m2: (np.uint8, 0x7C),
}
# Names of what is zero nowhere in a trained model; a bias may be.
_NEVER_ZERO = ("weight", "weight_scale", "scale_weight", "gamma")


class ContentCheck:
    """Looks at the tensors of one model."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, int]] = set()

    def look(self, name: str, path: Path, values: torch.Tensor, dtype: torch.dtype, start: int = 0) -> None:
        """Look at a tensor, or at a part of a large one.

        Args:
            values: on the CPU, contiguous, of any shape; its bytes are taken as `dtype`.
            start: where the part begins; the same part is looked at once.

        Raises:
            CheckpointError: it is damaged; names the file, the tensor and what to do.
        """
        if (name, start) in self._seen:
            return
        self._seen.add((name, start))
        # The short end of a large tensor may be rows that are zero.
        is_short_end = start > 0 and values.nbytes <= _SMALL_BYTES
        fault = find_fault(values, dtype, may_be_zero=is_short_end or may_be_zero(name))
        if fault:
            raise damaged(path, name, fault)


def may_be_zero(name: str) -> bool:
    """Say whether a tensor of this name may be zero everywhere."""
    return not name.endswith(_NEVER_ZERO)


def damaged(path: Path, name: str, fault: str) -> CheckpointError:
    """Return the sentence about a tensor whose content is no weights."""
    return CheckpointError(Reading.DAMAGED(path=path, name=name, fault=fault))


def find_fault(values: torch.Tensor, dtype: torch.dtype, *, may_be_zero: bool = False) -> str:
    """Return what is wrong with the content of a tensor, or "".

    Args:
        values, dtype: see ContentCheck.look.
        may_be_zero: whether all of it may be zero.
    """
    flat = _bytes_of(values)
    if len(flat) <= _SMALL_BYTES:
        if dtype == torch.float32:
            numbers = flat.view(np.float32)
            with np.errstate(all="ignore"):
                # A number over zero, of all but a few good tensors: it tells them in half of the time.
                if 0 < numbers.dot(numbers) < np.inf:
                    return ""
        bits, mask = _EXPONENTS.get(dtype, (np.uint8, 0xFF))
        # One look says both: bits of an exponent that are all set are no number, and where none is set all may be zero.
        largest = (flat.view(bits) & mask).max(initial=0)
        if largest == mask and dtype in _EXPONENTS:
            return _NO_NUMBERS
        return _ALL_ZEROS if not largest and len(flat) and not may_be_zero and not flat.any() else ""
    words = flat[: len(flat) // 8 * 8].view(np.uint64)[:: _EVERY // 8]
    some = words.tobytes()
    if _has_no_number(some, dtype):
        return _NO_NUMBERS
    # Bytes are searched faster than numbers are compared; what is found may lie in two words.
    if may_be_zero or bytes(8) not in some or words.all():
        return ""
    hole = _longest_hole(flat)
    return Reading.HOLE(hole=hole) if hole >= min(_HOLE_BYTES, len(flat) // _PAGE * _PAGE) else ""


def find_fault_in_full(values: torch.Tensor, dtype: torch.dtype, *, may_be_zero: bool = False) -> str:
    """Return the same after a look at every byte."""
    flat = _bytes_of(values)
    bits, mask = _EXPONENTS.get(dtype, (np.uint8, 0))
    parts = (flat[start : start + _PART_BYTES].view(bits) for start in range(0, len(flat), _PART_BYTES))
    if mask and any((part & mask).max() == mask for part in parts):
        return _NO_NUMBERS
    if may_be_zero or not len(flat):
        return ""
    if not flat.any():
        return _ALL_ZEROS
    hole = _longest_hole(flat)
    return Reading.HOLE(hole=hole) if hole >= _HOLE_BYTES else ""


def _has_no_number(some: bytes, dtype: torch.dtype) -> bool:
    """Say whether infinity or NaN is among numbers."""
    if dtype == torch.float8_e4m3fn:
        return b"\x7f" in some or b"\xff" in some
    if dtype not in _EXPONENTS:
        return False
    bits, mask = _EXPONENTS[dtype]
    return bool((np.frombuffer(some, bits) & mask).max() == mask)


def _bytes_of(values: torch.Tensor) -> Any:
    if values.dtype != torch.uint8 or values.ndim != 1:
        values = values.detach().reshape(-1).view(torch.uint8)
    return values.numpy()


def _longest_hole(flat: Any) -> int:
    """Return the bytes of the longest row of pages of zeros."""
    pages = flat[: len(flat) // _PAGE * _PAGE].reshape(-1, _PAGE)
    filled = np.flatnonzero(pages.any(axis=1))
    edges = np.concatenate([[-1], filled, [len(pages)]])
    return int((np.diff(edges).max() - 1) * _PAGE)
