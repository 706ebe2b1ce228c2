"""Weights on disk as named tensors: safetensors files and plain `.pth` state dicts, memory-mapped.

What the names mean is checkpoints/formats.py; what is done with the tensors, the engines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError
from ..sentences.checkpoints import Reading
from .content import Look
from .disk import is_short_of_memory, unreadable
from .header import Header, TensorInfo, read_header
from .pth import is_pth, load_pth

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class TensorSpec:
    """A parameter to be: its path in the model, and dtype and shape on the compute device."""

    name: str
    dtype: torch.dtype
    shape: torch.Size

    @property
    def num_bytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


@dataclass(frozen=True)
class FileRange:
    """A stretch of a file."""

    path: Path
    offset: int
    num_bytes: int
    look: Look | None = field(default=None, compare=False, repr=False)
    """How what lies there is looked at when it has been read; whose tensor it is."""

    def part(self, start: int, num_bytes: int) -> FileRange:
        """Return a part of it."""
        return FileRange(self.path, self.offset + start, num_bytes, self.look)


class Weights(Mapping[str, torch.Tensor]):
    """Named CPU tensors, mapped from their files: bytes are read when they are first used.

    `header` holds names, dtypes and shapes without touching any tensor. `prefix` is stripped from
    every name; names without it are left out. `close` drops the mappings; a later read opens them again.
    """

    header: dict[str, TensorInfo]

    def __iter__(self) -> Iterator[str]:
        return iter(self.header)

    def __len__(self) -> int:
        return len(self.header)

    @property
    def num_bytes(self) -> int:
        return sum(info.num_bytes for info in self.header.values())

    def location(self, name: str, dtype: torch.dtype) -> FileRange | None:
        """Return where in a file a tensor's values lie as `dtype`; None where they must be read and converted."""
        raise NotImplementedError

    def path_of(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class SafetensorsWeights(Weights):
    """One or more safetensors files as one mapping."""

    def __init__(self, files: Sequence[Path], prefix: str = "") -> None:
        self.header = {}
        self._file_of: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        self._prefix = prefix
        for path in files:
            for name, info in read_header(path).items():
                if name.startswith(prefix):
                    self.header[name[len(prefix) :]] = info
                    self._file_of[name[len(prefix) :]] = path

    def __getitem__(self, name: str) -> torch.Tensor:
        path = self._file_of[name]
        # Threads read side by side, and one may close what another one opened: hold the file by a name of its own.
        file = self._open.get(path) or self._open.setdefault(path, _open_safetensors(path))
        tensor: torch.Tensor = file.get_tensor(self._prefix + name)
        return tensor

    def location(self, name: str, dtype: torch.dtype) -> FileRange | None:
        info = self.header[name]
        if info.offset is None or info.dtype != _DTYPE_NAMES.get(dtype):
            return None
        return FileRange(self._file_of[name], info.offset, info.num_bytes)

    def path_of(self, name: str) -> Path:
        return self._file_of[name]

    def close(self) -> None:
        self._open.clear()


class PthWeights(Weights):
    """A `.pth` file that holds nothing but a flat dict of tensors."""

    def __init__(self, path: Path, prefix: str = "") -> None:
        self._path = path
        self._prefix = prefix
        self._tensors: dict[str, torch.Tensor] | None = load_pth(path)
        self.header = {
            name[len(prefix) :]: TensorInfo(_DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))
            for name, tensor in self._tensors.items()
            if name.startswith(prefix)
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        # By a name of its own, as another thread may close it.
        tensors = self._tensors
        if tensors is None:
            tensors = self._tensors = load_pth(self._path)
        return tensors[self._prefix + name]

    def location(self, name: str, dtype: torch.dtype) -> FileRange | None:
        return None

    def path_of(self, name: str) -> Path:
        return self._path

    def close(self) -> None:
        self._tensors = None


def open_weights(files: Sequence[Path], prefix: str = "") -> Weights:
    """Open safetensors files, or a single `.pth`, as one mapping.

    Raises:
        CheckpointError: a file is missing, damaged, or not plain tensors, or there is no memory to map it.
    """
    if len(files) == 1 and is_pth(files[0]):
        return PthWeights(files[0], prefix)
    return SafetensorsWeights(files, prefix)


def header_of(path: Path) -> Header:
    """Return the names, dtypes and shapes in a safetensors file or a `.pth`.

    Raises:
        CheckpointError: see open_weights.
    """
    weights = open_weights([path])
    weights.close()
    return weights.header


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (MemoryError, OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, OSError) or is_short_of_memory(error):
            raise unreadable(path, error) from error
        raise CheckpointError(Reading.CHANGED_WHILE_OPEN(path=path)) from error
