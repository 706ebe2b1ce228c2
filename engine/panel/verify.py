"""A checkpoint looked at in full, on request: every byte, by its hash and by what it holds.

The published hashes are the hub's; where it cannot be asked, the content alone is looked at.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..adapters.hub import client
from ..checkpoints.checks import find_unscaled
from ..checkpoints.content import ContentCheck, find_fault_in_full, may_be_zero
from ..checkpoints.disk import reading
from ..checkpoints.files import Checkpoint, resolve_checkpoint
from ..checkpoints.pth import is_pth
from ..checkpoints.published import PUBLISHED, PUBLISHED_IMAGE_MODELS, DownloadError
from ..checkpoints.vocabulary import TOKENIZER_FILES
from ..checkpoints.weights import open_weights
from ..errors import LightX2VError
from ..sentences.verifying import Verifying
from .background import Background, StoppedError
from .doctor import MISSING, OK, WARN, Item

logger = logging.getLogger(__name__)

_HASH_BYTES = 8 * 2**20

OnProgress = Callable[[int, int, str], None]


def _nothing(*_: object) -> None:
    """Do nothing: the default of the callables."""


def verify(path: Path, *, on_progress: OnProgress = _nothing, endpoint: str | None = None) -> list[Item]:
    """Look at every byte of a checkpoint.

    Args:
        path: what resolve_checkpoint takes.
        on_progress: gets (bytes done, bytes of all files, the file); may raise to stop.
        endpoint: base URL of the hub; None takes HF_ENDPOINT, else huggingface.co.

    Returns:
        An item a file: ok (as published, or nothing wrong with its content), or what is wrong and what to do.

    Raises:
        CheckpointError: it is no checkpoint, or its headers are damaged already.
    """
    checkpoint = resolve_checkpoint(path)
    files, checks = files_of(checkpoint), _checks_of(checkpoint)
    published, unasked = _published_hashes(files, endpoint)
    names = [file.name for file in files]
    total, done = sum(file.stat().st_size for file in files), 0
    items = []
    for file in files:
        digests = _Digests(file.stat().st_size)
        for chunk in _chunks(file):
            digests.update(chunk)
            done += len(chunk)
            on_progress(done, total, file.name)
        item = _item(file, digests, published.get(file.name, ()), unasked, checks.get(file))
        # Experts in folders of their own have files of the same names.
        is_one_of_two = names.count(file.name) > 1
        items.append(replace(item, name=f"{file.parent.name}/{file.name}") if is_one_of_two else item)
    return items


def files_of(checkpoint: Checkpoint) -> list[Path]:
    """Return every file of a checkpoint, each once."""
    tokenizer = checkpoint.tokenizer
    found = [
        *(checkpoint.transformer.every_file if checkpoint.transformer else ()),
        *(file for file in (checkpoint.text_encoder, checkpoint.vae) if file is not None),
        *(tokenizer / name for name in TOKENIZER_FILES if tokenizer and os.path.isfile(tokenizer / name)),
    ]
    return list(dict.fromkeys(found))


class _Digests:
    """The hashes that the hub knows files by."""

    def __init__(self, size: int) -> None:
        self._sha256, self._git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)

    def update(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        self._git.update(chunk)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def match(self, remote: client.RemoteFile) -> bool:
        return remote.sha256 == self.sha256 or remote.git_sha1 == self._git.hexdigest()


def _chunks(file: Path) -> Iterator[bytes]:
    with reading(file), file.open("rb") as content:
        while chunk := content.read(_HASH_BYTES):
            yield chunk


def _published_hashes(files: Iterable[Path], endpoint: str | None) -> tuple[dict[str, list[client.RemoteFile]], str]:
    """Return what the hub lists under the names of the files, and why it could not be asked, or ""."""
    names = {file.name for file in files}
    found: dict[str, list[client.RemoteFile]] = {}
    models = (PUBLISHED | PUBLISHED_IMAGE_MODELS).values()
    for repository in dict.fromkeys(name for variant in models for name in variant.repositories):
        try:
            listing = client.list_repository(repository, endpoint)
        except DownloadError as error:
            return {}, str(error)
        for remote in listing.files.values():
            name = remote.path.rpartition("/")[2]
            if name in names:
                found.setdefault(name, []).append(remote)
    return found, ""


def _checks_of(checkpoint: Checkpoint) -> dict[Path, ContentCheck]:
    """Return what looks at the files of each transformer together: not all is seen in one of them."""
    checks: dict[Path, ContentCheck] = {}
    for each in checkpoint.transformer.experts if checkpoint.transformer else ():
        unscaled = {each.format.prefix + name for name in find_unscaled(each.header)}
        check = ContentCheck(each.format.architecture.num_layers, unscaled)
        checks |= dict.fromkeys(each.files, check)
    return checks


def _item(
    file: Path,
    digests: _Digests,
    published: Iterable[client.RemoteFile],
    unasked: str,
    check: ContentCheck | None,
) -> Item:
    found = f"sha256 {digests.sha256}"
    if any(map(digests.match, published)):
        return Item(name=file.name, state=OK, found=Verifying.AS_PUBLISHED(found=found))
    size = file.stat().st_size
    same_size = [remote for remote in published if remote.num_bytes == size]
    if same_size:
        remedy = Verifying.FETCH_ANEW(name=file.name)
        return Item(name=file.name, state=MISSING, found=Verifying.NOT_AS_PUBLISHED(found=found), remedy=remedy)
    fault, doubt = _find_in(file, check)
    if fault:
        return Item(name=file.name, state=MISSING, found=Verifying.DAMAGED(fault=fault, found=found), remedy=_REMEDY)
    if doubt:
        return Item(name=file.name, state=WARN, found=Verifying.DOUBTFUL(doubt=doubt, found=found), remedy=_REMEDY)
    whose = Verifying.NOT_ASKED(unasked=unasked) if unasked else Verifying.NOT_PUBLISHED()
    return Item(name=file.name, state=WARN if unasked else OK, found=Verifying.NOTHING_WRONG(whose=whose, found=found))


_REMEDY = Verifying.DOWNLOAD_AGAIN()


def _find_in(file: Path, check: ContentCheck | None) -> tuple[str, str]:
    """Return what is wrong with the first damaged tensor of a file, and what is odd about the first odd one."""
    doubtful = ""
    if not (is_pth(file) or file.suffix.lower() == ".safetensors"):
        return "", ""
    weights = open_weights([file])
    check = check or ContentCheck(unscaled=find_unscaled(weights.header))
    try:
        for name in weights:
            tensor = weights[name]
            fault = find_fault_in_full(tensor, tensor.dtype, may_be_zero=may_be_zero(name))
            of_model, doubt = ("", "") if fault else check.find(name, tensor, tensor.dtype)
            if fault or of_model:
                return Verifying.IN_TENSOR(name=name, fault=fault or of_model), ""
            doubtful = doubtful or (Verifying.IN_TENSOR(name=name, fault=doubt) if doubt else "")
    finally:
        weights.close()
    return "", doubtful


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Where the check of a checkpoint is; `name` is empty before the first one."""

    name: str = ""
    is_running: bool = False
    done_bytes: int = 0
    num_bytes: int = 0
    what: str = ""
    """The file that is read."""
    items: tuple[Item, ...] = ()
    """The findings, when it is complete."""
    problem: str = ""
    """Why it ended otherwise."""


