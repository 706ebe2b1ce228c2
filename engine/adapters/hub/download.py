"""Fetch a published variant into the models folder: plan, check what is there, get the rest, verify, put in place.

A file appears under its name only when it is complete and its hash is right; until then it is a hidden .part file,
which the next run continues. A file that is there already is never replaced unless the caller says so.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...checkpoints.files import resolve_checkpoint, resolve_transformer
from ...checkpoints.header import read_header
from ...checkpoints.kinds import identify_kind
from ...checkpoints.published import DownloadError, Variant, choose_files
from ...errors import CheckpointError
from ...quantities import format_bytes
from ...sentences import joined
from ...sentences.between import Between
from ...sentences.hub import Hub
from ...sentences.kinds import Kinds
from . import client

logger = logging.getLogger(__name__)

OnProgress = Callable[[int, int, str], None]
_HASH_BYTES = 8 * 1024**2
_LOCK_NAME = ".lightx2v-download.lock"


def _nothing(*_: Any) -> None:
    """Do nothing: the default of the callables."""


@dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """A file to have, where it belongs, and how much of it is there."""

    listing: client.Listing
    remote: client.RemoteFile
    target: Path
    part: Path
    """Where it grows until it is complete; named after its hash, so that a new revision starts afresh."""

    @property
    def has_right_size(self) -> bool:
        """Whether a complete file may be there; only its hash tells."""
        return self.target.is_file() and self.target.stat().st_size == self.remote.num_bytes

    @property
    def is_in_the_way(self) -> bool:
        """Whether something has its place; a link to a drive that is not there has it too."""
        return self.target.exists() or self.target.is_symlink()

    @property
    def part_bytes(self) -> int:
        """Bytes that an interrupted run left."""
        return self.part.stat().st_size if self.part.exists() else 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a download would do now."""

    variant: Variant
    entry: Path
    """What to choose in the loader."""
    files: tuple[PlannedFile, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.remote.num_bytes for file in self.files)

    @property
    def missing_bytes(self) -> int:
        """Bytes to fetch, judged by sizes alone."""
        return sum(file.remote.num_bytes - file.part_bytes for file in self.files if not file.has_right_size)


def plan_download(variant: Variant, models_dir: Path, *, endpoint: str | None = None) -> Plan:
    """Ask the hub what a variant consists of, and look what is there. Writes nothing.

    Args:
        variant: a row of checkpoints/published.py.
        models_dir: ComfyUI's models folder.
        endpoint: base URL of the hub; None takes HF_ENDPOINT, else huggingface.co.

    Raises:
        DownloadError: the hub cannot be reached, refuses, or does not have a part.
    """
    listings = {name: client.list_repository(name, endpoint) for name in variant.repositories}
    wanted = choose_files(variant, {name: listing.files for name, listing in listings.items()})
    files = []
    for entry in wanted:
        listing = listings[entry.repository]
        remote, target = listing.files[entry.path], models_dir / entry.target
        part = target.with_name(f".{target.name}.{(remote.sha256 or remote.git_sha1 or listing.commit)[:12]}.part")
        files.append(PlannedFile(listing=listing, remote=remote, target=target, part=part))
    return Plan(variant=variant, entry=models_dir / variant.entry, files=tuple(files))


def download(
    variant: Variant,
    models_dir: Path,
    *,
    on_progress: OnProgress = _nothing,
    check_cancel: Callable[[], None] = _nothing,
    replace: bool = False,
    endpoint: str | None = None,
) -> Plan:
    """Fetch what is missing of a variant, verify everything, and check that the loader finds it.

    Args:
        variant: a row of checkpoints/published.py.
        models_dir: ComfyUI's models folder; created if needed.
        on_progress: gets (bytes that are here and right or being fetched, bytes of all files, what is done now).
        check_cancel: raises, whatever the caller likes, to stop; a later call goes on where this one stopped.
        replace: fetch a file anew although one with other content has its place.
        endpoint: base URL of the hub; None takes HF_ENDPOINT, else huggingface.co.

    Returns:
        The plan that was carried out; its `entry` is what to choose in the loader.

    Raises:
        DownloadError: see DOWNLOAD_PROBLEMS; nothing that was here is lost.
        CheckpointError: everything arrived as published, and still is no checkpoint the loader takes.
    """
    plan = plan_download(variant, models_dir, endpoint=endpoint)
    with _exclusive(models_dir):
        run = _Run(plan, on_progress, check_cancel)
        missing = run.check_existing(replace)
        _check_disk(missing)
        for file in missing:
            run.fetch(file, endpoint)
    _check_loadable(plan)
    return plan


