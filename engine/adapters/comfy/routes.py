"""HTTP routes on ComfyUI's server: checks what a client sends, answers from a worker thread.

What is answered is engine/panel/editor.py. A request that is not understood gets status 400 and a sentence. All
sentences are in the language of the request's Accept-Language that is spoken here, else in English. Nothing that a
client sends becomes a path: names are looked up among those that the nodes offer. GET changes nothing; POST
takes JSON only, which a page of another site cannot send.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import server
from aiohttp import web

from ...errors import in_words
from ...sentences import LANGUAGES, translated
from ...sentences.comfyui import Routes
from ...sentences.languages import language_of, language_of_header

PREFIX = "/lightx2v"
_MAX_TEXT = 1000
_MAX_BODY = 4096
# A name below a model folder, with the separators of any system: no drive, no root, no step upwards.
_PLAIN_NAME = re.compile(r"(?![/\\]|[A-Za-z]:)(?!(.*[/\\])?\.\.([/\\]|$))[^\0]+", re.DOTALL)

Value = str | int | float
Check = Callable[[str], Value]


@dataclass(frozen=True, kw_only=True)
class Route:
    """A route under PREFIX."""

    name: str
    method: str = "GET"
    """GET (parameters in the query) | POST (in a JSON object of texts)."""
    fields: Mapping[str, Check]
    """Parameters that are understood; each raises ValueError for a text that is not."""
    answer: Callable[[dict[str, Value]], Any]
    """Returns JSON data, in which sentences are Said; may raise ValueError. Called in a worker thread."""


def choice(*options: str) -> Check:
    """Accept one of `options`."""

    def check(text: str) -> str:
        if text not in options:
            raise ValueError(Routes.NO_CHOICE(text=text, options=", ".join(options)))
        return text

    return check


def language(text: str) -> str:
    """Accept the tag of a language that is spoken here; returns which of LANGUAGES it is."""
    found = language_of(text)
    if found is None:
        raise ValueError(Routes.NO_CHOICE(text=text, options=", ".join(LANGUAGES)))
    return found


def number(kind: type[int] | type[float], low: float, high: float) -> Check:
    """Accept a number from `low` to `high`."""

    def check(text: str) -> Value:
        try:
            value = kind(text)
        except ValueError:
            raise ValueError(Routes.NO_NUMBER(text=text)) from None
        if not low <= value <= high:
            raise ValueError(Routes.OUT_OF_RANGE(text=text, low=low, high=high))
        return value

    return check


def plain_name(text: str) -> str:
    """Accept a relative name that stays below its folder."""
    if not _PLAIN_NAME.fullmatch(text):
        raise ValueError(Routes.NOT_OFFERED(text=text))
    return text


def register(*routes: Route) -> None:
    """Add routes to ComfyUI's server; call it once, before the server starts. Without a server nothing happens."""
    instance = getattr(server.PromptServer, "instance", None)
    if instance is None:
        return
    # Two: a slow look at the machine does not hold up the plan line.
    workers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="lightx2v-routes")
    for route in routes:
        add = {"GET": instance.routes.get, "POST": instance.routes.post}[route.method]
        add(f"{PREFIX}/{route.name}")(functools.partial(_respond, route, workers))


def read_parameters(route: Route, parameters: Mapping[str, Any]) -> dict[str, Value]:
    """Return the checked parameters of a request.

    Raises:
        ValueError: one is unknown, or is not what it should be.
    """
    values = {}
    for name, text in parameters.items():
        if name not in route.fields:
            known = ", ".join(route.fields) or Routes.NONE()
            raise ValueError(Routes.NO_PARAMETER(name=route.name, parameter=name[:40], known=known))
        if not isinstance(text, str) or len(text) > _MAX_TEXT:
            raise ValueError(Routes.NO_TEXT(name=name, max_text=_MAX_TEXT))
        try:
            values[name] = route.fields[name](text)
        except ValueError as error:
            raise ValueError(Routes.ODD_PARAMETER(name=name, problem=error)) from None
    return values


async def _respond(route: Route, workers: ThreadPoolExecutor, request: web.Request) -> web.Response:
    language = language_of_header(request.headers.get("Accept-Language", ""))
    try:
        values = read_parameters(route, request.query if route.method == "GET" else await _read_json(request))
        data = await asyncio.get_running_loop().run_in_executor(workers, route.answer, values)
    except ValueError as error:
        return web.json_response({"error": translated(str(error), language)}, status=400)
    return web.json_response(translated(data, language))


async def _read_json(request: web.Request) -> dict[str, Any]:
    if request.content_type != "application/json":
        raise ValueError(Routes.NO_JSON())
    # JSON is UTF-8 whatever a header says; what is not loses nothing by being told so.
    charset = request.charset or "utf-8"
    if charset.lower() not in ("utf-8", "utf8"):
        raise ValueError(Routes.NOT_UTF8(charset=charset[:40]))
    body = bytearray()
    # A chunked body has no length before its end.
    while len(body) <= _MAX_BODY and (piece := await request.content.read(_MAX_BODY + 1 - len(body))):
        body += piece
    if len(body) > _MAX_BODY:
        raise ValueError(Routes.TOO_LONG(max_body=_MAX_BODY))
    try:
        data = json.loads(body)
    except ValueError as error:
        raise ValueError(Routes.ODD_JSON(error=in_words(error))) from None
    except RecursionError:
        raise ValueError(Routes.TOO_DEEP()) from None
    if not isinstance(data, dict):
        raise ValueError(Routes.NO_OBJECT())
    return data
