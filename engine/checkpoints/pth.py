"""Reads `.pth` files: PyTorch's archives of a pickle and its tensors, of which only flat dicts of tensors are taken.

A pickle is a program. PyTorch runs it with plain tensors only (weights_only); what such a program can still do, which
is to fill memory or to take for ever, is looked for in its text first.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..errors import MALFORMED, CheckpointError
from ..sentences.checkpoints import Reading
from .disk import check_ending, check_start, find_size, first_line, is_short_of_memory, read_start, reading, unreadable

_EXPECTED = Reading.PTH_FILE()
_SUFFIXES = frozenset({".pth", ".pt", ".bin"})
# Of the pickle, which names the tensors; the text encoder's takes 0.04 MB.
_MAX_PICKLE_BYTES = 2**19
# Of values in values; a tensor has four.
_MAX_DEPTH = 16
# What reading a pickle or an archive of another making ends with.
_MALFORMED = (*MALFORMED, EOFError, AssertionError, pickle.PickleError, struct.error, zipfile.BadZipFile)


def is_pth(path: Path) -> bool:
    """Say whether a file is read as PyTorch's, by its name."""
    return path.suffix.lower() in _SUFFIXES


def load_pth(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a `.pth` file, mapped.

    Raises:
        CheckpointError: it is missing, cannot be read, is damaged, or holds anything but a flat dict of plain tensors.
    """
    find_size(path, _EXPECTED)
    with reading(path), path.open("rb") as file:
        start = read_start(file)
        check_start(path, start, _EXPECTED, may_be_zip=True)
        check_ending(path, start, _EXPECTED)
    try:
        _check_archive(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise _refuse_objects(path, first_line(error)) from error
    except (MemoryError, RuntimeError, OSError, *_MALFORMED) as error:
        if is_short_of_memory(error):
            raise unreadable(path, error) from error
        said = first_line(error) or type(error).__name__
        if not zipfile.is_zipfile(path):
            said = Reading.NO_ARCHIVE()
        raise CheckpointError(Reading.NO_PTH(path=path, said=said)) from error
    if not isinstance(loaded, dict) or not all(_is_entry(*item) for item in loaded.items()):
        kind = Reading.NESTED() if isinstance(loaded, dict) else type(loaded).__name__
        raise CheckpointError(Reading.NO_STATE_DICT(path=path, kind=kind))
    for name, tensor in loaded.items():
        if tensor.layout != torch.strided or tensor.untyped_storage().nbytes() < tensor.nbytes:
            raise CheckpointError(Reading.NO_PLAIN_TENSOR(path=path, name=name, shape=list(tensor.shape)))
    # Parameters too, which nobody is going to train here.
    return {name: tensor.detach() for name, tensor in loaded.items()}


def _is_entry(name: Any, tensor: Any) -> bool:
    return isinstance(name, str) and isinstance(tensor, torch.Tensor)


def _check_archive(path: Path) -> None:
    """Raise where the archive or its pickle would take memory or time without end; leave other files to torch."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(Reading.COMPRESSED(path=path, filename=entry.filename[:80]))
            if entry.filename.endswith("/data.pkl"):
                if entry.file_size > _MAX_PICKLE_BYTES:
                    raise _refuse_objects(path, Reading.LONG_TABLE(file_size=entry.file_size))
                if _depth(archive.read(entry)) > _MAX_DEPTH:
                    raise _refuse_objects(path, Reading.DEEP_TABLE(max_depth=_MAX_DEPTH))


def _depth(pickled: bytes) -> int:
    """Return how deep values of a pickle are in each other, without running it.

    What holds another value twice, which holds another one twice, takes twice the time a level to be looked at.
    """
    deepest = 0
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[Any, int] = {}
    for operation, argument, _ in pickletools.genops(pickled):
        name = operation.name
        if name == "MARK":
            marks.append(len(stack))
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo.get(argument, 0))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        else:
            start = len(stack) - len(operation.stack_before)
            if pickletools.markobject in operation.stack_before:
                start = marks.pop() - operation.stack_before.index(pickletools.markobject)
            taken = stack[max(start, 0) :]
            del stack[max(start, 0) :]
            if operation.stack_after:
                stack.append(_depth_of(name, taken))
                deepest = max(deepest, stack[-1])
    return deepest


def _depth_of(operation: str, taken: list[int]) -> int:
    """Return how deep the value is that an operation makes of others."""
    if operation in ("SETITEM", "SETITEMS", "APPEND", "APPENDS", "ADDITEMS", "BUILD"):
        whole, *parts = taken
        return max([whole, *(1 + part for part in parts)])
    # A stored tensor is no deeper than its name.
    return 0 if operation == "BINPERSID" else 1 + max(taken, default=-1)


def _refuse_objects(path: Path, detail: str) -> CheckpointError:
    return CheckpointError(Reading.OBJECTS(path=path, detail=detail))
