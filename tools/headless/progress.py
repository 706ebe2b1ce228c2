"""What a run shows on stderr: one line a node, with a live bar on a terminal. stdout stays free for results."""

from __future__ import annotations

import copy
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from .. import console

_BAR_CELLS = 24
_TITLE_WIDTH = 30
_NOTE_WIDTH = 60


class Progress:
    """Shows a run; `quiet` leaves only what the caller prints itself."""

    def __init__(self, stream: TextIO | None, *, quiet: bool) -> None:
        self._stream = stream
        self._quiet = quiet
        self._is_live = console.is_live(stream) and not quiet
        self._line = ""
        self._num_nodes = 0
        self._index = 0
        self._title = ""
        self._text = ""
        self._started = 0.0

    def start_run(self, num_nodes: int) -> None:
        self._num_nodes = num_nodes
        self._index = 0

    def start_node(self, title: str, *, again: bool = False) -> None:
        """Begin a node's line. Args: again: it had begun before, and is counted."""
        self._index += not again
        self._title = console.spoken(title)
        self._text = ""
        self._started = time.perf_counter()
        self._draw(self._label())

    def update(self, value: int, total: int) -> None:
        """Show how far the current node is."""
        filled = _BAR_CELLS * value // max(total, 1)
        bar = "#" * filled + "-" * (_BAR_CELLS - filled)
        seconds = time.perf_counter() - self._started
        self._draw(f"{self._label()} [{bar}] {value}/{total}  {seconds:.0f} s  {self._text}")

    def note(self, text: str) -> None:
        """Show what the current node is doing; the first line of `text` has to do."""
        self._text = console.spoken(text).partition("\n")[0][:_NOTE_WIDTH]
        self._draw(f"{self._label()} {self._text}")

    def finish_node(self) -> float:
        """Close the current node's line; returns its seconds."""
        seconds = time.perf_counter() - self._started
        self.log(f"{self._label()} {seconds:8.2f} s")
        return seconds

    def log(self, text: str, *, by: str = "") -> None:
        """Print lines that stay. Args: by: the command that says so."""
        if not self._quiet:
            self._draw("")
            console.write(self._stream, (f"{by}: " if by else "") + f"{console.spoken(text)}\n")

    def clear(self) -> None:
        """Remove the live line."""
        self._draw("")

    def _label(self) -> str:
        return f"[{self._index}/{self._num_nodes}] {self._title:{_TITLE_WIDTH}}"

    def _draw(self, line: str) -> None:
        if self._is_live:
            line = line[: shutil.get_terminal_size().columns - 1]
            console.write(self._stream, "\r" + line.ljust(len(self._line)) + ("\r" if not line else ""))
            self._line = line


class ProgressHandler(logging.Handler):
    """Prints log records above the live line."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.args, tuple) and record.args:
            # Other handlers get the record too, and stay with English.
            record = copy.copy(record)
            record.args = tuple(console.spoken(each) if isinstance(each, str) else each for each in record.args)
        self._progress.log(self.format(record))


@contextmanager
def logging_to(progress: Progress) -> Iterator[None]:
    """Show warnings of everybody and the pack's own INFO lines on stderr."""
    handler = ProgressHandler(progress)
    root, pack = logging.getLogger(), logging.getLogger(__name__.partition(".")[0])
    root.addHandler(handler)
    pack.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
