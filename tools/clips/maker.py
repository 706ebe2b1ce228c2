"""What runs in an actor of a Ray cluster (cluster.py): clips made there, handed over as they are."""

from __future__ import annotations

import os
import shutil
import socket
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...engine.temporary import make_folder
from ..headless.errors import CommandError
from ..headless.places import Here, Task
from ..headless.progress import Progress
from ..headless.report import RunLog
from .workers import facts_of


class ClipMaker:
    """This process, with the models loaded from clip to clip."""

    def __init__(self, *, models_dir: str, workflow: bytes, timeout: float | None, gpus: int | None) -> None:
        """Args:
        models_dir: on this machine.
        workflow: content of the file that makes a clip.
        timeout: seconds after which a clip has failed.
        gpus: that compute a clip together; None is what the workflow says.
        """
        folder, self._lock = make_folder("lightx2v-clips-")
        # Where the process is killed, the next one's does it.
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._folder = folder.resolve()
        self._workflow = self._folder / "workflow.json"
        self._workflow.write_bytes(workflow)
        self._timeout, self._gpus = timeout, gpus
        self._place = Here(Path(models_dir), self._folder, keeps_models=True)

    def describe(self) -> str:
        """Return what this worker is called: machine, and process."""
        return f"{socket.gethostname()}:{os.getpid()}"

    def make(self, name: str, values: Sequence[str]) -> tuple[str, Any]:
        """Make a clip.

        Returns:
            "made" and (files with their place and content, facts); or the name of an error of headless/errors.py, and
            its text.
        """
        log, folder = RunLog(), self._folder / name
        task = Task(
            workflow=self._workflow,
            assignments=values,
            output_dir=folder,
            timeout=self._timeout,
            gpus=self._gpus,
        )
        try:
            self._place.run(task, Progress(None, quiet=True), log)
            files = [(str(path.relative_to(folder)), path.read_bytes()) for path in log.outputs]
        except CommandError as error:
            return type(error).__name__, str(error)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return "made", (files, facts_of(log.engine))

    def stop(self) -> None:
        """Cancel what is made, and refuse all else."""
        self._place.stop()
