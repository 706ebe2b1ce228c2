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

from ..errors import MALFORMED, CheckpointError, in_words
from ..sentences import shortened
from ..sentences.checkpoints import Reading
from .disk import DOWNLOAD_AGAIN, check_start, find_size, read_start, reading

# Bytes per element of the dtypes that occur in checkpoints of this field.
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
# Of a header, whose work holds Python's lock. The published ones take 0.2 MB; what training tools note about a LoRA is
# a few more.
_MAX_HEADER_BYTES = 10_000_000
# Of tensors, each of which takes its time too; a whole model with text encoder and VAE has 4,000.
_MAX_TENSORS = 12_000
_MAX_RANK, _MAX_SIZE = 8, 2**63
_MAX_NAME_CHARACTERS = 512


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
        CheckpointError: the file is missing, cannot be read, is not safetensors, or is shorter or longer than its
            header says; or its tensors overlap, or leave bytes between them.
    """
    return read_header_and_metadata(path)[0]


def read_header_and_metadata(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Return the same, and what the file says about itself beside its tensors.

    Raises:
        CheckpointError: as read_header.
    """
    table, start, size = _read_table(path)
    try:
        header = {name: _parse_entry(name, entry, start) for name, entry in table.items() if name != "__metadata__"}
        expected = _end_of(header, start)
    except MALFORMED as error:
        raise _corrupt(path, error) from error
    if size != expected:
        state = Reading.TRUNCATED() if size < expected else Reading.LONGER_THAN_HEADER()
        raise CheckpointError(
            Reading.OTHER_LENGTH(path=path, state=state, size=size, expected=expected, download_again=DOWNLOAD_AGAIN)
        )
    return {name: info for name, (info, _) in header.items()}, _metadata_of(path, table)


def read_metadata(path: Path) -> dict[str, str]:
    """Return what a safetensors file says about itself beside its tensors.

    Raises:
        CheckpointError: as read_header.
    """
    return _metadata_of(path, _read_table(path)[0])


def _metadata_of(path: Path, table: Mapping[str, Any]) -> dict[str, str]:
    metadata = table.get("__metadata__")
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _corrupt(path, Reading.ODD_METADATA())
    return metadata


def _read_table(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return the header as JSON data, where it ends, and the size of the file."""
    size = find_size(path, Reading.SAFETENSORS_FILE())
    with reading(path), path.open("rb") as file:
        start = read_start(file)
        check_start(path, start, "safetensors")
        length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
        if not 2 <= length <= size - 8:
            raise CheckpointError(Reading.NO_SAFETENSORS(path=path, size=size, download_again=DOWNLOAD_AGAIN))
        if length > _MAX_HEADER_BYTES:
            raise CheckpointError(
                Reading.HEADER_TOO_LONG(
                    path=path, length=length, max_header_bytes=_MAX_HEADER_BYTES, download_again=DOWNLOAD_AGAIN
                )
            )
        file.seek(8)
        raw = file.read(length)
    # Counted before they are read: one each, but where a name is spelled otherwise.
    check_number(path, raw.count(b'"data_offsets"'))
    try:
        table = json.loads(raw)
    except MALFORMED as error:
        raise _corrupt(path, error) from error
    if not isinstance(table, dict):
        raise _corrupt(path, Reading.NO_TABLE())
    check_number(path, len(table))
    return table, 8 + length, size


def check_number(path: Path, num_tensors: int) -> None:
    """Raise CheckpointError where a file or a folder has more tensors than a model."""
    if num_tensors > _MAX_TENSORS:
        raise CheckpointError(
            Reading.TOO_MANY_TENSORS(
                path=path, num_tensors=num_tensors, most=_MAX_TENSORS, download_again=DOWNLOAD_AGAIN
            )
        )


def _parse_entry(name: str, entry: dict[str, Any], start: int) -> tuple[TensorInfo, tuple[int, int]]:
    """Return one tensor of the header, and where its bytes begin and end in the file; weights begin at `start`."""
    if len(name) > _MAX_NAME_CHARACTERS or not name.isprintable():
        raise ValueError(Reading.LONG_NAME(num_name=len(name), name=name[:40]))
    dtype, shape = entry["dtype"], entry["shape"]
    begin, end = entry["data_offsets"]
    if not isinstance(dtype, str) or not dtype.isidentifier() or len(dtype) > len("F8_E4M3FNUZ"):
        raise ValueError(Reading.ODD_DTYPE(dtype=str(dtype)[:40]))
    if (
        type(shape) is not list
        or len(shape) > _MAX_RANK
        or not all(_is_count(size) for size in (*shape, begin, end))
        or begin > end
    ):
        raise ValueError(Reading.ODD_SHAPE(name=name, shape=str(shape)[:80], end=str([begin, end])[:80]))
    info = TensorInfo(dtype, tuple(shape), start + begin)
    if dtype in DTYPE_BYTES and end - begin != info.num_bytes:
        raise ValueError(Reading.ODD_BYTES(dtype=dtype, shape=list(shape), num_bytes=info.num_bytes, found=end - begin))
    return info, (start + begin, start + end)


def _is_count(number: Any) -> bool:
    return type(number) is int and 0 <= number < _MAX_SIZE


def _end_of(header: Mapping[str, tuple[TensorInfo, tuple[int, int]]], start: int) -> int:
    """Return where the last tensor ends; each has to begin where the one before it ends, as the format asks."""
    reached = start
    for name, (_, (begin, end)) in sorted(header.items(), key=lambda item: item[1][1]):
        if begin != reached:
            raise ValueError(Reading.HOLE_IN_FILE(name=name, begin=begin, reached=reached))
        reached = end
    return reached


def _corrupt(path: Path, problem: object) -> CheckpointError:
    return CheckpointError(
        Reading.HEADER_CORRUPT(
            path=path,
            problem=in_words(problem) if isinstance(problem, BaseException) else shortened(problem, 300),
            download_again=DOWNLOAD_AGAIN,
        )
    )
