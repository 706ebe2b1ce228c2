"""The exceptions users see. Every message says what failed, what was found, what was expected, what to do.

Bad values of a widget or an input are plain `ValueError`; ComfyUI's interrupt and out-of-memory
exceptions are never wrapped.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from itertools import islice

from .sentences import Said, joined
from .sentences.between import Between
from .sentences.data import Data
from .sentences.settings import Settings

# user:password@ of a URL, up to the last @ before the path.
_CREDENTIALS = re.compile(r"(?<=://)[^/?#\s'\"]*@")


# What is raised where foreign bytes turn out not to be what they were taken for, and nobody looked for just that.
MALFORMED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


def in_words(error: BaseException) -> str:
    """Return what is wrong with data, of the error (see MALFORMED) that reading it ended with; no word of Python's."""
    said = error.args[0] if error.args else ""
    if isinstance(said, Said):
        return said
    if isinstance(error, json.JSONDecodeError):
        return Data.NO_JSON(line=error.lineno, column=error.colno)
    if isinstance(error, UnicodeError):
        return Data.NO_TEXT()
    if isinstance(error, RecursionError):
        return Data.TOO_DEEP()
    if isinstance(error, KeyError) and isinstance(said, str):
        return Data.LACKS(name=said[:60])
    return Data.BUILT_OTHERWISE()


# A message names so many of a list, looked for among so many.
_NUM_NEAREST, _NUM_COMPARED = 3, 1000


def nearest(name: str, names: Iterable[str], count: int = _NUM_NEAREST) -> list[str]:
    """Return the few of `names` that are most like `name`, for messages."""
    known = list(islice(names, _NUM_COMPARED))
    lowered = {known_name.lower(): known_name for known_name in reversed(known)}
    close = difflib.get_close_matches(name.lower(), lowered, n=count, cutoff=0.4)
    return list(dict.fromkeys([*(lowered[match] for match in close), *known]))[:count]


def without_passwords(text: str) -> str:
    """Return a text in which URLs have no user and password, as everything that is printed, logged or reported.

    A text without any is returned as it is: a sentence stays one, for other languages.
    """
    plain, count = _CREDENTIALS.subn("", text)
    return plain if count else text


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError when `value` is not one of `choices`."""
    if value not in choices:
        raise ValueError(Settings.NO_CHOICE(name=name, value=value, choices=", ".join(choices)))


class LightX2VError(RuntimeError):
    """Base class of the pack's own errors."""

    def __init_subclass__(cls) -> None:
        # ComfyUI shows it before the name; the module's own is the folder that the pack is installed in.
        cls.__module__ = "LightX2V"


class CheckpointError(LightX2VError):
    """A checkpoint file or folder cannot be used: missing, truncated, incomplete or of the wrong kind."""


class UnsupportedHardwareError(LightX2VError):
    """The chosen setting needs a device that is not here."""


class RankError(LightX2VError):
    """One of several GPUs that compute a clip has failed; all of them were stopped."""


class MissingDependencyError(LightX2VError):
    """The chosen setting needs a package that is not installed."""


class NoCapableBackendError(LightX2VError):
    """No back end can do the job; carries the reason of each."""

    def __init__(self, task: str, reasons: Mapping[str, str]) -> None:
        listed = [Settings.REASON(name=name, reason=reason) for name, reason in reasons.items()]
        super().__init__(Settings.NO_BACK_END(task=task, listed=joined(listed, Between.SEMICOLON)))
        self.reasons = dict(reasons)


class NothingFitsError(LightX2VError):
    """No way to hold the weights leaves enough memory for a clip of this size."""


class NonFiniteLatentsError(LightX2VError):
    """A sampling step or a VAE produced NaN or infinity, or latents to decode hold them."""
