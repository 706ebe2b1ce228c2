"""Files and folders that the process may not look at, whoever runs the tests."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

NOBODY = 65534
needs_rights = pytest.mark.skipif(os.name == "nt", reason="rights are not numbers on Windows")


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """Give a folder that every user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="lightx2v-rights-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def forbidden(*paths: Path) -> Iterator[None]:
    """Take the rights of files and folders away, and from root what root may nevertheless.

    What lies beside and below them is made readable for every user.
    """
    home = Path(tempfile.gettempdir())
    for path in paths:
        top = path.parents[len(path.parents) - len(home.parts) - 1]
        for each in (top, *top.rglob("*")):
            each.chmod(0o755)
    before = {path: path.stat().st_mode for path in paths}
    user = os.geteuid()
    for path in paths:
        path.chmod(0)
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)
        for path, mode in before.items():
            path.chmod(mode)
