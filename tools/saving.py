"""Files that a command leaves: whether they can be written is known before anything runs, and each comes whole.

Where a place fails all the same, such as on a drive that has filled up meanwhile, what is made goes to the system's
folder for temporary files, or to the user's own, and the error says where it is.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..engine.sentences import Sentence, shortened
from ..engine.sentences.tools import Saving
from .headless.errors import CommandError

Write = Callable[[Path], None]
"""Writes a file at a path."""

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_IN_THE_WAY = {errno.ENOTDIR, errno.EEXIST}
_FORBIDDEN = {errno.EACCES, errno.EPERM}
# What is looked at of a file that is there: far more than a report has, far less than a model.
_JUDGED_BYTES = 4 * 2**20
# A drive that has less is full; a name that is shown, and one that fits everywhere.
_PROBE_BYTES = 64 * 1024
_SHOWN, _SHORT = 60, 60


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a command keeps in a file. One that is there is replaced, or added to, where it is of this kind only."""

    other: Sentence
    """Says that a `path` holds something else."""
    records: Sequence[Sequence[str]]
    """The keys that a JSON object of this kind has, of which one is enough; in the order in which they are written."""
    in_lines: bool
    """Whether there is one a line, where others may be among them, or one in all."""

    def holds(self, content: bytes) -> bool:
        """Say whether a file that begins so is of this kind; an empty one is."""
        if not content.strip():
            return True
        if not self.in_lines:
            return self._is_record(content)
        lines = [line for line in content.split(b"\n") if line.strip()]
        # One that was cut, or that somebody has written into it, makes no other file of it.
        return 2 * sum(map(self._is_record, lines)) >= len(lines)

    def _is_record(self, text: bytes) -> bool:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            heads = [json.dumps({keys[0]: 0})[:-2].encode() for keys in self.records]
            return self.in_lines and any(text.startswith(head) or head.startswith(text) for head in heads)
        return isinstance(found, dict) and any(found.keys() >= set(keys) for keys in self.records)


class NotSavedError(CommandError):
    """What was made could not be put in its place; the sentence says where it is instead."""


def problem_of_folder(folder: Path, option: str) -> str | None:
    """Return a sentence that says why files cannot be written in a folder, which need not be there yet; or None.

    Nothing is left behind.

    Args: option: that names the folder.
    """
    return _problem(folder / f"{_hidden()}.probe", folder, option)


def problem_of_file(path: Path, option: str, kind: Kind | None = None) -> str | None:
    """Return a sentence that says why a file cannot be written at a path, in a folder that need not be there yet; or
    None. What is there stays as it is.

    Args:
        option: that names the file.
        kind: of what is written; None where the caller sees to a file that is there.
    """
    try:
        if path.is_dir():
            return Saving.CHOOSE(option=option, reason=Saving.IS_FOLDER(path=path))
        with contextlib.suppress(FileNotFoundError):
            # Of a link to itself.
            path.stat()
    except (OSError, ValueError) as error:
        return refusal(path, option, error)
    return (problem_of_kind(path, option, kind) if kind else None) or _problem(path, path, option)


def problem_of_kind(path: Path, option: str, kind: Kind) -> str | None:
    """Return a sentence where a file is there that holds something else than what a command writes; or None.

    Args: option: that names the file.
    """
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            content = file.read(_JUDGED_BYTES)
    except (OSError, ValueError) as error:
        return refusal(path, option, error)
    return None if kind.holds(content) else Saving.CHOOSE(option=option, reason=kind.other(path=path))


