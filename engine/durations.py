"""A duration in words, wherever one is shown."""

from __future__ import annotations


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
