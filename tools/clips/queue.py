"""Who makes what: workers take clips from one queue, so that a fast one makes more of them.

A clip whose worker is lost goes to the next one, ahead of the others. One that fails is tried by each worker once, as
another card may have the memory for it. Nothing here knows what a worker is.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ...engine.sentences.tools import Clips
from ..headless.errors import Cancelled, CommandError, RunError, ServerError
from .forecast import is_better_left, seconds_left
from .jobs import Job

# How often what has happened is looked at, also so that Ctrl-C is seen on every system.
_TICK_SECONDS = 0.2
# How long a worker that was lost is left alone.
_REST_SECONDS = 10.0
# How long to wait for lost workers where there are no others.
_PATIENCE_SECONDS = 120.0
# How long workers have to end what they do when all is cancelled.
_STOP_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Made:
    """A clip."""

    files: Sequence[Path]
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)
    """For the results file: the card, the plan."""


class WorkerLostError(ServerError):
    """A worker is gone."""

    def __init__(self, message: str, *, had_clip: bool, comes_back: bool = True) -> None:
        """Args:
        had_clip: whether it was making the clip already, which may be what ended it.
        comes_back: whether it may be asked again; else only another one can come.
        """
        super().__init__(message)
        self.had_clip = had_clip
        self.comes_back = comes_back


class Worker(Protocol):
    """Makes one clip at a time."""

    name: str

    def make(self, job: Job, folder: Path) -> Made:
        """Make a clip, into a folder of its own.

        Raises:
            RunError: this clip failed.
            WorkerLostError: the worker is gone; it may be asked again later.
            CommandError: of another kind: the worker takes no clip.
        """

    def stop(self) -> None:
        """Cancel what it does, and refuse all else; for another thread."""


class Workers(Protocol):
    """Where workers come from."""

    def find(self) -> Sequence[Worker]:
        """Return those that have come since the last call; a worker that is lost may come again as another one."""

    def close(self) -> None:
        """Give back what they hold."""


class Fixed:
    """Workers that are known from the start, and come back by themselves where they are lost."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._new = list(workers)

    def find(self) -> Sequence[Worker]:
        found, self._new = self._new, []
        return found

    def close(self) -> None:
        pass


class Observer(Protocol):
    """Is told what happens, in the thread that runs the queue."""

    def began(self, job: Job, worker: str) -> None: ...

    def made(self, job: Job, worker: str, made: Made, tries: int) -> None:
        """Raises: OSError: it cannot be noted."""

    def failed(self, job: Job, worker: str, error: CommandError, tries: int, *, is_last: bool) -> None:
        """Args: is_last: whether the clip is given up."""

    def lost(self, worker: str, reason: str, job: Job | None) -> None:
        """Args: job: what it was making, which goes to another worker."""

    def left(self, seconds: float) -> None:
        """Args: seconds: until all is done, for all that is known."""


@dataclass(kw_only=True)
class _Task:
    """A clip and what has become of it."""

    job: Job
    tries: int = 0
    losses: int = 0
    failed_by: set[_Member] = field(default_factory=set)


@dataclass(kw_only=True, eq=False)
class _Member:
    """A worker and what is known of it."""

    worker: Worker
    task: _Task | None = None
    since: float = 0.0
    """When it began, or when it may be asked again."""
    seconds: list[float] = field(default_factory=list)
    """Of the clips that it has made."""
    is_resting: bool = False

    @property
    def pace(self) -> float | None:
        """Seconds of a clip; the first one of several loads the models too."""
        known = self.seconds[1:] or self.seconds
        return sum(known) / len(known) if known else None


