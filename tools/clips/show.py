"""What is shown of a list while it is made, and noted: lines on stderr, lines in the results file, a summary."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from ...engine.sentences.tools import Clips
from .. import console
from ..headless.errors import Cancelled, CommandError
from .jobs import Job
from .queue import Made
from .results import Results


@dataclass(kw_only=True)
class Desk:
    """Notes and shows what happens to clips; an Observer of the queue."""

    results: Results
    num_jobs: int
    """That are to be made now."""
    quiet: bool
    names_workers: bool
    """Whether there are several."""
    num_made: int = 0
    num_failed: int = 0
    num_lost: int = 0
    seconds_by_worker: dict[str, list[float]] = field(default_factory=dict)
    _begun: float = field(default_factory=time.monotonic)
    _numbers: dict[str, int] = field(default_factory=dict)
    """By key: which of the clips that are made now a clip is, from 1."""

    def began(self, job: Job, worker: str) -> None:
        number = self._numbers.setdefault(job.key, len(self._numbers) + 1)
        on = Clips.ON_WORKER(worker=worker) if self.names_workers else ""
        begins = Clips.CLIP_BEGINS(number=number, num_jobs=self.num_jobs, seed=job.seed, on=on, prompt=job.prompt)
        self._say(begins)

    def made(self, job: Job, worker: str, made: Made, tries: int) -> None:
        outputs = [str(path) for path in made.files]
        self.results.note(
            job, "ok", seconds=made.seconds, outputs=outputs, error=None, worker=worker, tries=tries, **made.facts
        )
        self.num_made += 1
        self.seconds_by_worker.setdefault(worker, []).append(made.seconds)
        for output in outputs:
            console.say(output)

    def failed(self, job: Job, worker: str, error: CommandError, tries: int, *, is_last: bool) -> None:
        console.complain(str(error), by="run_prompts")
        if not is_last:
            self._say(Clips.GOES_TO_ANOTHER(index=job.index))
            return
        status = "cancelled" if isinstance(error, Cancelled) else "failed"
        self.num_failed += status == "failed"
        self.results.note(job, status, seconds=None, outputs=[], error=str(error), worker=worker, tries=tries)

    def lost(self, worker: str, reason: str, job: Job | None) -> None:
        self.num_lost += 1
        goes_on = Clips.AND_GOES_TO_ANOTHER(index=job.index) if job else ""
        console.complain(Clips.LEFT_OUT(worker=worker, reason=reason, goes_on=goes_on), by="run_prompts")

    def left(self, seconds: float) -> None:
        done = self.num_made + self.num_failed
        failed = Clips.OF_THEM_FAILED(num_failed=self.num_failed) if self.num_failed else ""
        if done < self.num_jobs:
            self._say(Clips.DONE_SO_FAR(done=done, num_jobs=self.num_jobs, failed=failed, time=in_words(seconds)))

    def summary(self) -> dict[str, Any]:
        """Return what the whole list took, as JSON data."""
        seconds = time.monotonic() - self._begun
        return {
            "clips": self.num_jobs,
            "made": self.num_made,
            "failed": self.num_failed,
            "workers_lost": self.num_lost,
            "seconds": round(seconds, 1),
            "clips_per_hour": round(self.num_made / seconds * 3600, 2) if seconds else None,
            "workers": {
                name: {"clips": len(each), "seconds_a_clip": round(sum(each) / len(each), 2)}
                for name, each in sorted(self.seconds_by_worker.items())
            },
        }

    def _say(self, text: str) -> None:
        if not self.quiet:
            console.complain(text)


def in_words(seconds: float) -> str:
    """Return a time as people say it, such as "3 min" or "2 h 5 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
