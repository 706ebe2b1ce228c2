"""First trials of kernels in a process of their own: a compiler or a kernel may end the process that it runs in.

All kernels are tried in one child, which says on its standard output what it is about to try and what came back, and
is started again behind the one that ended it. Each child costs an import of torch and, on the card, a context of CUDA
(about 0.5 GiB) while it lasts.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from ..interfaces import Hooks
from ..sentences.kernels import Running

logger = logging.getLogger(__name__)

# Longest time without a word, while torch is imported and while a trial runs: the operations of the blocks are a dozen
# kernels to compile, on a slow processor too.
START_SECONDS = SILENCE_SECONDS = 180.0
_POLL_SECONDS = 0.1
# What may still be on its way from a child that has ended.
_LAST_WORDS_SECONDS = 1.0
_PACK = Path(__file__).resolve().parents[2]
_NAME = "lightx2v_trials"
_ENTRY = f"{_NAME}.engine.trial_child"
# The parent's way to find modules; nothing of its state.
_PROGRAM = f"""
import sys, json, types, importlib
request = json.loads(sys.stdin.readline())
sys.path[:] = request["path"]
pack = types.ModuleType({_NAME!r})
pack.__path__ = [request["pack"]]
sys.modules[{_NAME!r}] = pack
importlib.import_module({_ENTRY!r}).main(request)
"""


@dataclass(frozen=True, kw_only=True)
class Named:
    """A trial by names, as a child takes it."""

    task: str
    kernel: str
    precision: str = ""
    """Of a matmul's weights."""
    is_lightx2v: bool = False
    """Whether the kernel is one of LightX2V's own."""

    def __str__(self) -> str:
        chosen = Running.CHOSEN(task=self.task, name=self.kernel)
        return Running.LIGHTX2V_TRIAL(chosen=chosen) if self.is_lightx2v else chosen


class NoChildError(Exception):
    """No process of its own can be had for trials."""


@dataclass(frozen=True)
class _Ended:
    how: str


def run_apart(trials: Sequence[Named], device: str, hooks: Hooks) -> Iterator[tuple[Named, str]]:
    """Run trials in a child process, and in further ones where one ends it.

    Args:
        trials: what to try, in this order.
        device: as torch names it.
        hooks: check_interrupt is called ten times a second; what it raises ends the child.

    Yields:
        A trial, and how it ended the child, or "" where it came back, whatever it found. What ran out of memory is left
        out.

    Raises:
        NoChildError: a child cannot be started, or ends before its first trial, as where it cannot have the device.
    """
    left = list(trials)
    hooks.on_progress(0, len(trials), Running.TRYING_KERNELS())
    while left:
        with _Child(left, device) as child:
            trying: Named | None = None
            num_before = len(left)
            for said in child.listen(hooks):
                if isinstance(said, _Ended):
                    if len(left) == num_before:
                        raise NoChildError(Running.ENDED_EARLY(how=said.how))
                    if trying is not None:
                        yield trying, said.how
                elif "trying" in said:
                    trying = left.pop(0)
                    hooks.on_progress(len(trials) - len(left), len(trials), Running.TRYING_KERNELS())
                elif trying is not None:
                    if not said.get("is_full"):
                        yield trying, ""
                    trying = None


class _Child:
    """A child process, ended when it is left."""

    def __init__(self, trials: Sequence[Named], device: str) -> None:
        self._mark = secrets.token_hex(8)
        self._said: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed where the child is left
        try:
            self._process = _start(self._errors)
        except NoChildError:
            self._errors.close()
            raise
        request = {
            "mark": self._mark,
            "pack": str(_PACK),
            "path": [str(path) for path in sys.path],
            "device": device,
            "trials": [asdict(trial) for trial in trials],
        }
        self._send(request)
        threading.Thread(target=self._read, name="lightx2v-trials", daemon=True).start()

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        _kill(self._process)
        self._errors.close()

    def listen(self, hooks: Hooks) -> Iterator[dict[str, Any] | _Ended]:
        """Yield what the child says; last, unless it did all, how it ended."""
        last_heard, patience = time.monotonic(), START_SECONDS
        ended_at: float | None = None
        while True:
            hooks.check_interrupt()
            now = time.monotonic()
            try:
                said = self._said.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if self._process.poll() is not None:
                    # A program that it started may hold its output open.
                    ended_at = ended_at or now
                    if now - ended_at > _LAST_WORDS_SECONDS:
                        yield _Ended(self._how())
                        return
                elif now - last_heard > patience:
                    yield _Ended(Running.NOT_BACK(patience=patience))
                    return
                continue
            if said is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_LAST_WORDS_SECONDS)
                yield _Ended(self._how())
                return
            if "all" in said:
                return
            last_heard, patience = time.monotonic(), SILENCE_SECONDS
            yield said

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        # A child that has ended already says so itself. One whose parent ends sees the end of this.
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        """Take what bears the mark from the child's output, which may hold anything."""
        assert self._process.stdout is not None
        mark = self._mark.encode()
        with contextlib.suppress(OSError, ValueError):
            for line in iter(lambda: self._process.stdout.readline(1 << 16), b""):  # type: ignore[union-attr]
                _, found, text = line.partition(mark)
                if found:
                    self._said.put(json.loads(text))
        self._said.put(None)

    def _how(self) -> str:
        """Return how the process ended, and its last words."""
        code = self._process.poll()
        if code is None:
            how: str = Running.OUTPUT_ENDED()
        elif code < 0:
            how = signal.Signals(-code).name if -code in {*signal.Signals} else Running.SIGNAL(number=-code)
        else:
            how = Running.EXIT_CODE(code=code) if code < 256 else Running.EXIT_CODE(code=f"0x{code:08X}")
        words = _last_words(self._errors)
        return Running.WITH_LAST_WORDS(how=how, words=words) if words else how


def _start(errors: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start this interpreter as this process was started, without a window or a Ctrl-C of its own.

    Raises:
        NoChildError: the interpreter is part of a program, or the system refuses.
    """
    name = Path(sys.executable or "").name
    if getattr(sys, "frozen", False) or "python" not in name.lower():
        raise NoChildError(Running.PART_OF_PROGRAM(name=name or Running.NO_EXECUTABLE()))
    # `python_embeded\python.exe -s` of ComfyUI's portable build, and what a user adds.
    flags = {"-s": sys.flags.no_user_site, "-E": sys.flags.ignore_environment, "-I": sys.flags.isolated}
    command = [sys.executable, *(flag for flag, is_set in flags.items() if is_set), "-c", _PROGRAM]
    options: dict[str, Any] = {"start_new_session": True}
    if os.name == "nt":
        options = {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}  # type: ignore[attr-defined]
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, **options)
    except OSError as error:
        raise NoChildError(str(error)) from error


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process, if it has not ended, and on Linux what it started."""
    if process.poll() is None:
        if os.name == "nt":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def _last_words(errors: IO[bytes]) -> str:
    """Return the line of a child's error output that says most."""
    errors.seek(0, os.SEEK_END)
    errors.seek(max(0, errors.tell() - 8192))
    lines = [line.strip() for line in errors.read().decode("ascii", errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower() or "assert" in line.lower()]
    return (telling or lines or [""])[-1][:200]
