"""Read the header of a safetensors file: tensor names, dtypes and shapes, without reading a weight.

Source of the format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError

# Bytes per element of the dtypes that occur in checkpoints of this field.
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
# The format's own limit; a larger number means that the file is something else.
_MAX_HEADER_BYTES = 100_000_000
_DOWNLOAD_AGAIN = "Download the file again; its size should match the one on the model page."


@dataclass(frozen=True)
class TensorInfo:
    """dtype as safetensors names it (BF16, F8_E4M3, I8, F32 ...), shape, and bytes in the file."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES.get(self.dtype, 1)


Header = Mapping[str, TensorInfo]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return the tensors that a safetensors file says it holds.

    Raises:
        CheckpointError: the file is missing, is not safetensors, or is shorter or longer than its header says.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing or not a file.")
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size):
            raise CheckpointError(
                f"{path} is not a safetensors file: its first 8 bytes do not give a header length that fits its "
                f"{size} bytes. {_DOWNLOAD_AGAIN}"
            )
        raw = file.read(length)
    try:
        table = json.loads(raw)
        tensors = {
            name: (TensorInfo(str(entry["dtype"]), tuple(map(int, entry["shape"]))), int(entry["data_offsets"][1]))
            for name, entry in table.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"The header of {path} is corrupt ({error}). {_DOWNLOAD_AGAIN}") from error
    expected = 8 + length + max((end for _, end in tensors.values()), default=0)
    if size != expected:
        state = "truncated" if size < expected else "longer than its header says"
        raise CheckpointError(f"{path} is {state}: found {size} bytes, expected {expected}. {_DOWNLOAD_AGAIN}")
    return {name: info for name, (info, _) in tensors.items()}
