"""What one side found: a folder of cases. Each is a tensor, or JSON data in which texts are."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

INDEX = "cases.jsonl"


class CannotRunError(Exception):
    """A case cannot run here; says why."""


class Record:
    """Writes cases into a folder.

    Args:
        folder: created if it is not there.
        only: patterns of the names of cases that are run; all where there is none.
        places: folders and what stands for them in texts, so that two sides in different places say the same.
    """

    def __init__(self, folder: Path, only: Sequence[str], places: Mapping[Path, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._only = only
        self._places = places
        self._index = (folder / INDEX).open("w", encoding="utf-8")
        self._count = 0

    def wants(self, name: str) -> bool:
        return not self._only or any(fnmatchcase(name, f"{pattern}*") for pattern in self._only)

    def case(self, name: str, run: Callable[[], Any]) -> None:
        """Run a case and note what it returns, what it raises, or why it cannot run."""
        if not self.wants(name):
            return
        start = time.process_time()
        try:
            value = run()
        except CannotRunError as reason:
            value = {"skipped": str(reason)}
        except Exception as error:  # noqa: BLE001 - what is raised is what is compared
            value = {"error": f"{type(error).__name__}: {error}"}
        self.put(name, value, time.process_time() - start)

    def put(self, name: str, value: Any, seconds: float = 0.0) -> None:
        """Note a tensor, or data."""
        line: dict[str, Any] = {"case": name, "seconds": round(seconds, 3)}
        if isinstance(value, torch.Tensor):
            line["tensor"] = f"{self._count}.pt"
            torch.save(value.cpu().contiguous().clone(), self._folder / line["tensor"])
        else:
            text = json.dumps(value, default=str)
            for place, sign in self._places.items():
                text = text.replace(json.dumps(str(place))[1:-1], sign)
            line["value"] = json.loads(text)
        self._count += 1
        self._index.write(json.dumps(line) + "\n")
        self._index.flush()


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the cases of a folder by name; a case that was noted twice is an error."""
    cases: dict[str, dict[str, Any]] = {}
    with (folder / INDEX).open(encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            if line["case"] in cases:
                raise ValueError(f"{folder} has two cases named {line['case']}")
            cases[line["case"]] = line
    return cases
