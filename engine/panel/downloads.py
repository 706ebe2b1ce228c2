"""The one download that the editor may start: a published variant, in a thread, with progress to ask for.

And what there is room for, and which variants bring the files that somebody lacks.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..adapters.hub.download import download
from ..checkpoints.published import Part, Variant
from ..errors import LightX2VError, without_passwords
from ..sentences.hub import Hub
from .background import Background, StoppedError

logger = logging.getLogger(__name__)

_PACE_SECONDS, _LEAST_SECONDS = 30.0, 2.0
# What an interrupted download leaves; see adapters/hub/download.py.
_BEGUN_FILE = re.compile(r"\.(.+)\.[0-9a-f]{12}\.part")
# Published sizes are rounded, so what is there may look a little smaller.
_WHOLE_SHARE = 0.99


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a variant still needs on the drives of the model folders, and what is there."""

    missing_bytes: int
    """Of the variant, about; what has arrived is not counted."""
    free_bytes: int | None
    """On the drive that lacks most, else on that of the first part; None where it cannot be looked at."""
    lacking_bytes: int = 0
    """By which that drive is too full."""
    folder: str
    """A folder on that drive, from models/ on."""


def find_missing(
    variants: Iterable[Variant], models_dir: Path, elsewhere: Mapping[str, Sequence[Path]] | None = None
) -> dict[Part, int]:
    """Return what of each part of the variants is not here, by published sizes; the hub is not asked.

    Args: elsewhere: further folders that count, by the name of the folder in models_dir that they go with.
    """
    parts = {part for variant in variants for part in variant.parts}
    return {
        part: min(_missing_bytes(part, home) for home in _homes(part, models_dir, elsewhere or {})) for part in parts
    }


def _homes(part: Part, models_dir: Path, elsewhere: Mapping[str, Sequence[Path]]) -> list[Path]:
    folder, _, below = part.folder.partition("/")
    return [models_dir / part.folder, *(root / below for root in elsewhere.get(folder, ()))]


def room_for(variant: Variant, models_dir: Path, missing: Mapping[Part, int] | None = None) -> Room:
    """Return whether a variant has room.

    Args: missing: see find_missing, where it is known.
    """
    drives: dict[object, list[Part]] = {}
    missing = find_missing([variant], models_dir) if missing is None else missing
    needed = sum(missing[part] for part in variant.fetched)
    try:
        for part in variant.fetched:
            drives.setdefault(_device(_place(part, models_dir)), []).append(part)
        rooms = []
        for parts in drives.values():
            free = shutil.disk_usage(_place(parts[0], models_dir)).free
            rooms.append((max(sum(missing[part] for part in parts) - free, 0), free, _top(parts[0])))
    except OSError:
        return Room(missing_bytes=needed, free_bytes=None, folder=_top(variant.fetched[0]))
    lacking, free, folder = max(rooms, key=lambda room: room[0])
    return Room(missing_bytes=needed, free_bytes=free, lacking_bytes=lacking, folder=folder)


def _top(part: Part) -> str:
    return f"models/{part.folder.partition('/')[0]}"


def _place(part: Part, models_dir: Path) -> Path:
    """Return the folder that is there and that a part's folder is, or will be made in."""
    folder = models_dir / part.folder
    return next((place for place in (folder, *folder.parents) if os.path.isdir(place)), folder)


def _device(place: Path) -> object:
    return place.stat().st_dev


def _missing_bytes(part: Part, home: Path) -> int:
    patterns = part.patterns if part.keeps_path else [PurePosixPath(part.patterns[0]).name]
    here = max(_bytes_here(home / pattern) for pattern in patterns)
    return 0 if here >= _WHOLE_SHARE * part.num_bytes else part.num_bytes - here


def _bytes_here(pattern: Path) -> int:
    """Return the bytes of the files in a folder that match, whole ones and begun ones."""
    if not os.path.isdir(pattern.parent):
        return 0
    found = 0
    for entry in os.scandir(pattern.parent):
        begun = _BEGUN_FILE.fullmatch(entry.name)
        if fnmatch.fnmatchcase(begun[1] if begun else entry.name, pattern.name) and entry.is_file():
            found += entry.stat().st_size
    return found


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A variant that brings files which are not here."""

    variant: Variant
    """Of which only companions are fetched where nothing else of it is wanted."""
    files: tuple[str, ...]
    """Those of the wanted names that it holds."""


def offers_for(
    names: Iterable[str], variants: Sequence[Variant], missing: Mapping[Part, int]
) -> tuple[list[Offer], list[str]]:
    """Choose the variants that bring files or folders, by the names that loaders have for them, the first name first.

    Of those that hold a name, the one is chosen that holds most of the other names too, then the one of which most is
    here, then the first.

    Args:
        names: what is wanted; what is here is left out.
        variants: best first.
        missing: of their parts, see find_missing.

    Returns:
        The offers, and the names that no variant holds.
    """

    def is_here(name: str) -> bool:
        found = [parts for variant in variants if (parts := variant.parts_of(name))]
        return any(not any(missing[part] for part in parts) for parts in found)

    remaining = [name for name in dict.fromkeys(names) if not is_here(name)]
    offers, unlisted = [], []
    while remaining:
        holding = [variant for variant in variants if variant.parts_of(remaining[0])]
        if not holding:
            unlisted.append(remaining.pop(0))
            continue
        held = {variant.name: tuple(filter(variant.parts_of, remaining)) for variant in holding}
        lacking = {each.name: sum(missing[part] for part in each.parts) / each.num_bytes for each in holding}
        best = min(holding, key=lambda variant: (-len(held[variant.name]), lacking[variant.name]))
        offers.append(Offer(variant=_only_wanted(best, held[best.name]), files=held[best.name]))
        remaining = [name for name in remaining if name not in held[best.name]]
    return offers, unlisted


def _only_wanted(variant: Variant, names: Sequence[str]) -> Variant:
    """Return a variant of which, where companions are all that is wanted, these alone are fetched."""
    wanted = {part for name in names for part in variant.parts_of(name)}
    if not all(part.is_companion for part in wanted):
        return variant
    return variant.limited_to([part.name for part in variant.parts if part in wanted])


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
            self.progress = Progress(name=variant.title, is_running=True, num_bytes=variant.num_bytes)
            problem = self._begin("lightx2v-download", self._run, variant, models_dir, endpoint)
            if problem:
                self.progress = Progress(name=variant.title, problem=problem)

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
            logger.warning("LightX2V: %s", Hub.FAILED(name=variant.title, error=error))
        except Exception as error:
            kind = type(error).__name__
            problem = Hub.REPORT(kind=kind, error=error)
            raise
        finally:
            last = self.progress
            self.progress = Progress(
                name=variant.title,
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
