"""Printing that never fails, in the language of the user: a result is not lost because nobody could be told of it."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, TextIO

from ..engine.sentences import translated
from ..engine.sentences.languages import language_of_environment


def language() -> str:
    """Return the language of the user."""
    return language_of_environment(os.environ)


def spoken(data: Any) -> Any:
    """Return a text, or data with texts, in the language of the user."""
    return translated(data, language())


def say(text: str = "", *, end: str = "\n") -> None:
    """Print to stdout."""
    write(sys.stdout, spoken(text) + end)


def complain(text: str = "", *, by: str = "", end: str = "\n") -> None:
    """Print to stderr. Args: by: the command, where it is one of several that may have said it."""
    write(sys.stderr, (f"{by}: " if by else "") + spoken(text) + end)


def write(stream: TextIO | None, text: str) -> None:
    """Write and flush; characters that the stream's encoding lacks are escaped.

    A stream that is closed (None, or 2>&-), or that takes no more (a full disk, a reader that has gone), takes nothing
    from then on, not even when Python flushes it at its end.
    """
    if stream is None:
        return
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError), open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), stream.fileno())


def is_live(stream: TextIO | None) -> bool:
    """Say whether somebody watches a stream."""
    with suppress(ValueError):
        return stream is not None and stream.isatty()
    return False