def refusal(path: Path, option: str, error: OSError | ValueError) -> str:
    """Return the sentence about a file or folder that the system does not let us write."""
    number = getattr(error, "errno", None)
    if number in _FULL:
        return Saving.MAKE_ROOM(option=option, path=path)
    if number in _IN_THE_WAY:
        reason = Saving.FILE_IN_THE_WAY(path=_file_above(path))
    elif number == errno.ENXIO:
        reason = Saving.NOBODY_READS(path=path)
    elif number == errno.EISDIR:
        reason = Saving.IS_FOLDER(path=path)
    elif number == errno.ENAMETOOLONG:
        reason = Saving.TOO_LONG(name=shortened(path.name, _SHOWN))
    elif number == errno.EROFS:
        reason = Saving.READ_ONLY(path=path)
    elif number in _FORBIDDEN:
        reason = Saving.FORBIDDEN(path=path)
    else:
        reason = Saving.REFUSED(path=path, said=getattr(error, "strerror", None) or error)
    return Saving.CHOOSE(option=option, reason=reason)


def write_whole(path: Path, write: Write) -> None:
    """Write a file beside its place, and move it there once it is whole; folders are made.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        # A pipe or a device, which nothing may take the place of.
        write(path)
        return
    part = path.with_name(f"{_hidden()}.part{path.suffix}")
    try:
        write(part)
        os.replace(part, path.resolve())
    finally:
        part.unlink(missing_ok=True)


def save(files: Mapping[Path, Write]) -> None:
    """Write files to their places, each whole; from the first that cannot be on, they go elsewhere.

    Raises:
        NotSavedError: some are elsewhere, or nowhere.
    """
    first: tuple[Path, OSError] | None = None
    elsewhere: Path | None = None
    for path, write in files.items():
        if first is None:
            try:
                write_whole(path, write)
            except OSError as error:
                first, elsewhere = (path, error), _save_elsewhere(path, write)
        elif elsewhere is not None:
            with contextlib.suppress(OSError):
                write_whole(elsewhere.parent / _short(path), write)
    if first is None:
        return
    why = refusal(first[0], Saving.THE_FOLDER(), first[1])
    if elsewhere is None:
        raise NotSavedError(Saving.LOST(path=first[0], why=why)) from first[1]
    place = elsewhere.parent if len(files) > 1 else elsewhere
    raise NotSavedError(Saving.ELSEWHERE(elsewhere=place, why=why)) from first[1]


def save_bytes(contents: Mapping[Path, bytes]) -> None:
    """Save files of these contents; see save."""
    save({path: functools.partial(_write_bytes, content) for path, content in contents.items()})


def _write_bytes(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _save_elsewhere(path: Path, write: Write) -> Path | None:
    """Return where a file is that could not be put in its place; None where there is no room for it anywhere."""
    for folder in (tempfile.gettempdir(), Path.home()):
        with contextlib.suppress(OSError):
            target = Path(tempfile.mkdtemp(prefix="lightx2v-", dir=folder)) / _short(path)
            try:
                write_whole(target, write)
            except OSError:
                target.parent.rmdir()
                raise
            return target
    return None


def _problem(path: Path, named: Path, option: str) -> str | None:
    """Try to write a file at a path, or beside it where there is one."""
    try:
        with _folder_of(path):
            if path.is_fifo():
                # Opened as it is, it would wait for somebody who reads.
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            elif path.exists():
                with path.open("ab"):
                    pass
            if not path.exists() or path.is_file():
                # A link that leads nowhere stays.
                probe = path.with_name(f"{_hidden()}.probe") if os.path.lexists(path) else path
                try:
                    with probe.open("xb") as file:
                        file.write(bytes(_PROBE_BYTES))
                        file.flush()
                        os.fsync(file.fileno())
                finally:
                    probe.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        return refusal(named, option, error)
    return None


@contextlib.contextmanager
def _folder_of(path: Path) -> Iterator[None]:
    """Make the folder of a file for as long as the context lasts; what was there before stays."""
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _file_above(path: Path) -> Path:
    """Return the file among the folders of a path."""
    return next((each for each in (path, *path.parents) if each.is_file()), path)


def _hidden() -> str:
    return f".{uuid.uuid4().hex[:12]}"


def _short(path: Path) -> str:
    return path.stem[-_SHORT:] + path.suffix
