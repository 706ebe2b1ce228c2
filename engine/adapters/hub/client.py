"""The hub as a list of files and a way to read one; every error becomes a DownloadError that says what to do.

Works with huggingface_hub 0.30 to 2.x. Files are read with its `http_get`, which asks for a range, retries, and
sends the token: since 2.x `hf_hub_download` throws away what an interrupted download left, so resuming is ours.
"""

from __future__ import annotations

import errno
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from ...checkpoints.published import DownloadError

_LISTING_SECONDS = 30


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
        info = api.model_info(repository, files_metadata=True, timeout=_LISTING_SECONDS)
    files = [
        RemoteFile(
            path=entry.rfilename,
            num_bytes=entry.size or 0,
            sha256=entry.lfs.sha256 if entry.lfs else None,
            git_sha1=None if entry.lfs else entry.blob_id,
        )
        for entry in info.siblings or ()
    ]
    return Listing(repository=repository, commit=str(info.sha), files={file.path: file for file in files})


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
    with _explained(f"{file.path} of {listing.repository}", url.partition(listing.repository)[0].rstrip("/")):
        http_get(url, part, resume_size=part.tell(), headers=build_hf_headers(), expected_size=file.num_bytes)


def network_errors() -> tuple[type[Exception], ...]:
    """Return what a broken connection raises: huggingface_hub uses requests up to 0.x, httpx in 1.x, httpx2 in 2.x."""
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    client = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    base: type[Exception] = getattr(client, "RequestException", None) or client.HTTPError
    return (base, OfflineModeIsEnabled)


@contextmanager
def _explained(what: str, endpoint: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        raise _refusal(what, endpoint, error.response.status_code) from error
    except network_errors() as error:
        raise DownloadError(
            "unreachable",
            f"The connection to {endpoint} failed while asking for {what}: {error or type(error).__name__}. Check the "
            "network, set HF_ENDPOINT to a mirror if the hub is blocked where you are, and run it again: what is "
            "already here is kept.",
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DownloadError(
                "disk", f"The disk is full while fetching {what}. Make room and run it again: it goes on where it was."
            ) from error
        if error.errno is not None:
            raise
        # http_get reports a wrong size as an OSError without a number.
        raise DownloadError("damaged", f"{what} arrived with a wrong size: {error}. Run it again.") from error


def _refusal(what: str, endpoint: str, status: int) -> DownloadError:
    if status in (401, 403):
        return DownloadError(
            "denied",
            f"{endpoint} does not give access to {what} (status {status}). If the name is right, set HF_TOKEN to a "
            "token that may read it, or remove a token that has expired.",
        )
    if status == 404:
        return DownloadError("missing", f"{endpoint} has no {what} (status 404). It was moved or removed.")
    return DownloadError(
        "unreachable", f"{endpoint} answered with status {status} when asked for {what}. Try again in a few minutes."
    )
