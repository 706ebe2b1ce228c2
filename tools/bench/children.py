"""Processes of their own for runs that must not share memory, and may crash; the next one can import ahead of time.

Imported as `lightx2v_pack.tools.bench.children`, after the script has registered the pack.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


class Child:
    """A Python process that waits for a line on its standard input before it begins.

    Args:
        command: arguments for this Python.
        log: file for its output.
        environment: added to this process's.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
            )

    def run(self) -> None:
        """Let it begin."""
        assert self._process.stdin is not None
        # A process that failed already has closed the pipe; its log says why.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"\n")
            self._process.stdin.close()

    def wait(self, seconds: float) -> str:
        """Wait for the end, for so many seconds at most; return what went wrong, or nothing."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.stop()
            return f"stopped after {seconds:.0f} s"
        if not code:
            return ""
        lines = [line for line in self.log_lines() if line.strip()]
        return next((line[:300] for line in reversed(lines) if "Error" in line), f"ended with {code}")

    def stop(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.wait()

    def log_lines(self) -> list[str]:
        return self._log.read_text(errors="replace").splitlines()


def wait_for_turn() -> None:
    """In the child: wait for the parent's `run`."""
    sys.stdin.readline()
