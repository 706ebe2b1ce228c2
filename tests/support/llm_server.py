"""A language model server for tests: OpenAI's chat API, Ollama's unload where wanted, and every way to go wrong.

What it answers is a function of the request, given by the test; see `well` and the functions below it.
"""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ENHANCED = "Medium shot, daylight, a red fox trots through deep snow, its breath steaming in the cold air."
MODELS = ("text-embedding-tiny", "tiny-instruct", "other")


class LlmServer:
    """Serves on 127.0.0.1 in threads of its own; use it as a context manager.

    `answer(handler)` answers POST /v1/chat/completions. `requests` are (method, path, JSON body, headers) as they came.
    `broken` is set when a client went away while it was being answered.
    """

    def __init__(self, answer: Callable | None = None, *, is_ollama: bool = False, host: str = "127.0.0.1") -> None:
        self.answer = answer or well
        self.is_ollama = is_ollama
        self.requests: list[tuple] = []
        self.broken = threading.Event()
        self.ending = threading.Event()
        self._server = ThreadingHTTPServer((host, 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.ending.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def asked(self) -> list[dict]:
        """The bodies of the chat requests."""
        return [body for method, path, body, _ in self.requests if path.endswith("/chat/completions")]

    @property
    def paths(self) -> list[str]:
        return [f"{method} {path}" for method, path, _, _ in self.requests]


def completion(text, **choice):
    message = {"role": "assistant", "content": text}
    return {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"} | choice],
    }


def send(handler, body, status=200, **headers):
    """Answer with bytes, or with anything else as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(content))} | headers).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)


def well(handler):
    send(handler, completion(ENHANCED))


def saying(text, **choice):
    return lambda handler: send(handler, completion(text, **choice))


def with_body(body, status=200, **headers):
    return lambda handler: send(handler, body, status, **headers)


def after(seconds, then=well):
    """Wait, then answer; notices when the client has gone."""

    def answer(handler):
        handler.connection.settimeout(seconds)
        try:
            if not handler.connection.recv(1):
                handler.lab.broken.set()
                return
        except TimeoutError:
            pass
        handler.connection.settimeout(None)
        then(handler)

    return answer


def never(handler):
    after(3600)(handler)


def dripping(first: bytes, drop: bytes, pause: float = 0.05):
    """Send bytes for ever, a few at a time."""

    def answer(handler):
        handler.wfile.write(first)
        while not handler.lab.ending.is_set():
            handler.wfile.write(drop)
            time.sleep(pause)

    return answer


def endless(handler):
    """Send a body without end as fast as it is taken."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    while not handler.lab.ending.is_set():
        handler.wfile.write(b" " * 65536)


def hanging_up(handler):
    handler.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n{"choices": [')


def raw(data: bytes):
    return lambda handler: handler.wfile.write(data)


def _handler(lab: LlmServer):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def setup(self):
            super().setup()
            self.lab = lab

        def note(self, body=None):
            lab.requests.append((self.command, self.path, body, dict(self.headers)))

        def do_GET(self):
            self.note()
            if self.path == "/v1/models":
                send(self, {"object": "list", "data": [{"id": name, "object": "model"} for name in MODELS]})
            elif self.path == "/api/version" and lab.is_ollama:
                send(self, {"version": "0.12.6"})
            else:
                send(self, b"404 page not found", 404, **{"Content-Type": "text/plain"})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.note(body)
            self.close_connection = True
            try:
                if self.path == "/api/generate" and lab.is_ollama:
                    send(self, {"model": body["model"], "response": "", "done": True, "done_reason": "unload"})
                elif self.path.endswith("/chat/completions"):
                    lab.answer(self)
                else:
                    send(self, b"404 page not found", 404, **{"Content-Type": "text/plain"})
            except ConnectionError:
                lab.broken.set()

    return Handler
