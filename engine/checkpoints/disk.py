"""Files as they turn up: gone, locked, cut short, on a share that does not answer, or of another kind altogether.

What the system refuses becomes a CheckpointError that names the file and what to do.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import CheckpointError

DOWNLOAD_AGAIN = "Download the file again; its size should match the one on the model page."
# First bytes of files that get taken for weights or tokenizers, what they are, and what to do.
_FOREIGN_STARTS = (
    (b"GGUF", "a GGUF file", "Use the FP8 or INT8 version in safetensors, or load GGUF with ComfyUI-GGUF."),
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself", "Run `git lfs pull`, or download the file."),
    (b"<", "a web page", "Log in or accept the licence on the model page, then download the file again."),
)
# What begins with one of these may be a .pth, but nothing else.
_ZIP_START = (b"PK\x03\x04", "a PyTorch .pth or .zip file", "Use the safetensors version.")
_LONGEST_START = 32

_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
_FORBIDDEN = {errno.EACCES, errno.EPERM}
_DRIVE = {
    getattr(errno, name)
    for name in (
        "EIO",
        "ESTALE",
        "ETIMEDOUT",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENETUNREACH",
        "ENODEV",
        "ENXIO",
        "ENOTCONN",
    )
    if hasattr(errno, name)
}
# How the system refuses memory: Linux, torch's allocator, and Windows, whose sentence is in the user's language.
_MEMORY_WORDS = re.compile(
    r"cannot allocate memory|can't allocate memory|not enough memory|paging file"
    r"|(?:os error |error code: <|winerror )1455\b",
    re.IGNORECASE,
)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the system refuses while a file or folder is read into CheckpointError."""
    try:
        yield
    except (OSError, MemoryError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """Return the sentence about a file or folder that the system does not let us read."""
    if is_short_of_memory(error):
        said = first_line(error) or type(error).__name__
        return CheckpointError(
            f"{path} could not be mapped: RAM or the page file is short ({said}). The file is fine. Close other "
            "programs; on Windows, enlarge the page file."
        )
    number = getattr(error, "errno", None)
    if number in _MISSING:
        return CheckpointError(f"{path} is missing. It was moved, renamed or deleted: check the name.")
    if number in _FORBIDDEN:
        return CheckpointError(
            f"{path} cannot be read: permission denied. Give the user who runs this program the right to read it, or "
            "close the program that holds it open."
        )
    if number in _DRIVE:
        return CheckpointError(
            f"{path} cannot be read: {_reason(error)}. Check the drive, or the connection to the network share."
        )
    return CheckpointError(f"{path} cannot be read: {_reason(error)}. Check the drive and the file.")


def is_short_of_memory(error: Exception) -> bool:
    """Say whether the system refused RAM or room in its page file; the file is fine then."""
    is_refused = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    return is_refused or _MEMORY_WORDS.search(str(error)) is not None


def first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def find_size(path: Path, expected: str) -> int:
    """Return the bytes of a regular file.

    Args: expected: what it should have been, for the sentence.

    Raises:
        CheckpointError: it is missing, a folder, a pipe or a device, or may not be looked at.
    """
    try:
        found = os.stat(path)
    except ValueError as error:
        raise CheckpointError(f"{path!r} is no name of a file ({error}); expected {expected}.") from error
    except OSError as error:
        if error.errno in _MISSING:
            raise CheckpointError(f"{path} is missing or not a file; expected {expected}. Check the name.") from error
        raise unreadable(path, error) from error
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{path} is missing or not a file; expected {expected}. Check the name.")
    return found.st_size


def check_start(path: Path, start: bytes, expected: str, *, may_be_zip: bool = False) -> None:
    """Raise where the first bytes of a file are those of something else."""
    for magic, kind, advice in _FOREIGN_STARTS if may_be_zip else (*_FOREIGN_STARTS, _ZIP_START):
        # The length of a safetensors header may begin as a web page does, but then has zeros.
        if start.startswith(magic) and not (magic == b"<" and b"\0" in start[:8]):
            raise CheckpointError(f"{path} is {kind}; expected {expected}. {advice}")


def read_start(file: BinaryIO) -> bytes:
    """Return as many first bytes as `check_start` looks at."""
    return file.read(_LONGEST_START)


def read_small(path: Path, limit: int, expected: str) -> bytes:
    """Return the bytes of a file that has no reason to be large.

    Raises:
        CheckpointError: it is missing or no regular file, larger than `limit` bytes, or cannot be read.
    """
    size = find_size(path, expected)
    if size > limit:
        raise CheckpointError(
            f"{path} is {size} bytes long; expected {expected}, of {limit} bytes at most. It is another file: download "
            "it again."
        )
    with reading(path):
        return path.read_bytes()


def list_folder(folder: Path) -> list[str]:
    """Return the names in a folder, sorted, without those that begin with a dot.

    Raises:
        CheckpointError: it is missing or may not be looked at.
    """
    with reading(folder):
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))


Stamp = tuple[int, int]
"""Size and time of a file, by which a change is noticed."""


def stamp(path: Path) -> Stamp:
    """Return what changes when a file does."""
    with reading(path):
        found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def check_unchanged(path: Path, before: Stamp) -> None:
    """Raise where a file is not as it was: what is mapped of it would be other weights, or none.

    Raises:
        CheckpointError: it has another size or time, or is gone.
    """
    now = stamp(path)
    if now != before:
        raise CheckpointError(
            f"{path} has changed since its loader looked at it (from {before[0]} to {now[0]} bytes). Run the loader "
            "again; where the file is still being copied or downloaded, when that has ended."
        )


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or first_line(error) or type(error).__name__).rstrip(".")
