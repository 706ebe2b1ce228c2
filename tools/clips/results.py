"""What is made: one line of JSON a clip, and files that come to their place whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ...engine.errors import MALFORMED
from ...engine.sentences.tools import Clips, Saving
from .. import console
from ..saving import Kind, refusal
from .jobs import Job

RESULTS = Kind(other=Saving.NO_RESULTS, records=(("prompt", "seed", "status"),), in_lines=True)

_FIRST_FILE = re.compile(r"\d{5}_s-?\d+_(?P<key>[0-9a-f]{8})$")


class Results:
    """The results file of a list, and the folder that its clips go to."""

    def __init__(self, path: Path, output_dir: Path) -> None:
        """Args: path: of the results file, which need not be there.

        Raises:
            OSError: it cannot be read, or nothing can be added to it.
        """
        self.path = path
        self._output_dir = output_dir
        self._keys: set[str] = set()
        # Lines of version 0.2 have no key.
        self._old: set[tuple[int, str]] = set()
        self._read()
        # Before anything is made: whether it can be noted.
        self._append("")

    def is_done(self, job: Job) -> bool:
        return job.key in self._keys or (job.seed, job.prompt) in self._old

    def note(self, job: Job, status: str, **facts: Any) -> None:
        """Add the line of a clip.

        Args:
            status: ok | failed | cancelled.
            facts: what else is known of it.

        Raises:
            OSError: there is no room, or no right to.
        """
        if status == "ok":
            self._keys.add(job.key)
        line = {"prompt": job.prompt, "seed": job.seed, "status": status, **facts, "key": job.key}
        try:
            self._append(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def adopt(self, jobs: Sequence[Job]) -> None:
        """Note clips whose file is there and whose line is not: what ended between the two."""
        missing = {job.key[:8]: job for job in jobs if not self.is_done(job)}
        for path in sorted(self._output_dir.rglob("*")) if missing and self._output_dir.is_dir() else ():
            named = _FIRST_FILE.match(path.stem)
            # A folder whose name starts with a dot is where a worker that was ended has left its own.
            is_whole = not any(part.startswith(".") for part in path.relative_to(self._output_dir).parts)
            if named and is_whole and named["key"] in missing:
                self.note(missing.pop(named["key"]), "ok", seconds=None, outputs=[str(path)], error=None)

    @contextmanager
    def parts(self, job: Job) -> Iterator[Path]:
        """Yield a folder of its own for what a worker makes; it goes with what was not published.

        It is made when the worker first writes to it.
        """
        folder = self._output_dir / f".{job.name}.{uuid.uuid4().hex[:8]}.part"
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, job: Job, folder: Path, files: Sequence[Path]) -> list[Path]:
        """Move a worker's files to their place, each whole; in its sub-folders, under the clip's name.

        The first file comes last: where it is, the others are. Where a sub-folder cannot be written, a file goes to the
        folder of all, which is said.

        Raises:
            OSError: there is no room, or no right to.
        """
        placed = []
        for number, file in reversed(list(enumerate(files, start=1))):
            more = "" if number == 1 else f"_{number}"
            place = file.resolve().relative_to(folder.resolve())
            target = self._output_dir / place.with_name(f"{job.name}{more}{file.suffix}")
            with file.open("rb+") as content:
                os.fsync(content.fileno())
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
            except OSError as error:
                folder, target = target.parent, self._output_dir / target.name
                os.replace(file, target)
                why = refusal(folder, Saving.THE_FOLDER(), error)
                console.complain(Saving.OTHER_FOLDER(file=target, folder=folder, why=why), by="run_prompts")
            placed.append(target)
        return placed[::-1]

    def _read(self) -> None:
        """Read which clips are done; lines that are no results are named and passed over."""
        lines = self.path.read_bytes().split(b"\n") if self.path.is_file() else []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                result = json.loads(line)
                if result["status"] == "ok":
                    named = (int(result["seed"]), str(result["prompt"]))
                    if "key" in result:
                        self._keys.add(str(result["key"]))
                    else:
                        self._old.add(named)
            except MALFORMED as error:
                problem = Clips.NO_RESULT(
                    name=self.path.name, number=number, kind=type(error).__name__, error=error, path=self.path
                )
                console.complain(problem, by="run_prompts")

    def _append(self, text: str) -> None:
        """Add a line; one that was cut in the middle ends where it is."""
        with self.path.open("a+b") as file:
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    text = f"\n{text}"
            # A path that is not UTF-8 comes as half a surrogate pair, which JSON has an escape for.
            file.write(text.encode("utf-8", "backslashreplace"))
            file.flush()
            with suppress(OSError):  # what is no file on a drive, such as a pipe
                os.fsync(file.fileno())
