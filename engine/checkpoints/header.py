"""Read the header of a safetensors file: tensor names, dtypes and shapes, without reading a weight.

Source of the format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

# Bytes per element of the dtypes that occur in checkpoints of this field.
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
# The format's own limit; a larger number means that the file is something else.
_MAX_HEADER_BYTES = 100_000_000
_DOWNLOAD_AGAIN = "Download the file again; its size should match the one on the model page."
# First bytes of files that get taken for safetensors, what they are, and what to do.
_FOREIGN_STARTS = (
    (b"GGUF", "a GGUF file", "Use the FP8 or INT8 version in safetensors, or load GGUF with ComfyUI-GGUF."),
    (b"PK\x03\x04", "a PyTorch .pth or .zip file", "Use the safetensors version."),
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself", "Run `git lfs pull`, or download the file."),
    (b"<", "a web page", "Log in or accept the licence on the model page, then download the file again."),
)


@dataclass(frozen=True)
class TensorInfo:
    """dtype as safetensors names it (BF16, F8_E4M3, I8, F32 ...), shape, and bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int | None = field(default=None, compare=False)
    """Where its bytes begin in its file; None in a file of another format."""

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES.get(self.dtype, 1)


Header = Mapping[str, TensorInfo]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return the tensors that a safetensors file says it holds.

    Raises:
        CheckpointError: the file is missing, is not safetensors, or is shorter or longer than its header says.
    """
    table, start, size = _read_table(path)
    try:
        entries = {name: _parse_entry(entry, start) for name, entry in table.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"The header of {path} is corrupt ({error}). {_DOWNLOAD_AGAIN}") from error
    expected = max((end for _, end in entries.values()), default=start)
    if size != expected:
        state = "truncated" if size < expected else "longer than its header says"
        raise CheckpointError(f"{path} is {state}: found {size} bytes, expected {expected}. {_DOWNLOAD_AGAIN}")
    return {name: info for name, (info, _) in entries.items()}


def read_metadata(path: Path) -> dict[str, str]:
    """Return what a safetensors file says about itself beside its tensors.

    Raises:
        CheckpointError: as read_header.
    """
    metadata = _read_table(path)[0].get("__metadata__")
    return {str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {}


def _read_table(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return the header as JSON data, where it ends, and the size of the file."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing or not a file; expected a safetensors file. Check the name.")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(32)
        for magic, kind, advice in _FOREIGN_STARTS:
            if start.startswith(magic):
                raise CheckpointError(f"{path} is {kind}; expected safetensors. {advice}")
        length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(
                f"{path} is not a safetensors file, or cut off in its header: its first 8 bytes do not give a header "
                f"length that fits its {size} bytes. {_DOWNLOAD_AGAIN}"
            )
        file.seek(8)
        raw = file.read(length)
    try:
        table = json.loads(raw)
    except ValueError as error:
        raise CheckpointError(f"The header of {path} is corrupt ({error}). {_DOWNLOAD_AGAIN}") from error
    if not isinstance(table, dict):
        raise CheckpointError(f"The header of {path} is corrupt (no table). {_DOWNLOAD_AGAIN}")
    return table, 8 + length, size


def _parse_entry(entry: dict[str, Any], start: int) -> tuple[TensorInfo, int]:
    """Return one tensor of the header, and where its bytes end in the file, whose weights begin at `start`."""
    begin, end = (start + int(offset) for offset in entry["data_offsets"])
    info = TensorInfo(str(entry["dtype"]), tuple(map(int, entry["shape"])), begin)
    if info.dtype in DTYPE_BYTES and end - begin != info.num_bytes:
        raise ValueError(f"{info.dtype} {list(info.shape)} takes {info.num_bytes} bytes, not {end - begin}")
    return info, end