class Verifications(Background):
    """Runs one check at a time, in a thread, with progress to ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.state = Verification()

    def start(self, name: str, path: Path, *, endpoint: str | None = None) -> None:
        """Start looking at a checkpoint.

        Raises:
            ValueError: another one is being looked at.
        """
        with self._lock:
            if self.state.is_running:
                raise ValueError(Verifying.IS_RUNNING(name=self.state.name))
            self.state = Verification(name=name, is_running=True)
            problem = self._begin("lightx2v-verify", self._run, name, path, endpoint)
            if problem:
                self.state = Verification(name=name, problem=problem)

    def _run(self, name: str, path: Path, endpoint: str | None) -> None:
        end = Verification(name=name, problem=Verifying.ENDED())
        try:
            items = verify(path, on_progress=self._note, endpoint=endpoint)
            end = Verification(name=name, items=tuple(items))
        except StoppedError:
            end = replace(end, problem=Verifying.STOPPED())
        except (LightX2VError, OSError) as error:
            end = replace(end, problem=str(error))
            logger.warning("LightX2V: %s", Verifying.ENDED_BY(name=name, error=error))
        finally:
            self.state = end

    def _note(self, done: int, total: int, what: str) -> None:
        self._check_stop()
        self.state = replace(self.state, done_bytes=done, num_bytes=total, what=what)
