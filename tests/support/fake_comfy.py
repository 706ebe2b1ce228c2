"""A server that speaks ComfyUI's protocol, and says what a test wants it to, in a thread of its own."""

import asyncio
import threading
from contextlib import contextmanager

from aiohttp import web

INFO = {
    "Make": {"input": {"required": {"seed": ["INT", {"default": 0}]}}, "output": ["IMAGE"]},
    "SaveImage": {"input": {"required": {"images": ["IMAGE"], "filename_prefix": ["STRING", {"default": "a"}]}},
                  "output": [], "output_node": True},
    "Say": {"input": {"required": {"text": ["STRING", {}]}}, "output": []},
}  # fmt: skip
PROMPT = {
    "1": {"class_type": "Make", "inputs": {"seed": 1}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a"}},
}


class FakeComfy:
    """What it answers; `requests` has (path, headers) of what came."""

    def __init__(self):
        self.requests = []
        self.statuses = {}
        """Path -> (status, body, content type) instead of the answer."""
        self.seconds = 0.0
        """That a job takes."""
        self.silent = set()
        """Paths that get no answer."""
        self.events = []
        """Sent before the job's end: texts, bytes, or functions of the prompt's id that return JSON data."""
        self.outputs = {"2": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}}
        self.url = ""
        self.texts = []
        """Of the Say nodes of the jobs that came."""
        self.dies_at = 0
        """The job, from 1, at which it closes its socket without a word, and refuses all others."""
        self._queued = asyncio.Event()
        self._id = ""

    async def handle(self, request):
        self.requests.append((request.path, dict(request.headers)))
        if request.path in self.silent:
            await asyncio.sleep(60)
        if self.dies_at and len(self.texts) >= self.dies_at:
            return web.Response(status=503, text="gone")
        if request.path in self.statuses:
            status, body, kind = self.statuses[request.path]
            # Nobody waits for a job that is refused.
            self._queued.set()
            return web.Response(status=status, text=body, content_type=kind)
        if request.path == "/ws":
            return await self._socket(request)
        if request.path == "/prompt":
            body = await request.json()
            self._id = body["prompt_id"]
            nodes = body["prompt"].values()
            self.texts += [node["inputs"]["text"] for node in nodes if node["class_type"] == "Say"]
            self._queued.set()
            return web.json_response({"prompt_id": self._id, "number": 1, "node_errors": {}})
        if request.path.startswith("/history/"):
            return web.json_response({self._id: {"outputs": self.outputs}})
        if request.path == "/view":
            return web.Response(body=b"a picture")
        return web.json_response(INFO)

    async def _socket(self, request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await self._queued.wait()
        self._queued.clear()
        if self.dies_at and len(self.texts) >= self.dies_at:
            await socket.close()
            return socket
        await asyncio.sleep(self.seconds)
        for event in self.events:
            if isinstance(event, bytes):
                await socket.send_bytes(event)
            elif isinstance(event, str):
                await socket.send_str(event)
            else:
                await socket.send_json(event(self._id))
        for node in ("1", "2", None):
            await socket.send_json({"type": "executing", "data": {"node": node, "prompt_id": self._id}})
        await socket.close()
        return socket


@contextmanager
def running():
    """Run a FakeComfy; its `url` has no path."""
    fake, started, ended = FakeComfy(), threading.Event(), threading.Event()

    async def serve():
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", fake.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        while not ended.is_set():
            await asyncio.sleep(0.02)
        await runner.cleanup()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert started.wait(30)
    try:
        yield fake
    finally:
        ended.set()
        thread.join()
