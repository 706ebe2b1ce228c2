"""Durations and sizes in words, wherever they are shown."""

from __future__ import annotations

from .constants import GIB
from .sentences.quantities import Quantities

_MIB = 2**20


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
    """Return a size as one reads it: 13.4 GiB, 80 MiB, 4.1 MiB."""
    if num_bytes >= 0.1 * GIB:
        return f"{num_bytes / GIB:.3g} GiB"
    return f"{num_bytes / _MIB:.2g} MiB" if num_bytes < 10 * _MIB else f"{num_bytes / _MIB:.0f} MiB"
