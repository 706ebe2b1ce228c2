"""The exceptions users see. Every message says what failed, what was found, what was expected, what to do.

Bad values of a widget or an input are plain `ValueError`; ComfyUI's interrupt and out-of-memory
exceptions are never wrapped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# user:password@ of a URL, up to the last @ before the path.
_CREDENTIALS = re.compile(r"(?<=://)[^/?#\s'\"]*@")


def without_passwords(text: str) -> str:
    """Return a text in which URLs have no user and password, as everything that is printed, logged or reported."""
    return _CREDENTIALS.sub("", text)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError when `value` is not one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of: {', '.join(choices)}.")


class LightX2VError(RuntimeError):
    """Base class of the pack's own errors."""


class CheckpointError(LightX2VError):
    """A checkpoint file or folder cannot be used: missing, truncated, incomplete or of the wrong kind."""


class UnsupportedHardwareError(LightX2VError):
    """The chosen setting needs a device that is not here."""


class MissingDependencyError(LightX2VError):
    """The chosen setting needs a package that is not installed."""


class NoCapableBackendError(LightX2VError):
    """No back end can do the job; carries the reason of each."""

    def __init__(self, task: str, reasons: Mapping[str, str]) -> None:
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        super().__init__(f"No back end can run {task}. {listed}")
        self.reasons = dict(reasons)


class NothingFitsError(LightX2VError):
    """No way to hold the weights leaves enough memory for a clip of this size."""


class NonFiniteLatentsError(LightX2VError):
    """A sampling step produced NaN or infinity."""
