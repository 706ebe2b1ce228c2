"""Places where a workflow can be run (this process, a ComfyUI server) as workers of the queue."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ..headless.errors import ServerError
from ..headless.places import Place, Task
from ..headless.progress import Progress
from ..headless.report import RunLog
from .jobs import Job
from .queue import Made, WorkerLostError


class PlaceWorker:
    """Makes clips where a workflow can be run."""

    def __init__(
        self,
        name: str,
        place: Place,
        workflow: Path,
        timeout: float | None,
        progress: Progress,
        gpus: int | None = None,
    ) -> None:
        """Args:
        name: for messages and the results file.
        place: this process or a server.
        workflow: the file that makes a clip.
        timeout: seconds after which a clip has failed.
        progress: shows each run.
        gpus: that compute a clip together; None is what the workflow says.
        """
        self.name = name
        self._place = place
        self._workflow = workflow
        self._timeout = timeout
        self._progress = progress
        self._gpus = gpus

    def make(self, job: Job, folder: Path) -> Made:
        log = RunLog()
        task = Task(
            workflow=self._workflow,
            assignments=job.values,
            output_dir=folder,
            timeout=self._timeout,
            gpus=self._gpus,
        )
        start = time.perf_counter()
        try:
            self._place.run(task, self._progress, log)
        except ServerError as error:
            raise WorkerLostError(str(error), had_clip=log.is_queued) from error
        finally:
            self._progress.clear()
        seconds = round(time.perf_counter() - start, 3)
        for warning in log.warnings:
            self._progress.log(warning, by="run_prompts")
        return Made(files=log.outputs, seconds=seconds, facts=facts_of(log.engine))

    def stop(self) -> None:
        self._place.stop()


def facts_of(engine: dict[str, Any]) -> dict[str, Any]:
    """Return what the results file says of how a clip was made, of a run report."""
    plans = [stage["details"].get("plan") for stage in engine.get("stages", ()) if stage.get("stage") == "sample"]
    facts = {"card": engine.get("device"), "plan": plans[-1].get("line") if plans and plans[-1] else None}
    return {name: value for name, value in facts.items() if value}