class _Run:
    """One download: its progress."""

    def __init__(self, plan: Plan, on_progress: OnProgress, check_cancel: Callable[[], None]) -> None:
        self._plan = plan
        self._on_progress = on_progress
        self._check_cancel = check_cancel
        self._done = 0

    def check_existing(self, replace: bool) -> list[PlannedFile]:
        """Return the files to fetch; counts the bytes of those that are here and right."""
        missing, different = [], []
        for file in self._plan.files:
            if file.has_right_size and self._is_intact(file, file.target, counts=True):
                continue
            missing.append(file)
            if file.is_in_the_way:
                different.append(file)
        if different and not replace:
            listed = joined(map(_describe_difference, different), Between.SEMICOLON)
            raise DownloadError(
                "in the way",
                Hub.IN_THE_WAY(num_different=len(different), listed=listed, name=_words_of(self._plan.variant)),
            )
        return missing

    def fetch(self, file: PlannedFile, endpoint: str | None) -> None:
        """Get a file, or the rest of it, and put it in place once its hash is right."""
        file.target.parent.mkdir(parents=True, exist_ok=True)
        start = self._done
        is_complete = False
        while not is_complete:
            before = file.part_bytes
            try:
                with _Part(file.part, lambda size: self._report(start + size, file.remote.path)) as part:
                    client.read_file(file.listing, file.remote, part, endpoint)
                is_complete = True
            except DownloadError as error:
                if error.problem == "damaged":
                    file.part.unlink()
                # A connection that broke is worth another try as long as tries bring something.
                if error.problem != "unreachable" or file.part_bytes <= before:
                    raise
                logger.warning("LightX2V: %s", error)
        if not self._is_intact(file, file.part, counts=False):
            file.part.unlink()
            raise DownloadError(
                "damaged",
                Hub.WRONG_HASH(path=file.remote.path),
            )
        os.replace(file.part, file.target)
        self._report(start + file.remote.num_bytes, file.remote.path)

    def _report(self, done: int, what: str) -> None:
        self._check_cancel()
        self._done = done
        self._on_progress(done, self._plan.num_bytes, what)

    def _is_intact(self, file: PlannedFile, path: Path, *, counts: bool) -> bool:
        """Say whether a file has the published hash; with `counts`, what is read counts as done if it has."""
        digest, expected = hashlib.sha256(), file.remote.sha256
        if expected is None:
            digest, expected = hashlib.sha1(b"blob %d\0" % path.stat().st_size), file.remote.git_sha1
        start = self._done
        with path.open("rb") as content:
            while chunk := content.read(_HASH_BYTES):
                digest.update(chunk)
                self._report(self._done + len(chunk) * counts, Hub.CHECKING(path=file.remote.path))
        is_intact = digest.hexdigest() == expected
        if not is_intact:
            self._done = start
        return is_intact


class _Part(io.BufferedWriter):
    """A growing file that tells its size after every write; `on_size` may raise to stop."""

    def __init__(self, path: Path, on_size: Callable[[int], None]) -> None:
        super().__init__(io.FileIO(path, "ab"))
        self._on_size = on_size

    def write(self, chunk: Any) -> int:
        written = super().write(chunk)
        self._on_size(self.tell())
        return written


def _words_of(variant: Variant) -> str:
    """Return what stands after `get` on the command line."""
    return " ".join([variant.name, *(word for name in variant.only for word in ("--part", name))])


def _describe_difference(file: PlannedFile) -> str:
    if file.target.is_symlink() and not file.target.exists():
        return Hub.DANGLING(target=file.target, link_target=os.readlink(file.target))
    size = file.target.stat().st_size
    if size != file.remote.num_bytes:
        return Hub.OTHER_SIZE(target=file.target, size=size, published=file.remote.num_bytes)
    return Hub.WRONG_CONTENT(target=file.target)


def _check_disk(files: list[PlannedFile]) -> None:
    """Raise when the files do not fit; each counts where it will lie, as model folders may be links."""
    needed: dict[int, int] = {}
    places: dict[int, Path] = {}
    for file in files:
        place = next(folder for folder in file.target.parents if folder.exists())
        device = place.stat().st_dev
        # A file that is replaced stays until the new one is complete.
        needed[device] = needed.get(device, 0) + file.remote.num_bytes - file.part_bytes
        places[device] = place
    for device, place in places.items():
        free = shutil.disk_usage(place).free
        if free < needed[device]:
            raise DownloadError(
                "disk",
                Hub.NO_ROOM(
                    needed=format_bytes(needed[device]),
                    place=place,
                    free=format_bytes(free),
                    missing=format_bytes(needed[device] - free),
                ),
            )


@contextmanager
def _exclusive(models_dir: Path) -> Iterator[None]:
    """Keep a second download out of the same models folder."""
    from filelock import FileLock, Timeout

    models_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(models_dir / _LOCK_NAME, timeout=0):
            yield
    except Timeout as error:
        raise DownloadError("busy", Hub.BUSY(models_dir=models_dir)) from error


def _check_loadable(plan: Plan) -> None:
    """Raise when the loader would not take what was fetched."""
    if plan.variant.is_lora:
        for file in plan.files:
            _check_lora(file.target)
        return
    if not plan.variant.is_folder:
        for file in plan.files:
            if file.target.parent == plan.entry.parent:
                resolve_transformer(file.target)
        return
    if plan.variant.only:
        # The others may be nowhere here; what has arrived is as published.
        return
    checkpoint = resolve_checkpoint(plan.entry, plan.variant.precision)
    if checkpoint.missing:
        raise DownloadError("missing", joined(checkpoint.missing, Between.BLANK))


def _check_lora(path: Path) -> None:
    kind = identify_kind(read_header(path))
    if kind is None or kind[0] != Kinds.LORA():
        raise CheckpointError(Hub.NO_LORA(path=path, kind=kind[0] if kind else Hub.NOTHING_KNOWN()))
