"""The one download that the editor may start: a published variant, in a thread, with progress to ask for."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..adapters.hub.download import download
from ..checkpoints.published import Variant
from ..errors import LightX2VError, without_passwords
from ..sentences.hub import Hub
from .background import Background, StoppedError

logger = logging.getLogger(__name__)

_PACE_SECONDS, _LEAST_SECONDS = 30.0, 2.0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where the download is; `name` is empty before the first one."""

    name: str = ""
    is_running: bool = False
    is_complete: bool = False
    """Whether everything has arrived, is right, and is a checkpoint that the loader takes."""
    done_bytes: int = 0
    num_bytes: int = 0
    what: str = ""
    """The file that is fetched or checked."""
    bytes_per_second: float | None = None
    """Pace of the last half minute; None before it is known."""
    seconds_left: float | None = None
    problem: str = ""
    """Why it ended otherwise; empty while it runs and after it succeeded."""


class Downloads(Background):
    """Runs one download at a time; a new one, or the same again, goes on where the last one stopped."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._pace: deque[tuple[float, int]] = deque()
        self.progress = Progress()

    def start(self, variant: Variant, models_dir: Path, *, endpoint: str | None = None) -> None:
        """Start fetching; `endpoint` is the hub's base URL, None takes HF_ENDPOINT, else huggingface.co.

        Raises:
            ValueError: a download is running.
        """
        with self._lock:
            if self.progress.is_running:
                raise ValueError(Hub.IS_RUNNING(name=self.progress.name))
            self._pace.clear()
            self.progress = Progress(name=variant.name, is_running=True, num_bytes=variant.num_bytes)
            problem = self._begin("lightx2v-download", self._run, variant, models_dir, endpoint)
            if problem:
                self.progress = Progress(name=variant.name, problem=problem)

    def _run(self, variant: Variant, models_dir: Path, endpoint: str | None) -> None:
        # Success is known by the last line of the work; whatever else ends this thread is a failure.
        problem: str = Hub.ENDED()
        is_complete = False
        try:
            download(variant, models_dir, on_progress=self._note, check_cancel=self._check_stop, endpoint=endpoint)
            is_complete, problem = True, ""
        except StoppedError:
            problem = Hub.STOPPED()
        except (LightX2VError, OSError) as error:
            problem = str(error)
            logger.warning("LightX2V: %s", Hub.FAILED(name=variant.name, error=error))
        except Exception as error:
            kind = type(error).__name__
            problem = Hub.REPORT(kind=kind, error=error)
            raise
        finally:
            last = self.progress
            self.progress = Progress(
                name=variant.name,
                is_complete=is_complete,
                done_bytes=last.done_bytes,
                num_bytes=last.num_bytes,
                problem=without_passwords(problem),
            )

    def _note(self, done: int, total: int, what: str) -> None:
        now, pace = self._clock(), self._pace
        pace.append((now, done))
        while len(pace) > 2 and pace[1][0] <= now - _PACE_SECONDS:
            pace.popleft()
        begun, before = pace[0]
        rate = (done - before) / (now - begun) if done > before and now - begun >= _LEAST_SECONDS else None
        self.progress = Progress(
            name=self.progress.name,
            is_running=True,
            done_bytes=done,
            num_bytes=total,
            what=what,
            bytes_per_second=rate,
            seconds_left=(total - done) / rate if rate else None,
        )