class ClipQueue:
    """Clips that wait, and workers that make them."""

    def __init__(
        self,
        jobs: Sequence[Job],
        workers: Workers,
        observer: Observer,
        make: Callable[[Worker, Job], Made],
        *,
        retries: int,
        rest: float = _REST_SECONDS,
        patience: float = _PATIENCE_SECONDS,
    ) -> None:
        """Args:
        jobs: in the order in which they are begun.
        workers: who makes them.
        observer: is told.
        make: has a worker make a clip, and puts it in its place; called in a thread of its own.
        retries: how many lost workers, and failures, more than one a clip may have.
        rest: seconds that a lost worker is left alone.
        patience: seconds to wait for lost workers where there are no others.
        """
        self._waiting = [_Task(job=job) for job in jobs]
        self._workers, self._observer, self._make = workers, observer, make
        self._retries, self._rest, self._patience = retries, rest, patience
        self._members: list[_Member] = []
        self._ended: queue.Queue[tuple[_Member, Made | BaseException]] = queue.Queue()
        self._last_seen = time.monotonic()
        self._has_worked = False
        self._refusal: tuple[CommandError, _Task] | None = None

    def run(self) -> None:
        """Make all clips; returns when each is made or given up.

        Raises:
            CommandError: no worker is left; the clips that wait were not made.
            KeyboardInterrupt: Ctrl-C, once all workers have ended; another one does not wait for them.
            OSError: what is made cannot be put in its place or noted.
        """
        try:
            while self._waiting or self._running:
                self._members += [_Member(worker=worker) for worker in self._workers.find()]
                self._hand_out()
                self._check_hope()
                try:
                    self._settle(*self._ended.get(timeout=_TICK_SECONDS))
                except queue.Empty:
                    continue
        except BaseException:
            self._stop()
            raise

    @property
    def _running(self) -> list[_Member]:
        return [member for member in self._members if member.task is not None]

    def _hand_out(self) -> None:
        now = time.monotonic()
        for member in self._members:
            if member.task is not None or (member.is_resting and now < member.since):
                continue
            others = self._pace_of_others(member)
            task = next((each for each in self._waiting if member not in each.failed_by), None)
            if task is None:
                continue
            if member.pace is not None and is_better_left(len(self._waiting), member.pace, others):
                continue
            self._waiting.remove(task)
            member.task, member.since, member.is_resting = task, now, False
            task.tries += 1
            self._observer.began(task.job, member.worker.name)
            threading.Thread(target=self._work, args=(member, task.job), daemon=True).start()

    def _pace_of_others(self, one: _Member) -> list[tuple[float, float]]:
        """Return when the others that work now will be free, and their seconds a clip; see forecast.py."""
        now = time.monotonic()
        paces = [(member, member.pace) for member in self._running if member is not one]
        return [(max(pace - (now - member.since), 0.0), pace) for member, pace in paces if pace is not None]

    def _work(self, member: _Member, job: Job) -> None:
        try:
            ended: Made | BaseException = self._make(member.worker, job)
        except BaseException as error:  # noqa: BLE001 - told to the thread that runs the queue, which raises it
            ended = error
        self._ended.put((member, ended))

    def _settle(self, member: _Member, ended: Made | BaseException) -> None:
        """Take note of what a worker has come to."""
        task, name = member.task, member.worker.name
        assert task is not None
        member.task = None
        if isinstance(ended, Made):
            self._has_worked, self._last_seen = True, time.monotonic()
            member.seconds.append(ended.seconds)
            self._observer.made(task.job, name, ended, task.tries)
            self._tell_left()
        elif isinstance(ended, WorkerLostError):
            self._lose(member, task, ended)
        elif isinstance(ended, RunError):
            self._has_worked, self._last_seen = True, time.monotonic()
            task.failed_by.add(member)
            self._fail(task, name, ended)
        elif isinstance(ended, CommandError):
            # This worker takes no clip: the graph is wrong for it, or someone pressed Cancel there.
            self._members.remove(member)
            self._refusal = (ended, task)
            self._waiting.insert(0, task)
            if self._members:
                self._observer.lost(name, str(ended), task.job)
        else:
            raise ended

    def _lose(self, member: _Member, task: _Task, error: WorkerLostError) -> None:
        member.is_resting, member.since = True, time.monotonic() + self._rest
        if not error.comes_back:
            self._members.remove(member)
        if error.had_clip:
            self._has_worked, self._last_seen = True, time.monotonic()
            task.losses += 1
        else:
            task.tries -= 1
        self._refusal = (error, task)
        if task.losses > self._retries:
            self._observer.lost(member.worker.name, str(error), None)
            self._observer.failed(task.job, member.worker.name, error, task.tries, is_last=True)
            return
        self._observer.lost(member.worker.name, str(error), task.job)
        self._waiting.insert(0, task)

    def _fail(self, task: _Task, name: str, error: RunError) -> None:
        others = any(member not in task.failed_by for member in self._members)
        is_last = not others or len(task.failed_by) > self._retries
        self._observer.failed(task.job, name, error, task.tries, is_last=is_last)
        if not is_last:
            self._waiting.append(task)

    def _tell_left(self) -> None:
        """Tell the time left, where a worker has just made a clip."""
        paces = [member.pace for member in self._members if member.pace is not None]
        usual, now = sum(paces) / len(paces), time.monotonic()
        active = []
        for member in self._members:
            pace = member.pace or usual
            if not member.is_resting:
                active.append((max(pace - (now - member.since), 0.0) if member.task else 0.0, pace))
        self._observer.left(seconds_left(len(self._waiting), active))

    def _check_hope(self) -> None:
        """Give up where clips wait and nobody can take them."""
        if self._running or not self._waiting:
            return
        able = [member for member in self._members if not member.is_resting]
        if able:
            for task in [task for task in self._waiting if task.failed_by.issuperset(self._members)]:
                # Those that had not tried it are gone.
                self._waiting.remove(task)
                gone = RunError(Clips.OTHERS_GONE())
                self._observer.failed(task.job, able[0].worker.name, gone, task.tries, is_last=True)
            return
        if self._refusal is None:
            self._refusal = (ServerError(Clips.NOBODY_CAME()), self._waiting[0])
        error, task = self._refusal
        # Others may come, or come back; those that never answered are not waited for.
        waits = not self._members or (self._has_worked and any(member.is_resting for member in self._members))
        waits = waits and isinstance(error, ServerError)
        if not waits or time.monotonic() - self._last_seen > self._patience:
            self._observer.failed(task.job, "", error, task.tries, is_last=True)
            raise error

    def _stop(self) -> None:
        """Cancel what runs, and wait for it."""
        for member in self._members:
            member.worker.stop()
        until = time.monotonic() + _STOP_SECONDS
        while self._running and time.monotonic() < until:
            try:
                member, ended = self._ended.get(timeout=_TICK_SECONDS)
            except queue.Empty:
                continue
            task, member.task = member.task, None
            if isinstance(ended, Made) and task is not None:
                self._observer.made(task.job, member.worker.name, ended, task.tries)
            elif isinstance(ended, Cancelled) and task is not None:
                self._observer.failed(task.job, member.worker.name, ended, task.tries, is_last=True)
