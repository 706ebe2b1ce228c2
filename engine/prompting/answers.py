"""What a server answered, as a prompt; whatever is not one is a NoAnswerError that says what was found."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

from ..errors import LightX2VError
from ..sentences.prompting import Prompting

# Wan asks for 60 to 200 words, and its text encoder reads 512 tokens.
_MAX_LENGTH = 8000
_MAX_COMPLAINT = 200

# How models mark what they think before they answer; some chat templates give the opening mark themselves.
_THOUGHT = "think|thinking|thought|reasoning"
_THOUGHT_END = re.compile(rf"</(?:{_THOUGHT})>")
_THOUGHT_START = re.compile(rf"\s*<(?:{_THOUGHT})>")
# gpt-oss, where the server does not take its channels apart.
_FINAL_CHANNEL = "<|channel|>final<|message|>"
_FENCE = re.compile(r"```\w*\n(.*)\n```", re.DOTALL)
_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u300c": "\u300d"}


class NoAnswerError(LightX2VError):
    """No usable answer came; the message says why and ends without a full stop."""


def read_answer(status: int, body: bytes) -> str:
    """Return the prompt in the answer to POST /chat/completions.

    Args:
        status: of the HTTP answer.
        body: of the HTTP answer, JSON in UTF-8.

    Raises:
        NoAnswerError: an error, something else than a chat completion, no text, half a text, or far too much.
    """
    data = read_json(status, body)
    try:
        choice = data["choices"][0]
        content = choice["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise NoAnswerError(Prompting.NO_COMPLETION()) from None
    if content is None:
        content = ""
    if not isinstance(content, str):
        raise NoAnswerError(Prompting.NO_TEXT(name=type(content).__name__))
    if choice.get("finish_reason") == "length":
        raise NoAnswerError(Prompting.CUT_OFF())
    text = _clean(content)
    if len(text) > _MAX_LENGTH:
        raise NoAnswerError(Prompting.TOO_LONG(num_text=len(text), max_length=_MAX_LENGTH))
    return text


def read_json(status: int, body: bytes) -> dict[str, Any]:
    """Return the JSON object of an answer of status 200.

    Raises:
        NoAnswerError: another status, or something else than a JSON object in UTF-8.
    """
    try:
        data = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        data = None
    if status != 200:
        raise NoAnswerError(Prompting.ODD_STATUS(status=status, complaint=_complaint_of(data)))
    if not isinstance(data, dict):
        raise NoAnswerError(Prompting.NO_JSON())
    if data.get("error"):
        raise NoAnswerError(Prompting.SERVER_ERROR(complaint=_complaint_of(data)))
    return data


def choose_model(listing: dict[str, Any]) -> str:
    """Return the first model of the answer to GET /models that is not named as one for embeddings.

    Raises:
        NoAnswerError: there is none.
    """
    entries = listing.get("data")
    names = [entry.get("id") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    for name in names:
        if isinstance(name, str) and name and "embed" not in name.lower():
            return name
    raise NoAnswerError(Prompting.NO_MODEL())


def _clean(content: str) -> str:
    """Return the answer proper: without thoughts, marks around it, and what no text should hold.

    Raises:
        NoAnswerError: nothing is left, or the model was still thinking.
    """
    text = content.rpartition(_FINAL_CHANNEL)[2]
    ends = list(_THOUGHT_END.finditer(text))
    if ends:
        text = text[ends[-1].end() :]
    if _THOUGHT_START.match(text):
        raise NoAnswerError(Prompting.UNFINISHED_THOUGHTS())
    text = _plain(text)
    fenced = _FENCE.fullmatch(text)
    text = fenced[1].strip() if fenced else text
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and not {text[0], text[-1]} & set(text[1:-1]):
        text = text[1:-1].strip()
    if not text:
        raise NoAnswerError(Prompting.EMPTY())
    return text


def _plain(text: str) -> str:
    """Return `text` without control characters and without halves of characters, which nothing can encode."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(each for each in whole if each in "\n\t" or unicodedata.category(each) != "Cc").strip()


def _complaint_of(data: Any) -> str:
    """Return ': ' and what a JSON error says, as far as it says something; a body of another kind is not shown."""
    error = data.get("error") if isinstance(data, dict) else None
    said = error.get("message") if isinstance(error, dict) else error
    if not isinstance(said, str) or not said.strip():
        return ""
    words = " ".join(_plain(said).split())
    return f": {words[:_MAX_COMPLAINT]}{'...' if len(words) > _MAX_COMPLAINT else ''}"
