"""Folders for temporary files that do not stay behind, whatever ends their process: the next one removes them."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import IO


def make_folder(prefix: str, locked: str = "lock") -> tuple[Path, IO[bytes]]:
    """Return a new folder, and a file in it that is locked for as long as a process has it open, or a child of it.

    Folders of the same prefix whose file nobody has open any more are removed. On Windows, where there is no such lock,
    they stay.

    Args:
        prefix: of the folder's name, in the system's folder for temporary files.
        locked: name of the file.
    """
    if sys.platform == "win32":
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        return folder, (folder / locked).open("w+b")
    import fcntl

    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        # What cannot be locked is in use, or another user's.
        with contextlib.suppress(OSError), (left / locked).open("rb") as found:
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    new = folder / f"{locked}.new"
    file = new.open("w+b")
    # On a network drive there may be no locks: then there are none for the others either.
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # Only under its name can it be taken for one that was left.
    new.rename(folder / locked)
    return folder, file
