"""Asking a language model for a better prompt: never longer than the time-out, and the user's text is never lost."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from ..interfaces import Hooks
from ..sentences.prompting import Prompting
from .addresses import Endpoint, read_key, read_url
from .answers import NoAnswerError, choose_model, read_answer, read_json
from .client import Client
from .composing import Question, build_request, compose_text

_POLL_SECONDS = 0.1
_UNLOAD_SECONDS = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where a language model is asked."""

    url: str
    """Of an OpenAI-style server: http://127.0.0.1:11434. Empty asks nobody."""
    model: str = ""
    """Its name there; empty takes the first one that the server lists."""
    seed: int = 0
    """Sent along: most servers answer the same to the same seed."""
    seconds: float = 120.0
    """After so long the answer is not waited for any more."""


@dataclass(frozen=True, kw_only=True)
class Enhanced:
    """A prompt, enhanced or as it was."""

    text: str
    warning: str = ""
    """Why `text` is the user's own; empty where it is not."""


def enhance(
    question: Question, server: Server, *, hooks: Hooks, environment: Mapping[str, str] = os.environ
) -> Enhanced:
    """Let a language model enhance a prompt.

    Args:
        question: the prompt.
        server: whom to ask; without a URL the answer is the composed text, for a node that generates text.
        hooks: `check_interrupt` is called ten times a second; on_progress counts seconds.
        environment: LIGHTX2V_LLM_HOSTS and LIGHTX2V_LLM_API_KEY, see addresses.py.

    Whatever goes wrong gives the user's own text and a warning. What `hooks` raise passes through; the request is then
    ended, and so it is on the server, as soon as that sees the connection close.
    """
    if question.is_empty:
        return Enhanced(text=question.text)
    if not server.url.strip():
        return Enhanced(text=compose_text(question))
    try:
        return Enhanced(text=_ask(question, server, hooks, environment))
    except NoAnswerError as error:
        warning = Prompting.NOT_ENHANCED(error=error)
        logger.warning("LightX2V: %s", warning)
        return Enhanced(text=question.text, warning=warning)


def _ask(question: Question, server: Server, hooks: Hooks, environment: Mapping[str, str]) -> str:
    """Ask in a thread, and watch the clock and Cancel in this one.

    Raises:
        NoAnswerError: no usable answer came in time.
    """
    endpoint = read_url(server.url, environment)
    key = read_key(environment)
    with Client(endpoint, seconds=server.seconds, key=key) as client:
        conversation = _Conversation(client, endpoint, key, question, server)
        # Not waited for at exit: it may be looking up a name.
        threading.Thread(target=conversation.run, name="lightx2v-enhance", daemon=True).start()
        shown = 0
        try:
            while (rest := client.rest) > 0 and not conversation.done.wait(min(rest, _POLL_SECONDS)):
                hooks.check_interrupt()
                waited = int(server.seconds - rest)
                if waited > shown:
                    hooks.on_progress(waited, int(server.seconds), Prompting.WAITING())
                    shown = waited
        finally:
            client.abort()
    if conversation.answer:
        return conversation.answer
    raise conversation.problem or NoAnswerError(Prompting.NO_ANSWER(endpoint=endpoint, seconds=server.seconds))


class _Conversation:
    """The requests of one question, in a thread of their own."""

    def __init__(self, client: Client, endpoint: Endpoint, key: str, question: Question, server: Server) -> None:
        self._client = client
        self._endpoint = endpoint
        self._key = key
        self._question = question
        self._server = server
        self.answer = ""
        self.problem: NoAnswerError | None = None
        self.done = threading.Event()
        """The answer or the problem is there, and the model has left memory where that can be asked for."""

    def run(self) -> None:
        try:
            model = self._server.model.strip() or choose_model(
                read_json(*self._client.get(f"{self._endpoint.path}/models"))
            )
            is_ollama = self._find_ollama()
            try:
                request = build_request(self._question, model=model, seed=self._server.seed)
                self.answer = read_answer(*self._client.post(f"{self._endpoint.path}/chat/completions", request))
            finally:
                if is_ollama:
                    self._unload(model)
        except NoAnswerError as error:
            self.problem = error
        finally:
            self.done.set()

    def _find_ollama(self) -> bool:
        """Say whether this is an Ollama of the user's, which keeps a model in VRAM for minutes.

        Source: https://github.com/ollama/ollama/blob/main/docs/api.md, "Version".
        """
        if self._endpoint.is_named or self._endpoint.path != "/v1":
            return False
        try:
            return "version" in read_json(*self._client.get("/api/version"))
        except NoAnswerError:
            # Another server, or the one question that counts will fail too and say why.
            return False

    def _unload(self, model: str) -> None:
        """Ask Ollama to give the model's memory back, for the video model, also after Cancel and time-outs.

        It ignores keep_alive in OpenAI's API (https://github.com/ollama/ollama/issues/3645).
        Source: https://github.com/ollama/ollama/blob/main/docs/api.md, "Unload a model".
        """
        with Client(self._endpoint, seconds=_UNLOAD_SECONDS, key=self._key) as client:
            try:
                read_json(*client.post("/api/generate", {"model": model, "keep_alive": 0}))
            except NoAnswerError as error:
                logger.warning("LightX2V: %s", Prompting.STILL_LOADED(error=error))
