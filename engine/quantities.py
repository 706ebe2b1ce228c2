"""Durations and sizes in words, wherever they are shown."""

from __future__ import annotations

from .constants import GIB

_MIB = 2**20


def format_seconds(seconds: float) -> str:
    """Return a duration as one reads it: 4.2 s, 42 s, 3 min 5 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest} min"


def format_bytes(num_bytes: int) -> str:
    """Return a size as one reads it: 13.4 GiB, 80 MiB, 4.1 MiB."""
    if num_bytes >= 0.1 * GIB:
        return f"{num_bytes / GIB:.3g} GiB"
    return f"{num_bytes / _MIB:.2g} MiB" if num_bytes < 10 * _MIB else f"{num_bytes / _MIB:.0f} MiB"
