"""Queue a prompt on a running ComfyUI over its HTTP and websocket API, follow it, and fetch its results.

Source of the protocol: ComfyUI server.py (routes, websocket events), protocol.py (binary events), main.py (order of
events). Verified with ComfyUI 0.3.64.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import threading
import urllib.request
import uuid
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlencode, urlsplit

from ...engine.sentences.tools import Workflows
from ..saving import save_bytes
from .errors import Cancelled, RunError, ServerError, WorkflowError
from .node_info import NodeInfo
from .progress import Progress
from .report import NodeRun, RunLog
from .workflow import Prompt

if TYPE_CHECKING:
    import aiohttp

# Until a server says the first or the next piece of an answer: it reads files before it takes a job.
_ANSWER_SECONDS = 60.0
# The same for what has been given up.
_CANCEL_SECONDS = 5.0
# How long another thread's wish to stop may go unseen.
_STOP_SECONDS = 0.2
# A server that answers no ping for half as long is lost: its machine may be off, of which no message comes.
_HEARTBEAT_SECONDS = 120.0
_BINARY_TEXT = 3


def run_on_server(
    base: str,
    build_prompt: Callable[[Mapping[str, NodeInfo]], Prompt],
    *,
    headers: Mapping[str, str],
    workflow: Callable[[], Mapping[str, Any] | None],
    output_dir: Path,
    timeout: float | None,
    progress: Progress,
    log: RunLog,
    stopped: threading.Event,
) -> None:
    """Run a prompt on a ComfyUI server and download its output files.

    Args:
        base: where ComfyUI listens, such as http://127.0.0.1:8188, as `read_address` returns it.
        build_prompt: node descriptions of the server -> prompt in API format.
        headers: sent with every request.
        workflow: asked once the prompt is built: the editor's graph to store in saved files, if there is one.
        output_dir: where results are saved, in the server's sub-folders.
        timeout: seconds after which the job is cancelled; None waits for ever.
        progress: shows the run.
        log: filled as nodes finish.
        stopped: cancels the job once it is set, by another thread.

    Raises:
        ServerError: the server cannot be reached or gives no proper answer; log.is_queued says whether it had the job.
        WorkflowError: the server refuses the prompt.
        RunError: a node failed, or `timeout` passed.
        Cancelled: Ctrl-C, or someone pressed Cancel.
    """
    try:
        import aiohttp
    except ImportError as error:
        raise RunError(Workflows.NO_AIOHTTP(error=error)) from error
    job = _Job(base, headers, output_dir, progress, log)
    try:
        asyncio.run(asyncio.wait_for(_until(stopped, job.run(build_prompt, workflow)), timeout))
    except (KeyboardInterrupt, _Stopped):
        job.cancel()
        raise Cancelled(Workflows.TOLD_TO_STOP()) from None
    except aiohttp.ClientResponseError as error:
        raise _refusal(base, error.status, error.message) from error
    except aiohttp.ServerTimeoutError as error:
        job.cancel()
        raise ServerError(Workflows.NO_ANSWER(base=base, seconds=_ANSWER_SECONDS)) from error
    except aiohttp.ClientError as error:
        raise ServerError(Workflows.CANNOT_REACH(base=base, error=error)) from error
    except asyncio.TimeoutError:
        job.cancel()
        if job.waits_for_answer and timeout:
            raise ServerError(Workflows.NO_ANSWER(base=base, seconds=timeout)) from None
        raise RunError(Workflows.TIMEOUT(timeout=timeout)) from None


class _Stopped(Exception):  # noqa: N818 - not an error, the user's wish
    """Another thread wants the job to end."""


async def _until(stopped: threading.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do some work, and give it up soon after `stopped` is set."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait([task], timeout=_STOP_SECONDS))[0]:
            if stopped.is_set():
                raise _Stopped
        await task
    finally:
        task.cancel()


def read_address(url: str) -> tuple[str, dict[str, str]]:
    """Return a server's URL without what is secret in it, and the headers that say that instead.

    Raises:
        WorkflowError: it is no URL of a server.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise WorkflowError(Workflows.NO_ADDRESS())
    base = (
        f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{f':{port}' if port else ''}{parts.path.rstrip('/')}"
    )
    if parts.username is None:
        return base, {}
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return base, {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def read_headers(headers: list[str], token: str | None) -> dict[str, str]:
    """Return the headers of the command line by name.

    Raises:
        WorkflowError: one is none; it is not repeated, as it may be secret.
    """
    read = {"Authorization": f"Bearer {token}"} if token else {}
    for number, header in enumerate(headers, start=1):
        name, colon, value = header.partition(":")
        read[name.strip()] = value.strip()
        if not colon or not name.strip():
            raise WorkflowError(Workflows.NO_HEADER(number=number))
    for name, value in read.items():
        if not (name + value).isprintable() or not name.isascii():
            raise WorkflowError(Workflows.ODD_HEADER(name=name))
    return read


def _refusal(base: str, status: int, text: str) -> ServerError:
    """Return the error for an answer that is not ComfyUI's."""
    if status in (401, 403, 407):
        return ServerError(Workflows.LOGIN(base=base, status=status))
    if "<html" in text[:2000].lower() or "<!doctype" in text[:2000].lower():
        return ServerError(Workflows.WEB_PAGE(base=base, status=status))
    return ServerError(Workflows.OTHER_ANSWER(base=base, status=status, text=text[:200]))


class _Job:
    """One prompt on one server."""

    def __init__(
        self, base: str, headers: Mapping[str, str], output_dir: Path, progress: Progress, log: RunLog
    ) -> None:
        self._base = base
        self._headers = dict(headers)
        self._output_dir = output_dir
        self._progress = progress
        self._log = log
        self._prompt: Prompt = {}
        self._prompt_id = str(uuid.uuid4())
        self._current: str | None = None
        self._is_sent = False
        self.waits_for_answer = True
        """Whether a request is under way, rather than the job."""

    async def run(
        self,
        build_prompt: Callable[[Mapping[str, NodeInfo]], Prompt],
        workflow: Callable[[], Mapping[str, Any] | None],
    ) -> None:
        import aiohttp

        client_id = uuid.uuid4().hex
        patience = aiohttp.ClientTimeout(total=None, sock_connect=_ANSWER_SECONDS, sock_read=_ANSWER_SECONDS)
        async with aiohttp.ClientSession(timeout=patience, headers=self._headers) as session:
            self._prompt = build_prompt(await self._get_json(session, "/object_info"))
            socket_url = f"ws{self._base[4:]}/ws?clientId={client_id}"
            # No limit on message size: previews and node texts may be large.
            closing = aiohttp.ClientWSTimeout(ws_close=_CANCEL_SECONDS)
            async with session.ws_connect(
                socket_url, max_msg_size=0, heartbeat=_HEARTBEAT_SECONDS, timeout=closing
            ) as socket:
                graph = workflow()
                await self._queue(session, client_id, {"workflow": graph} if graph else {})
                self.waits_for_answer = False
                await self._follow(socket)
                self.waits_for_answer = True
            await self._fetch_results(session)

    def cancel(self) -> None:
        """Remove the job from the queue, or interrupt it if it runs. Other people's jobs go on."""
        if not self._is_sent:
            return
        for path, body in (("/queue", {"delete": [self._prompt_id]}), ("/interrupt", {"prompt_id": self._prompt_id})):
            request = urllib.request.Request(
                self._base + path,
                json.dumps(body).encode(),
                {**self._headers, "Content-Type": "application/json"},
            )
            try:
                urllib.request.urlopen(request, timeout=_CANCEL_SECONDS).close()
            except OSError as error:
                self._progress.log(Workflows.NOT_CANCELLED(base=self._base, error=error))
                return

    async def _get_json(self, session: aiohttp.ClientSession, path: str) -> Any:
        async with session.get(self._base + path) as answer:
            return self._parse(path, answer.status, await answer.text(errors="replace"))

    def _parse(self, path: str, status: int, text: str) -> Any:
        try:
            data = json.loads(text)
        except ValueError:
            data = None
        if status != 200 or not isinstance(data, dict):
            raise _refusal(self._base, status, text)
        return data

    async def _queue(self, session: aiohttp.ClientSession, client_id: str, extra_pnginfo: dict[str, Any]) -> None:
        body = {
            "prompt": self._prompt,
            "prompt_id": self._prompt_id,
            "client_id": client_id,
            "extra_data": {"extra_pnginfo": extra_pnginfo},
        }
        self._is_sent = True
        async with session.post(f"{self._base}/prompt", json=body) as answer:
            text = await answer.text()
            if answer.status == 400 and text.startswith("{"):
                raise WorkflowError(self._explain_refusal(json.loads(text)))
            data = self._parse("/prompt", answer.status, text)
        self._prompt_id = str(data.get("prompt_id", self._prompt_id))
        self._log.is_queued = True
        for line in self._node_errors(data):
            self._progress.log(Workflows.LEAVES_OUT(line=line))
        self._progress.log(Workflows.QUEUED(base=self._base, prompt_id=self._prompt_id))
        self._progress.start_run(len(self._prompt))

    def _explain_refusal(self, answer: Mapping[str, Any]) -> str:
        error = answer.get("error") or {}
        headline = error if isinstance(error, str) else _sentence(error)
        lines = self._node_errors(answer)
        return "\n".join(lines) or Workflows.REFUSES(headline=headline)

    def _node_errors(self, answer: Mapping[str, Any]) -> list[str]:
        return [
            Workflows.NODE_PROBLEM(node_id=node_id, title=self._title(node_id), problem=_sentence(error))
            for node_id, errors in _items(answer.get("node_errors"))
            for error in _list(_mapping(errors).get("errors"))
        ]

    def _title(self, node_id: str) -> str:
        node = self._prompt.get(node_id, {})
        return str(node.get("_meta", {}).get("title") or node.get("class_type", node_id))

    async def _follow(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Show the job's events until ComfyUI is done with it."""
        import aiohttp

        failure: Exception | None = None
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY:
                self._show_text(message.data)
                continue
            if message.type != aiohttp.WSMsgType.TEXT:
                continue
            # Nodes of all sorts send events of their own, whose data may be anything.
            event = _mapping(_parsed(message.data))
            kind, data = event.get("type"), _mapping(event.get("data"))
            if data.get("prompt_id") != self._prompt_id:
                continue
            node = data.get("node")
            if kind == "executing":
                self._enter(None if node is None else str(node))
                if node is None:
                    if failure:
                        raise failure
                    return
            elif kind == "progress":
                value, total = data.get("value"), data.get("max")
                if isinstance(value, (int, float)) and isinstance(total, (int, float)):
                    self._progress.update(int(value), int(total))
            elif kind == "executed":
                self._note_output(str(node), _mapping(data.get("output")))
            elif kind in ("execution_interrupted", "execution_error"):
                node_id = str(data.get("node_id"))
                title = self._title(node_id)
                if kind == "execution_interrupted":
                    failure = Cancelled(Workflows.CANCELLED_IN(node_id=node_id, title=title))
                else:
                    error = str(data.get("exception_message")).strip()
                    problem = Workflows.NODE_FAILED(
                        node_id=node_id, title=title, kind=data.get("exception_type"), error=error
                    )
                    failure = RunError(problem)
        raise ServerError(Workflows.CLOSED(base=self._base))

    def _enter(self, node_id: str | None) -> None:
        """Note that a node begins, and the one before has ended; one with lazy inputs may begin several times."""
        runs = {run.node_id: run for run in self._log.nodes}
        if self._current is not None:
            before = runs.get(self._current)
            seconds = self._progress.finish_node() + (before.seconds if before else 0.0)
            runs[self._current] = NodeRun(
                node_id=self._current,
                class_type=self._prompt.get(self._current, {}).get("class_type", ""),
                title=self._title(self._current),
                seconds=round(seconds, 4),
            )
            self._log.nodes = list(runs.values())
        self._current = node_id
        if node_id is not None:
            self._progress.start_node(self._title(node_id), again=node_id in runs)

    def _show_text(self, data: bytes) -> None:
        """Show the text a node sends while it runs: event, length of the node id, node id, text."""
        if len(data) < 8:
            return
        event, length = struct.unpack_from(">II", data)
        if event == _BINARY_TEXT and data[8 : 8 + length].decode(errors="replace") == self._current:
            self._progress.note(data[8 + length :].decode(errors="replace"))

    def _note_output(self, node_id: str, output: Mapping[str, Any]) -> None:
        """Keep the run report of a LightX2VReport node, show other texts."""
        for text in _list(output.get("text")):
            report = _parsed(text) if self._prompt.get(node_id, {}).get("class_type") == "LightX2VReport" else None
            if isinstance(report, dict):
                self._log.engine = report
            else:
                self._progress.log(f"{self._title(node_id)}:\n{text}")

    async def _fetch_results(self, session: aiohttp.ClientSession) -> None:
        history = await self._get_json(session, f"/history/{self._prompt_id}")
        for _, shown in _items(_mapping(history.get(self._prompt_id)).get("outputs")):
            for _, entries in _items(shown):
                for entry in map(_mapping, _list(entries)):
                    if entry.get("type") == "output" and isinstance(entry.get("filename"), str):
                        self._log.outputs.append(await self._download(session, entry))

    async def _download(self, session: aiohttp.ClientSession, entry: Mapping[str, str]) -> Path:
        folder = self._output_dir / str(entry.get("subfolder") or "").replace("\\", "/")
        if not folder.resolve().is_relative_to(self._output_dir.resolve()):
            raise ServerError(Workflows.OUTSIDE(base=self._base, entry=dict(entry)))
        path = folder / Path(entry["filename"]).name
        async with session.get(f"{self._base}/view?{urlencode(entry)}") as answer:
            if answer.status != 200:
                raise ServerError(Workflows.NO_VIEW(base=self._base, status=answer.status, filename=entry["filename"]))
            content = await answer.read()
        number = 1
        while path.exists() and (path.is_dir() or path.read_bytes() != content):
            path = folder / f"{Path(entry['filename']).stem} ({number}){Path(entry['filename']).suffix}"
            number += 1
        save_bytes({path: content})
        return path


def _parsed(text: Any) -> Any:
    """Return JSON as data, or None where it is none."""
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    yield from _mapping(value).items()


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _sentence(error: Any) -> str:
    """Return ComfyUI's message and details of an error."""
    parts = [str(_mapping(error).get(key) or "") for key in ("message", "details")]
    return ": ".join(part.strip() for part in parts if part.strip())
