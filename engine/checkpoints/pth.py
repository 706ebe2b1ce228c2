"""Reads `.pth` files: PyTorch's archives of a pickle and its tensors, of which only flat dicts of tensors are taken, or
one under `state_dict`, `module` or `model`.

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
# What programs that train put the tensors of their model under, one in the other; beside it an optimizer and counters.
_WRAPPERS, _MOST_WRAPPERS = ("state_dict", "module", "model"), 3
# Of the pickle, which names the tensors; the text encoder's takes 0.04 MB.
_MAX_PICKLE_BYTES = 2**19
# Of values in values; a tensor has four.
_MAX_DEPTH = 16
# Of values that are put into others, each as often as it is met; 12,000 tensors take a million.
_MAX_WORK = 2**23
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
        said = Reading.NOT_READ_BY_TORCH() if zipfile.is_zipfile(path) else Reading.NO_ARCHIVE()
        raise CheckpointError(Reading.NO_PTH(path=path, said=said)) from error
    loaded = _unwrapped(loaded)
    if not isinstance(loaded, dict) or not all(_is_entry(*item) for item in loaded.items()):
        kind = Reading.NESTED() if isinstance(loaded, dict) else type(loaded).__name__
        raise CheckpointError(Reading.NO_STATE_DICT(path=path, kind=kind))
    for name, tensor in loaded.items():
        if tensor.layout != torch.strided or tensor.untyped_storage().nbytes() < tensor.nbytes:
            raise CheckpointError(Reading.NO_PLAIN_TENSOR(path=path, name=name, shape=list(tensor.shape)))
    # Parameters too, which nobody is going to train here.
    return {name: tensor.detach() for name, tensor in loaded.items()}


def _unwrapped(loaded: Any) -> Any:
    """Return what a training program has put its model's tensors under; anything else as it is."""
    for _ in range(_MOST_WRAPPERS):
        if not isinstance(loaded, dict) or (loaded and all(_is_entry(*item) for item in loaded.items())):
            break
        inner = [loaded[name] for name in _WRAPPERS if isinstance(loaded.get(name), dict)]
        if len(inner) != 1:
            break
        loaded = inner[0]
    return loaded


def _is_entry(name: Any, tensor: Any) -> bool:
    return isinstance(name, str) and isinstance(tensor, torch.Tensor)


def _check_archive(path: Path) -> None:
    """Raise where the archive or its pickle would take memory or time without end; leave other files to torch."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        names = {entry.filename.rpartition("/")[2] for entry in archive.infolist()}
        lacking = next((name for name in ("data.pkl", "version") if name not in names), None)
        if lacking:
            raise CheckpointError(Reading.NO_PTH(path=path, said=Reading.LACKS_RECORD(name=lacking)))
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(Reading.COMPRESSED(path=path, filename=entry.filename[:80]))
            if entry.filename.endswith("/data.pkl"):
                if entry.file_size > _MAX_PICKLE_BYTES:
                    raise _refuse_objects(path, Reading.LONG_TABLE(file_size=entry.file_size))
                _check_pickle(path, archive.read(entry))


def _check_pickle(path: Path, pickled: bytes) -> None:
    """Raise where values of a pickle are deep in each other, or take long to look at, without running it.

    What holds another value twice, which holds another one twice, takes twice the time a level: it is counted as often
    as it is met.
    """
    work = 0
    # How deep the values are that each value holds, and how many these are.
    stack: list[tuple[int, int]] = []
    marks: list[int] = []
    memo: dict[Any, tuple[int, int]] = {}
    for operation, argument, _ in pickletools.genops(pickled):
        name = operation.name
        if name in _PLAIN:
            stack.append(_ONE)
            work += 1
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in _FROM_MEMO:
            stack.append(memo.get(argument, _ONE))
        elif name in _TO_MEMO:
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        else:
            num_taken, mark = _TAKES[name]
            start = max(marks.pop() - mark if mark is not None else len(stack) - num_taken, 0)
            taken = stack[start:]
            del stack[start:]
            if not operation.stack_after:
                continue
            # A stored tensor is no deeper than its name.
            depth, size = taken.pop(0) if name in _INTO_FIRST and taken else _ONE
            for inner_depth, inner_size in () if name == "BINPERSID" else taken:
                depth = max(depth, 1 + inner_depth)
                size += inner_size
                work += inner_size
            stack.append((depth, size))
            if depth > _MAX_DEPTH or work > _MAX_WORK:
                raise _refuse_objects(path, Reading.DEEP_TABLE(max_depth=_MAX_DEPTH))


_ONE = (0, 1)
# Operations that make a value of nothing; that put values into the first one of what they take; of the memo.
_PLAIN = frozenset(
    each.name
    for each in pickletools.opcodes
    if not each.stack_before and each.stack_after and each.name not in ("MARK", "GET", "BINGET", "LONG_BINGET")
)
_INTO_FIRST = frozenset({"SETITEM", "SETITEMS", "APPEND", "APPENDS", "ADDITEMS", "BUILD"})
_FROM_MEMO = frozenset({"GET", "BINGET", "LONG_BINGET"})
_TO_MEMO = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
# Of each other operation, how many values it takes, and how many of them lie before the mark.
_TAKES = {
    each.name: (
        len(each.stack_before),
        each.stack_before.index(pickletools.markobject) if pickletools.markobject in each.stack_before else None,
    )
    for each in pickletools.opcodes
}


def _refuse_objects(path: Path, detail: str) -> CheckpointError:
    return CheckpointError(Reading.OBJECTS(path=path, detail=detail))
