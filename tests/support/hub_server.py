"""A local server that speaks the Hugging Face hub's protocol for folders on disk.

GET /api/models/<owner>/<name>?blobs=1    commit and files with sizes, git ids and LFS hashes
GET|HEAD /<owner>/<name>/resolve/<commit>/<path>   content; LFS files redirect to /cdn/<sha256>, as the hub does
Answers carry ETag, X-Repo-Commit, X-Linked-Size and X-Linked-Etag; ranges are honoured; xet is not advertised.
"""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Files from this size on are LFS files.
LFS_BYTES = 10_000


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Clients that go away in the middle are part of the tests."""


class HubServer:
    """Use it as a context manager; `url` is the endpoint."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.repositories = repositories
        self.token: str | None = None
        """When set, every request must bear it."""
        self.requests: list[tuple[str, str, str | None]] = []
        """(method, path, Range header)."""
        self.authorizations: set[str | None] = set()
        self.content_bytes = 0
        """Bytes of file content sent."""
        self.corrupt: set[str] = set()
        """Names of files that are sent with a changed byte."""
        self.cut: dict[str, int] = {}
        """Name of a file -> bytes after which its connection breaks, once."""
        self.statuses: dict[str, int] = {}
        """Name of a file, or "api" -> status to answer with."""
        self.listings: dict[str, bytes] = {}
        """Repository -> what is answered, with status 200, instead of its listing."""
        self.ignores_ranges = False
        self._server = _QuietServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._blobs: dict[str, Path] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def files_of(self, repository: str) -> dict[str, Path]:
        root = self.repositories[repository]
        return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}

    def requested(self, name: str) -> list[str | None]:
        """Return the Range headers of the requests for a file's content."""
        return [given for method, path, given in self.requests if method == "GET" and path.endswith(f"/{name}")]

    def describe(self, repository: str) -> dict:
        siblings = []
        for name, path in self.files_of(repository).items():
            content = path.read_bytes()
            entry = {"rfilename": name, "size": len(content)}
            if len(content) >= LFS_BYTES:
                sha256 = hashlib.sha256(content).hexdigest()
                pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n"
                entry["blobId"] = git_sha1(pointer.encode())
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": len(pointer)}
                self._blobs[sha256] = path
            else:
                entry["blobId"] = git_sha1(content)
            siblings.append(entry)
        return {"id": repository, "modelId": repository, "sha": COMMIT, "private": False, "siblings": siblings}

    def blob(self, sha256: str) -> Path:
        return self._blobs[sha256]


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _handler(hub: HubServer):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("Range")))
            hub.authorizations.add(self.headers.get("Authorization"))
            if (
                hub.token
                and not path.startswith("/cdn/")
                and self.headers.get("Authorization") != f"Bearer {hub.token}"
            ):
                self._answer(401, b'{"error": "Invalid username or password."}')
            elif path.startswith("/api/models/"):
                self._list(path.removeprefix("/api/models/").partition("/revision/")[0])
            elif path.startswith("/cdn/"):
                self._send(hub.blob(path.removeprefix("/cdn/")))
            else:
                self._resolve(path)

        def _list(self, repository):
            if "api" in hub.statuses or repository not in hub.repositories:
                self._answer(hub.statuses.get("api", 404), b'{"error": "Repository not found"}')
            else:
                described = hub.listings.get(repository) or json.dumps(hub.describe(repository)).encode()
                self._answer(200, described)

        def _resolve(self, path):
            repository, _, rest = path.strip("/").partition("/resolve/")
            name = rest.partition("/")[2]
            file = hub.files_of(repository).get(name)
            status = hub.statuses.get(Path(name).name)
            if file is None or status:
                self._answer(status or 404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})
                return
            content = file.read_bytes()
            if len(content) < LFS_BYTES:
                self._send(file, {"X-Repo-Commit": COMMIT})
                return
            sha256 = hashlib.sha256(content).hexdigest()
            linked = {"X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{sha256}"'}
            self._answer(302, b"", {"Location": f"{hub.url}/cdn/{sha256}", **linked})

        def _send(self, file, headers=None):
            content = file.read_bytes()
            size, start = len(content), 0
            if file.name in hub.corrupt:
                content = content[:-1] + bytes([content[-1] ^ 1])
            status, headers = 200, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', **(headers or {})}
            if self.headers.get("Range") and not hub.ignores_ranges:
                start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
                status, headers["Content-Range"] = 206, f"bytes {start}-{size - 1}/{size}"
            rest = content[start:]
            cut = hub.cut.pop(file.name, None) if self.command == "GET" else None
            self._answer(status, rest[:cut], headers, length=len(rest))
            hub.content_bytes += len(rest[:cut])
            if cut is not None:
                self.wfile.flush()
                self.close_connection = True

        def _answer(self, status, body, headers=None, length=None):
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler
