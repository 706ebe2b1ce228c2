"""What was found out about kernels on this machine, kept from one process to the next.

A file of JSON lines that are only ever added, and of which the first about a thing counts: processes that run at once
do not overwrite each other's, and all of them go by the same. What was found holds for one combination of card, driver
and versions, which every line names. A line that is not understood is left out; a file that cannot be written is made
up for by the memory of the process.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..sentences import read_again
from ..sentences.kernels import Running

logger = logging.getLogger(__name__)

# What the file holds in English: trials, how their processes ended, what was timed.
_TRIALS = (
    Running.LIGHTX2V_TRIAL,
    Running.CHOSEN,
    Running.ATTENTION,
    Running.ATTENTION_IN_PLACE,
    Running.LORAS_JOINED,
    Running.BLOCKS,
    Running.VAE_KERNELS,
    Running.MATMUL,
)
_ENDS = (Running.WITH_LAST_WORDS, Running.NOT_BACK, Running.OUTPUT_ENDED, Running.EXIT_CODE, Running.SIGNAL)
_PROBLEMS = (Running.ATTENTION_OF, Running.LINEARS_OF)

# Below ComfyUI's user folder, in one that is no user's and that it serves to nobody (its
# folder_paths.get_system_user_directory).
FILE = Path("__lightx2v", "kernels.jsonl")


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What is known of one combination."""

    trials: Mapping[str, str] = field(default_factory=dict)
    """Why a kernel's first trial ended its process, by trial; "" where the process survived."""
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Seconds by kernel, by the problem that was timed."""


class Notes:
    """The file, or nothing without a path."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._unsaved: list[dict[str, Any]] = []
        self._read: tuple[Any, list[dict[str, Any]]] = (None, [])

    @property
    def are_kept(self) -> bool:
        """Whether there is a place to keep them; without one nothing is measured, as no two processes would agree."""
        return self.path is not None

    def about(self, combination: str) -> Findings:
        """Return what was found for a combination of card and versions."""
        trials: dict[str, str] = {}
        measured: dict[str, dict[str, float]] = {}
        for line in (*self._lines(), *self._unsaved):
            if line["on"] == combination and "trial" in line:
                trials.setdefault(read_again(line["trial"], *_TRIALS), read_again(line["died"], *_ENDS))
            elif line["on"] == combination:
                measured.setdefault(read_again(line["problem"], *_PROBLEMS), line["seconds"])
        return Findings(trials=trials, measured=measured)

    def add_trial(self, combination: str, trial: str, died: str) -> None:
        """Note that a first trial ended its process, and why, or with "" that it did not."""
        self._add({"on": combination, "trial": trial, "died": died})

    def add_times(self, combination: str, problem: str, seconds: Mapping[str, float]) -> None:
        """Note how long each kernel took for a problem."""
        self._add({"on": combination, "problem": problem, "seconds": {name: seconds[name] for name in sorted(seconds)}})

    def forget(self) -> None:
        """Forget everything, of every combination.

        Raises:
            OSError: the file cannot be deleted.
        """
        self._unsaved.clear()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _add(self, line: dict[str, Any]) -> None:
        if self.path is None:
            return
        # Whoever died while writing left no end of a line.
        data = f"\n{json.dumps(line)}\n".encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                file.write(data)
        except OSError as error:
            if not self._unsaved:
                logger.warning("LightX2V: %s", Running.CANNOT_BE_KEPT(error=error))  # fmt: skip
            self._unsaved.append(line)

    def _lines(self) -> list[dict[str, Any]]:
        """Return the file's lines, read again where it changed."""
        if self.path is None:
            return []
        try:
            status = self.path.stat()
            stamp = (self.path, status.st_mtime_ns, status.st_size)
            if self._read[0] != stamp:
                self._read = (stamp, _understood(self.path, self.path.read_bytes().splitlines()))
        except FileNotFoundError:
            return []
        except OSError as error:
            if self._read[0] != str(error):
                logger.warning("LightX2V: %s", Running.CANNOT_BE_READ(error=error))
                self._read = (str(error), [])
        return self._read[1]


_notes = Notes()


def keep_in(path: Path | None) -> None:
    """Keep notes in this file from now on; None keeps none."""
    global _notes
    if path != _notes.path:
        _notes = Notes(path)


def notes() -> Notes:
    """Return this process's notes."""
    return _notes


def _understood(path: Path, lines: Iterable[bytes]) -> list[dict[str, Any]]:
    understood, num_damaged = [], 0
    for line in lines:
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            data = None
        if _is_note(data):
            understood.append(data)
        else:
            num_damaged += 1
    if num_damaged:
        logger.warning("LightX2V: %s", Running.DAMAGED_LINES_IGNORED(num_damaged=num_damaged, path=path))
    return understood


def _is_note(data: Any) -> bool:
    if not isinstance(data, dict) or not isinstance(data.get("on"), str):
        return False
    if "trial" in data:
        return isinstance(data["trial"], str) and isinstance(data.get("died"), str)
    seconds = data.get("seconds")
    return (
        isinstance(data.get("problem"), str)
        and isinstance(seconds, dict)
        and all(isinstance(each, float) and math.isfinite(each) and each > 0 for each in seconds.values())
    )
