"""The hub as a list of files and a way to read one; every error becomes a DownloadError that says what to do.

Works with huggingface_hub 0.30 to 2.x. Files are read with its `http_get`, which asks for a range, retries, and
sends the token: since 2.x `hf_hub_download` throws away what an interrupted download left, so resuming is ours.
"""

from __future__ import annotations

import errno
import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from ...checkpoints.published import DownloadError
from ...errors import MALFORMED, without_passwords
from ...sentences.hub import Hub

_LISTING_SECONDS = 30
# More than a file system holds in one file.
_MAX_BYTES = 2**53
# Paths that a file system can have: no control characters, no halves of a surrogate pair.
_PATH = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]+")
_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of a repository as the hub lists it."""

    path: str
    num_bytes: int
    sha256: str | None
    """Of large files (LFS)."""
    git_sha1: str | None
    """Of files kept in git: SHA-1 of "blob <size>", a zero byte, and the content."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A repository at one commit."""

    repository: str
    commit: str
    files: Mapping[str, RemoteFile]


def list_repository(repository: str, endpoint: str | None) -> Listing:
    """Ask the hub what a repository holds.

    Args:
        repository: owner/name.
        endpoint: base URL of the hub; None takes HF_ENDPOINT, else huggingface.co.

    Raises:
        DownloadError: the hub cannot be reached, or does not show this repository.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint)
    with _explained(repository, api.endpoint):
        try:
            info = api.model_info(repository, files_metadata=True, timeout=_LISTING_SECONDS)
            files = [_read_entry(entry) for entry in info.siblings or ()]
            commit = _matching("commit", info.sha, _SHA1)
        except MALFORMED as error:
            # What the idna codec says of a host's name.
            if isinstance(error, UnicodeError) and not isinstance(error, UnicodeDecodeError):
                raise _bad_address(repository, api.endpoint, error) from error
            raise DownloadError(
                "unreachable",
                Hub.LOGIN_PAGE(
                    endpoint=without_passwords(api.endpoint),
                    repository=repository,
                    kind=type(error).__name__,
                    answer=_shortened(str(error)),
                ),
            ) from error
    return Listing(repository=repository, commit=commit, files={file.path: file for file in files})


def _read_entry(entry: Any) -> RemoteFile:
    """Check a file of a listing: its path, size and hash become names and numbers of files here.

    Raises:
        ValueError, AttributeError: it is not what the hub lists.
    """
    path, size = _matching("path", entry.rfilename, _PATH), entry.size
    if type(size) is not int or not 0 <= size <= _MAX_BYTES:
        raise ValueError(Hub.ODD_SIZE(path=path, size=size))
    sha256 = _matching(Hub.HASH_OF(path=path), entry.lfs.sha256, _SHA256) if entry.lfs else None
    git_sha1 = None if entry.lfs else _matching(Hub.HASH_OF(path=path), entry.blob_id, _SHA1)
    return RemoteFile(path=path, num_bytes=size, sha256=sha256, git_sha1=git_sha1)


def _matching(what: str, value: Any, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(Hub.NO_SUCH_VALUE(what=what, value=value))
    return value


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


def read_file(listing: Listing, file: RemoteFile, part: BinaryIO, endpoint: str | None) -> None:
    """Append the rest of a file to `part`, which holds its first bytes.

    What `part.write` raises passes through; `part` then keeps what it has.

    Raises:
        DownloadError: the hub cannot be reached or refuses, the disk is full, or the content has another size.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = hf_hub_url(listing.repository, file.path, revision=listing.commit, endpoint=endpoint)
    what = Hub.FILE_OF(path=file.path, repository=listing.repository)
    with _explained(what, url.partition(listing.repository)[0].rstrip("/")):
        http_get(url, part, resume_size=part.tell(), headers=build_hf_headers(), expected_size=file.num_bytes)


def network_errors() -> tuple[type[Exception], ...]:
    """Return what a broken connection raises: huggingface_hub uses requests up to 0.x, httpx in 1.x, httpx2 in 2.x."""
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    client = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    base: type[Exception] = getattr(client, "RequestException", None) or client.HTTPError
    return (base, OfflineModeIsEnabled)


def _address_errors() -> tuple[type[Exception], ...]:
    """Return what a URL raises that is none; in httpx that is no broken connection."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    client = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    return (getattr(client, "InvalidURL", None) or client.exceptions.InvalidURL,)


def _open_session() -> None:
    """Make huggingface_hub's HTTP client, which reads the proxies of the environment.

    Raises:
        DownloadError: a proxy cannot be used.
    """
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    try:
        get_session()
    except ImportError as error:
        raise DownloadError(
            "unreachable",
            Hub.NO_SOCKS(error=error),
        ) from error
    except ValueError as error:
        raise DownloadError(
            "unreachable",
            Hub.ODD_PROXY(error=without_passwords(str(error))),
        ) from error


@contextmanager
def _explained(what: str, endpoint: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError

    _open_session()
    endpoint = without_passwords(endpoint)
    try:
        yield
    except HfHubHTTPError as error:
        raise _refusal(what, endpoint, error.response.status_code) from error
    except _address_errors() as error:
        raise _bad_address(what, endpoint, error) from error
    except network_errors() as error:
        raise DownloadError(
            "unreachable",
            Hub.NO_CONNECTION(
                endpoint=endpoint, what=what, error=without_passwords(str(error)) or type(error).__name__
            ),
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DownloadError("disk", Hub.DISK_FULL(what=what)) from error
        if error.errno is not None:
            raise
        # http_get reports a wrong size as an OSError without a number.
        raise DownloadError("damaged", Hub.WRONG_SIZE(what=what, error=error)) from error


def _bad_address(what: str, endpoint: str, error: Exception) -> DownloadError:
    return DownloadError(
        "unreachable",
        Hub.NO_HUB_ADDRESS(endpoint=without_passwords(endpoint), what=what, error=error),
    )


def _refusal(what: str, endpoint: str, status: int) -> DownloadError:
    if status in (401, 403):
        return DownloadError(
            "denied",
            Hub.NO_ACCESS(endpoint=endpoint, what=what, status=status),
        )
    if status == 404:
        return DownloadError("missing", Hub.NOT_THERE(endpoint=endpoint, what=what))
    return DownloadError("unreachable", Hub.ODD_STATUS(endpoint=endpoint, status=status, what=what))
