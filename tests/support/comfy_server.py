"""A real ComfyUI for tests: found through COMFYUI_DIR, started on the CPU with this pack and nothing else of ours.

COMFYUI_DIR     a ComfyUI checkout
COMFYUI_PYTHON  its interpreter; the one that runs the tests if unset
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_START_SECONDS = 180
_STOP_SECONDS = 15


def comfyui_dir() -> Path:
    """Return the checkout, or skip the test."""
    folder = os.environ.get("COMFYUI_DIR")
    if not folder:
        pytest.skip("COMFYUI_DIR is not set: needs a real ComfyUI checkout")
    if not Path(folder, "main.py").is_file():
        pytest.fail(f"COMFYUI_DIR is {folder}; expected a ComfyUI checkout with main.py")
    return Path(folder)


def comfyui_python() -> str:
    """Return the interpreter of the checkout."""
    return os.environ.get("COMFYUI_PYTHON", sys.executable)


def run_in_comfyui(script: Path, *arguments: object) -> dict:
    """Run a script in a fresh process with ComfyUI importable and on the CPU; return the JSON of its last line."""
    environment = {**os.environ, "PYTHONPATH": str(comfyui_dir())}
    command = [comfyui_python(), str(script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{script.name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return json.loads(done.stdout.splitlines()[-1])


class ComfyServer:
    """ComfyUI in a process of its own, with all its folders below `folder`; use it as a context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        extra_nodes: tuple[Path, ...] = (),
        arguments: tuple[str, ...] = (),
        device: tuple[str, ...] = ("--cpu",),
        environment: dict[str, str] | None = None,
    ) -> None:
        """Args: device: empty for a GPU; environment: variables beside those of this process."""
        self.folder = folder
        self.models = folder / "models"
        self.output = folder / "output"
        self.log = folder / "server.log"
        self.url = f"http://127.0.0.1:{_free_port()}"
        self._arguments = (*device, *arguments)
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen | None = None
        for name in ("custom_nodes", "models", "output", "input", "temp", "user"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "custom_nodes" / "ComfyUI-LightX2V").symlink_to(ROOT, target_is_directory=True)
        for path in extra_nodes:
            (folder / "custom_nodes" / path.name).symlink_to(path, target_is_directory=path.is_dir())

    def __enter__(self):
        command = [
            comfyui_python(),
            "main.py",
            "--listen",
            "127.0.0.1",
            "--port",
            self.url.rpartition(":")[2],
            "--base-directory",
            str(self.folder),
            "--database-url",
            f"sqlite:///{self.folder / 'comfyui.db'}",
            "--disable-auto-launch",
            "--disable-api-nodes",
            *self._arguments,
        ]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=comfyui_dir(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=self._environment,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self) -> None:
        """End the process and its children."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.killpg(process.pid, number)
            try:
                process.wait(_STOP_SECONDS)
                return
            except subprocess.TimeoutExpired:
                continue

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str):
        """Return the JSON of a GET request."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict) -> tuple[int, dict]:
        """Return (status, JSON) of a POST request."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        return status, json.loads(text) if text else {}

    def queue(self, prompt: dict) -> str:
        """Queue a prompt that is expected to be accepted; returns its id."""
        status, answer = self.post("/prompt", {"prompt": prompt})
        assert status == 200, answer
        return answer["prompt_id"]

    def wait(self, prompt_id: str, seconds: float = 180) -> dict:
        """Return the history of a prompt once it has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry:
                return entry
            assert self.is_running, f"ComfyUI ended:\n{self.log_text()[-4000:]}"
            time.sleep(0.1)
        raise AssertionError(f"prompt {prompt_id} took more than {seconds} s:\n{self.log_text()[-4000:]}")

    def run(self, prompt: dict) -> dict:
        """Queue a prompt, wait, and return its history; it must succeed."""
        entry = self.wait(self.queue(prompt))
        assert entry["status"]["status_str"] == "success", error_of(entry)
        return entry

    def free(self, is_done: Callable[[], bool], **what: bool) -> None:
        """Post /free with `what` (unload_models, free_memory) until it has come about.

        ComfyUI does not hear of it until the next prompt if it collects garbage after the last one: say it again.
        """
        deadline = time.monotonic() + 60
        while True:
            self.post("/free", what)
            time.sleep(0.5)
            if is_done():
                return
            assert time.monotonic() < deadline, f"/free with {what} did nothing in 60 s"

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                self.get("/queue")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.3)
        pytest.fail(f"ComfyUI did not start:\n{self.log_text()[-6000:]}")


def event_of(entry: dict, name: str) -> dict | None:
    """Return the data of an event in a prompt's history, or None."""
    return next((data for event, data in entry["status"]["messages"] if event == name), None)


def error_of(entry: dict) -> str:
    """Return what a failed prompt said."""
    failed = event_of(entry, "execution_error")
    return failed["exception_message"].strip() if failed else json.dumps(entry["status"])


def refusal_of(answer: dict) -> str:
    """Return the sentences with which POST /prompt refused a prompt."""
    errors = [error["details"] for node in answer["node_errors"].values() for error in node["errors"]]
    return "\n".join(errors)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
