"""FP8 without scales: weights that were cast as they are, which is right, or scaled ones that lost their scales.

Names, dtypes and shapes are the same. What tells them apart is the size of the numbers: scaled FP8 fills its range to
448, so that a file that lost its scales holds some 100 where each row had one (rows of normal weights: 112 to 150),
and not below 4 where a tensor had one and a number in it a hundred times the usual one. Weights of Wan's layers are
0.005 to 0.15 (root mean square), and none is known above 1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

from ..errors import CheckpointError
from ..sentences.checkpoints import Content, Reading
from .bounds import LARGEST_CAST_RMS
from .checks import BLOCK_LINEAR
from .disk import reading
from .header import Header

# The layers of a model that are looked at, and the bytes of each.
_NUM_LAYERS, _NUM_BYTES = 4, 2**14
_MANTISSA_BITS = {"F8_E4M3": 3, "F8_E5M2": 2}


def check_cast(tables: Mapping[Path, Header], unscaled: Collection[str]) -> None:
    """Look at some layers of a transformer that are in FP8 without scales. Of the others a reader does.

    Args:
        tables: tensors by file.
        unscaled: the FP8 weights that have no scale.

    Raises:
        CheckpointError: it has lost its scales; or a file cannot be read.
    """
    layers = [
        (file, name, info)
        for file, table in tables.items()
        for name, info in table.items()
        if name in unscaled and BLOCK_LINEAR.search(name)
    ]
    for file, name, info in layers[:: max(len(layers) // _NUM_LAYERS, 1)]:
        with reading(file), file.open("rb") as opened:
            opened.seek(info.offset or 0)
            rms = _rms(opened.read(min(_NUM_BYTES, info.num_bytes)), info.dtype)
        if rms > LARGEST_CAST_RMS:
            raise CheckpointError(Reading.DAMAGED(path=file, name=name, fault=Content.LOST_SCALES(rms=rms)))


def _rms(codes: bytes, dtype: str) -> float:
    """Return the root mean square of numbers in FP8; of what is none, which has other checks, E4M3's counts as 480."""
    bits = _MANTISSA_BITS[dtype]
    squares = sum(count * _number(code & 0x7F, bits) ** 2 for code, count in Counter(codes).items())
    return math.sqrt(squares / max(len(codes), 1))


def _number(code: int, bits: int) -> float:
    """Return the size of a number without its sign: an exponent, and so many bits of a mantissa."""
    exponent, mantissa = code >> bits, code & (1 << bits) - 1
    bias = (1 << 6 - bits) - 1
    return math.ldexp(mantissa + (1 << bits if exponent else 0), max(exponent, 1) - bias - bits)
