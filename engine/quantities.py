"""Durations and sizes in words, wherever they are shown: the one place that decides the units."""

from __future__ import annotations

from .constants import GIB
from .sentences.quantities import Quantities

_SMALL = (("MiB", 2**20), ("KiB", 2**10))


def format_seconds(seconds: float) -> str:
    """Return a duration as one reads it: 4.2 s, 42 s, 3 min 5 s, 2 h 5 min."""
    if seconds < 100:
        return Quantities.SECONDS(seconds=f"{seconds:.1f}" if seconds < 10 else f"{seconds:.0f}")
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return Quantities.MINUTES(minutes=minutes, seconds=rest)
    hours, rest = divmod(round(seconds / 60), 60)
    return Quantities.HOURS(hours=hours, minutes=rest)


def format_bytes(num_bytes: int) -> str:
    """Return a size as one reads it, of files, downloads, drives and memory alike: 13.4 GiB, 931 GiB, 80 MiB, 4.1 MiB.

    js/quantities.js has the same for the panels.
    """
    if num_bytes >= 0.1 * GIB:
        size = num_bytes / GIB
        return f"{size:.0f} GiB" if size >= 100 else f"{size:.3g} GiB"
    for unit, divisor in _SMALL:
        if num_bytes >= divisor:
            size = num_bytes / divisor
            return f"{size:.2g} {unit}" if size < 10 else f"{size:.0f} {unit}"
    return f"{num_bytes} B"
