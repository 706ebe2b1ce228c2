"""Work that the editor starts: in a thread, one at a time, to be stopped and waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ..sentences.doctor import Doctor


class StoppedError(Exception):
    """The user stopped the work."""


class Background:
    """Base of what does one piece of work at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def stop(self) -> None:
        """Ask the work to end."""
        self._stop.set()

    def wait(self) -> None:
        """Wait until nothing is being done."""
        if self._thread is not None:
            self._thread.join()

    def _begin(self, name: str, work: Callable[..., None], *given: object) -> str:
        """Start a thread of this name; return why there is none, or ""."""
        self._stop.clear()
        self._thread = threading.Thread(target=work, args=given, name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._thread = None
            return Doctor.RESTART(error=error)
        return ""

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise StoppedError
