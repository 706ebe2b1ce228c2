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
from ..sentences import Said
from ..sentences.checkpoints import Reading

DOWNLOAD_AGAIN = Reading.DOWNLOAD_AGAIN()
# First bytes of files that get taken for weights or tokenizers, what they are, and what to do.
_FOREIGN_STARTS = (
    (b"GGUF", Reading.GGUF(), Reading.USE_EIGHT_BIT()),
    (b"version https://git-lfs", Reading.GIT_LFS(), Reading.GIT_LFS_PULL()),
    (b"<", Reading.WEB_PAGE(), Reading.LOG_IN()),
)
# What begins with one of these may be a .pth, but nothing else.
_ZIP_START = (b"PK\x03\x04", Reading.PTH_OR_ZIP(), Reading.USE_SAFETENSORS())
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
        return CheckpointError(Reading.NO_MEMORY(path=path, said=said))
    number = getattr(error, "errno", None)
    if number in _MISSING:
        return CheckpointError(Reading.MISSING(path=path))
    if number in _FORBIDDEN:
        return CheckpointError(Reading.FORBIDDEN(path=path))
    if number in _DRIVE:
        return CheckpointError(Reading.DRIVE(path=path, reason=_reason(error)))
    return CheckpointError(Reading.UNREADABLE(path=path, reason=_reason(error)))


def is_short_of_memory(error: Exception) -> bool:
    """Say whether the system refused RAM or room in its page file; the file is fine then."""
    is_refused = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    return is_refused or _MEMORY_WORDS.search(str(error)) is not None


def first_line(error: BaseException) -> str:
    said = str(error)
    return said if isinstance(said, Said) else said.partition("\n")[0]


def find_size(path: Path, expected: str) -> int:
    """Return the bytes of a regular file.

    Args: expected: what it should have been, for the sentence.

    Raises:
        CheckpointError: it is missing, a folder, a pipe or a device, or may not be looked at; or its name is not UTF-8.
    """
    # What a name has that is not UTF-8 is a surrogate in Python (os.fsdecode).
    if any("\ud800" <= each <= "\udfff" for each in str(path)):
        raise CheckpointError(Reading.NOT_UTF8(name=str(path).encode("utf-8", "replace").decode("utf-8")))
    try:
        found = os.stat(path)
    except ValueError as error:
        raise CheckpointError(Reading.NO_NAME(path=path, error=error, expected=expected)) from error
    except OSError as error:
        if error.errno in _MISSING:
            raise CheckpointError(Reading.NO_FILE(path=path, expected=expected)) from error
        raise unreadable(path, error) from error
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(Reading.NO_FILE(path=path, expected=expected))
    return found.st_size


def check_start(path: Path, start: bytes, expected: str, *, may_be_zip: bool = False) -> None:
    """Raise where the first bytes of a file are those of something else."""
    for magic, kind, advice in _FOREIGN_STARTS if may_be_zip else (*_FOREIGN_STARTS, _ZIP_START):
        # The length of a safetensors header may begin as a web page does, but then has zeros.
        if start.startswith(magic) and not (magic == b"<" and b"\0" in start[:8]):
            raise CheckpointError(Reading.IS_OTHER(path=path, kind=kind, expected=expected, advice=advice))


def check_ending(path: Path, start: bytes, expected: str) -> None:
    """Raise where a file that is not called so begins as a safetensors file: its name alone is wrong."""
    length = int.from_bytes(start[:8], "little")
    if path.suffix.lower() != ".safetensors" and start[8:9] == b"{" and 2 <= length <= os.stat(path).st_size - 8:
        raise CheckpointError(
            Reading.IS_OTHER(path=path, kind=Reading.SAFETENSORS_FILE(), expected=expected, advice=Reading.RENAME())
        )


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
        raise CheckpointError(Reading.TOO_LONG(path=path, size=size, expected=expected, limit=limit))
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
        raise CheckpointError(Reading.CHANGED(path=path, before=before[0], now=now[0]))


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or first_line(error) or type(error).__name__).rstrip(".")
