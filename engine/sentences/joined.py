"""Lists in words."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from . import Sentence


class Joined:
    """What stands between two parts of a list."""

    AND = Sentence("{first} and {last}")
    OR = Sentence("{first} or {last}")


def both(parts: Iterable[str]) -> str:
    """Return e.g. "this and that"; "" of nothing."""
    return _join(Joined.AND, parts)


def either(parts: Iterable[str]) -> str:
    """Return e.g. "this or that"; "" of nothing."""
    return _join(Joined.OR, parts)


def _join(sentence: Sentence, parts: Iterable[str]) -> str:
    listed = list(parts)
    return functools.reduce(lambda first, last: sentence(first=first, last=last), listed) if listed else ""
