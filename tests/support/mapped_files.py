"""Which files this process has mapped into its memory, by /proc."""

from pathlib import Path

import pytest

MAPS = Path("/proc/self/maps")
needs_proc = pytest.mark.skipif(not MAPS.exists(), reason="reads /proc/self/maps (Linux)")


def mapped_files():
    """Return (first address, address after the last, path) of every mapping that has a name."""
    lines = [line.split(maxsplit=5) for line in MAPS.read_text().splitlines()]
    return [(*(int(part, 16) for part in line[0].split("-")), line[5]) for line in lines if len(line) == 6]


def file_of(tensor):
    """Return the path that a tensor is mapped from; it must be one."""
    (path,) = [path for start, end, path in mapped_files() if start <= tensor.data_ptr() < end]
    return Path(path)


def mapped_below(folder):
    """Return the paths of mapped files that begin with `folder`."""
    return {Path(path) for _, _, path in mapped_files() if path.startswith(str(folder))}
