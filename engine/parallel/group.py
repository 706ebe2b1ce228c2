"""The processes of several GPUs: started under torchrun, asked, stopped, and what is said of one that fails.

A rank is lost as a whole: what it leaves half done in a collective nobody can take up. So the group is closed where one
fails, and the next clip starts another one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import psutil
import torch

from ..errors import LightX2VError, MissingDependencyError, RankError, UnsupportedHardwareError
from ..interfaces import Hooks
from ..sentences import Said, joined
from ..sentences.between import Between
from ..sentences.gpus import Gpus
from ..sentences.kernels import Running
from ..temporary import make_folder
from . import exchange
from .channel import Channel, ClosedError, Region
from .split import MOST_RANKS

logger = logging.getLogger(__name__)

_PACK = Path(__file__).resolve().parents[2]
_NAME = __name__.removesuffix(".engine.parallel.group")
_SCRIPTS = {name: str(Path(__file__).with_name(f"start_{name}.py")) for name in ("group", "rank")}
_POLL_SECONDS = 0.05
# How long ranks have to come, to stop, to end, and to say what they know of a failure before another one is believed.
_START_SECONDS, _STOP_SECONDS, _END_SECONDS, _WORDS_SECONDS = 180.0, 5.0, 5.0, 1.5
# After the first answer; reading weights is what takes ranks differently long.
_PATIENCE_SECONDS = 300.0
# Set by ComfyUI for itself, or of another launcher's processes: not a rank's.
_NOT_PASSED = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class Members:
    """Which devices compute."""

    device: str
    """cuda | cpu."""
    indices: tuple[int, ...]
    """Of the cards as this process counts them; of ranks on the CPU, any."""
    patience: float = 0.0
    """Seconds that a rank may not answer its neighbours; 0 is the usual."""
    memory_fraction: float = 0.0
    """Share of its card's memory that a rank may take; 0 is all."""

    @property
    def size(self) -> int:
        return len(self.indices)

    @property
    def names(self) -> list[str]:
        """Of all ranks; see `name`."""
        return [self.name(rank) for rank in range(self.size)]

    def name(self, rank: int) -> str:
        """Return what a rank's device is called in messages."""
        if self.device != "cuda":
            return f"rank {rank}"
        return f"GPU {self.indices[rank]} ({torch.cuda.get_device_name(self.indices[rank])})"


def find_problem(members: Members) -> str | None:
    """Return why these devices cannot compute a clip together here, and what can be done; None where they can."""
    if not sys.platform.startswith("linux"):
        return Gpus.LINUX_ONLY(elsewhere=Gpus.ELSEWHERE())
    if members.size > MOST_RANKS:
        return Gpus.TOO_MANY(most=MOST_RANKS, size=members.size)
    backend = "nccl" if members.device == "cuda" else "gloo"
    if not exchange.is_available(backend):
        return Gpus.NO_BACKEND(backend=backend.upper(), torch=torch.__version__, elsewhere=Gpus.ELSEWHERE())
    if members.device == "cuda":
        capabilities = {torch.cuda.get_device_capability(index) for index in members.indices}
        if len(capabilities) > 1:
            named = joined(members.names, Between.AND)
            return Gpus.OF_SEVERAL_KINDS(named=named, elsewhere=Gpus.ELSEWHERE())
    return None


def check_members(members: Members) -> None:
    """Raise what `find_problem` finds.

    Raises:
        UnsupportedHardwareError, MissingDependencyError: they cannot compute a clip together here.
    """
    problem = find_problem(members)
    if problem is not None:
        is_missing = isinstance(problem, Said) and problem.sentence is Gpus.NO_BACKEND
        raise (MissingDependencyError if is_missing else UnsupportedHardwareError)(problem)


@dataclass(eq=False)
class _Rank:
    """A rank, as its parent sees it."""

    channel: Channel
    number: int
    process: psutil.Process


class WorkerGroup:
    """Ranks that compute clips together. One command at a time; closed where anything goes wrong."""

    def __init__(self, members: Members, hooks: Hooks) -> None:
        """Start the ranks, and wait for them.

        Raises:
            UnsupportedHardwareError, MissingDependencyError: it cannot work here.
            RankError: a rank could not be started.
        """
        check_members(members)
        self.members = members
        self.is_open = True
        self._lock = threading.Lock()
        self._later: list[tuple[str, Any]] = []
        self._budgets: list[dict[str, Any]] = []
        self.stopped_before: dict[int, int] = {}
        """By rank: blocks that had been begun when the last pass was given up."""
        self._ranks: list[_Rank] = []
        # All processes of the group have the log open.
        self._folder, self._log = make_folder("lightx2v-ranks-", "log")
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._listener.bind(str(self._folder / "control"))
        except OSError as error:
            self._log.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise RankError(Gpus.NO_SOCKET(folder=self._folder, error=error)) from error
        self._listener.listen(members.size)
        self._listener.settimeout(_POLL_SECONDS)
        self._supervisor = self._start()
        # Also where this object is dropped, or the interpreter ends, without `close`.
        self._finish = weakref.finalize(self, _end, self._supervisor, self._ranks, self._folder, self._log)
        try:
            self._wait_for_ranks(hooks)
            self._collect(Gpus.STARTING(), hooks)
        except BaseException:
            self.close()
            raise
        logger.info("LightX2V: %s", Gpus.COMPUTE_TOGETHER(names=", ".join(members.names)))

    @property
    def size(self) -> int:
        return self.members.size

    @property
    def process_ids(self) -> list[int]:
        """Of the supervisor, then of the ranks."""
        return [self._supervisor.pid, *(rank.process.pid for rank in self._ranks)]

    def is_alive(self) -> bool:
        """Say whether it can be asked."""
        return self.is_open and self._supervisor.poll() is None and all(_runs(rank.process) for rank in self._ranks)

    def ask(
        self,
        doing: str,
        name: str,
        value: Any = None,
        regions: Sequence[Region] = (),
        *,
        hooks: Hooks | None = None,
        on_chunk: Callable[[int, Any], None] | None = None,
    ) -> list[Any]:
        """Have every rank do something, and return their answers.

        Args:
            doing: what for, in a message.
            name: of the command, see worker.py.
            value: goes with it.
            regions: memory that goes with it.
            hooks: progress is the first rank's; what `check_interrupt` raises stops all of them.
            on_chunk: told of the parts of an answer: (rank, part).

        Raises:
            RankError: a rank has failed; the group is closed.
            torch.cuda.OutOfMemoryError: a rank's memory was full; the group is closed.
            LightX2VError: the ranks refuse it.
        """
        with self._lock:
            while self._later:
                self._send(doing, *self._later.pop(0))
                self._collect(doing, Hooks())
            self._send(doing, name, value, regions)
            return self._collect(doing, hooks or Hooks(), on_chunk)

    def tell(self, name: str, value: Any = None) -> None:
        """Have every rank do something that nobody waits for, now or before the next thing.

        What holds weights may be dropped at any time, also while the ranks compute for something else.
        """
        if self._lock.acquire(blocking=False):
            self._lock.release()
            self.ask(Gpus.GIVING_BACK(), name, value)
        else:
            self._later.append((name, value))

    def budgets(self) -> list[dict[str, Any]]:
        """Return the memory of each rank's card: bytes free, reserved by the rank, and in all; while the ranks
        compute, what was last known.
        """
        if not self._lock.locked() or not self._budgets:
            self._budgets = self.ask(Gpus.PLANNING(), "budget")
        return self._budgets

    def _send(self, doing: str, name: str, value: Any, regions: Sequence[Region] = ()) -> None:
        try:
            for rank in self._ranks:
                rank.channel.send((name, value), regions)
        except ClosedError:
            self._fail(doing)

    def close(self) -> None:
        """End all processes."""
        self.is_open = False
        self._listener.close()
        self._finish()

    def _start(self) -> subprocess.Popen[bytes]:
        request = {
            "parent": os.getpid(),
            "path": [str(path) for path in sys.path],
            "name": _NAME,
            "pack": str(_PACK),
            "socket": str(self._folder / "control"),
            "store": str(self._folder / "store"),
            "device": self.members.device,
            "indices": self.members.indices,
            "patience": self.members.patience,
            "memory_fraction": self.members.memory_fraction,
        }
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED}
        environment |= {
            "LIGHTX2V_RANK": json.dumps(request),
            # Nothing is to be reached from another machine.
            "NCCL_SOCKET_IFNAME": "lo",
            "GLOO_SOCKET_IFNAME": "lo",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }
        threads = torch.get_num_threads() if self.members.device == "cpu" else os.cpu_count() or 1
        environment.setdefault("OMP_NUM_THREADS", str(max(1, threads // self.size)))
        torchrun = [
            *("--nnodes=1", f"--nproc-per-node={self.size}", "--max-restarts=0", "--monitor-interval=0.1"),
            *("--rdzv-backend=c10d", f"--rdzv-endpoint={self._folder / 'rendezvous'}", "--rdzv-conf=store_type=file"),
            *("--rdzv-id=lightx2v", f"--log-dir={self._folder / 'torchrun'}"),
        ]
        flags = {"-s": sys.flags.no_user_site, "-E": sys.flags.ignore_environment}
        command = [
            *(sys.executable, *(flag for flag, is_set in flags.items() if is_set), _SCRIPTS["group"]),
            *(*torchrun, _SCRIPTS["rank"]),
        ]
        try:
            return subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,
                cwd=self._folder,
            )
        except OSError as error:
            self._log.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise RankError(Gpus.CANNOT_START(error=error)) from error

    def _wait_for_ranks(self, hooks: Hooks) -> None:
        until = time.monotonic() + _START_SECONDS
        while len(self._ranks) < self.size:
            hooks.check_interrupt()
            if self._supervisor.poll() is not None or time.monotonic() > until:
                raise RankError(Gpus.DID_NOT_START(size=self.size, words=self._last_words()))
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            connection.setblocking(True)
            channel = Channel(connection)
            try:
                (_, who), _ = channel.receive()
                self._ranks.append(_Rank(channel, who["rank"], psutil.Process(who["pid"])))
            except (ClosedError, psutil.Error):
                continue
        self._ranks.sort(key=lambda rank: rank.number)

    def _collect(self, doing: str, hooks: Hooks, on_chunk: Callable[[int, Any], None] | None = None) -> list[Any]:
        """Wait for an answer of every rank."""
        waiting = set(self._ranks)
        answers: dict[int, tuple[str, Any]] = {}
        patience, until = self.members.patience or _PATIENCE_SECONDS, math.inf
        with selectors.DefaultSelector() as selector:
            for rank in self._ranks:
                selector.register(rank.channel, selectors.EVENT_READ, rank)
            while waiting:
                try:
                    hooks.check_interrupt()
                except BaseException:
                    self._stop(waiting)
                    raise
                for key, _ in selector.select(_POLL_SECONDS):
                    rank = key.data
                    try:
                        (kind, value), _ = rank.channel.receive()
                    except ClosedError:
                        self._fail(doing, rank)
                    if kind == "progress":
                        hooks.on_progress(*value)
                    elif kind == "block":
                        hooks.on_block(*value)
                    elif kind == "chunk" and on_chunk:
                        on_chunk(rank.number, value)
                    elif kind == "failed":
                        self._fail(doing, rank, value)
                    elif kind in ("done", "stopped", "refused"):
                        answers[rank.number] = (kind, value)
                        waiting.discard(rank)
                        # They compute in step: who has not answered by then never will.
                        until = time.monotonic() + patience
                if time.monotonic() > until and waiting:
                    late = {"kind": "silent", "type": "", "text": f"{patience:.0f} s"}
                    self._fail(doing, min(waiting, key=lambda rank: rank.number), late)
                if self._supervisor.poll() is not None:
                    self._fail(doing)
        for kind, value in answers.values():
            if kind == "refused":
                error, text = value
                raise error(text) if issubclass(error, LightX2VError) else LightX2VError(text)
        return [answers[number][1] for number in range(self.size)]

    def _stop(self, waiting: set[_Rank]) -> None:
        """Have all ranks give up what they do; close the group where one does not."""
        until = time.monotonic() + _STOP_SECONDS
        left = set(waiting)
        self.stopped_before = {}
        try:
            for rank in self._ranks:
                rank.channel.send(("stop", None))
            with selectors.DefaultSelector() as selector:
                for rank in left:
                    selector.register(rank.channel, selectors.EVENT_READ, rank)
                while left and time.monotonic() < until:
                    for key, _ in selector.select(_POLL_SECONDS):
                        (kind, value), _ = key.data.channel.receive()
                        if kind in ("done", "stopped", "refused"):
                            left.discard(key.data)
                        if kind == "stopped":
                            self.stopped_before[key.data.number] = value
            if not left:
                self._send("Stopping", "forget_stop", None)
                self._collect(Gpus.STOPPING(), Hooks())
                return
        except (ClosedError, RankError):
            pass
        self.close()

    def _fail(self, doing: str, first: _Rank | None = None, facts: dict[str, Any] | None = None) -> NoReturn:
        """Find out which rank has failed, close the group, and raise what says so.

        Args:
            first: the rank that was heard of first: it has ended without a word, or said `facts`.
        """
        said: list[tuple[_Rank, dict[str, Any] | None]] = [(first, facts)] if first else []
        said += self._last_reports(first)
        rank, facts = _blame(said)
        number = rank.number if rank else None
        how = self._how_ended(rank)
        words = self._last_words()
        self.close()
        name = Gpus.ONE_OF_THEM() if number is None else self.members.name(number)
        rest = Gpus.OTHERS_STOPPED()
        if facts is not None and facts["kind"] == "memory":
            raise torch.cuda.OutOfMemoryError(Gpus.OUT_OF_MEMORY(doing=doing, name=name, text=facts["text"], rest=rest))
        if facts is not None and facts["kind"] == "silent":
            raise RankError(Gpus.SILENT(doing=doing, name=name, time=facts["text"], rest=rest))
        if facts is not None:
            raise RankError(Gpus.FAILED(doing=doing, name=name, kind=facts["type"], text=facts["text"], rest=rest))
        raise RankError(Gpus.ENDED(doing=doing, name=name, how=how, rest=rest, words=words))

    def _last_reports(self, first: _Rank | None) -> list[tuple[_Rank, dict[str, Any] | None]]:
        """Return what other ranks say, or that they have ended, within a moment."""
        found: list[tuple[_Rank, dict[str, Any] | None]] = []
        left = {rank for rank in self._ranks if rank is not first}
        until = time.monotonic() + _WORDS_SECONDS
        with selectors.DefaultSelector() as selector:
            for rank in left:
                selector.register(rank.channel, selectors.EVENT_READ, rank)
            while left and time.monotonic() < until:
                for key, _ in selector.select(_POLL_SECONDS):
                    try:
                        (kind, value), _ = key.data.channel.receive()
                    except ClosedError:
                        kind, value = "ended", None
                    if kind in ("failed", "ended") and key.data in left:
                        found.append((key.data, value))
                        left.discard(key.data)
                        selector.unregister(key.data.channel)
        return found

    def _how_ended(self, rank: _Rank | None) -> str:
        """Return how torchrun says that a rank has ended, such as " (SIGKILL)"."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._supervisor.wait(_WORDS_SECONDS)
        for line in self._log_lines():
            found = re.search(r"exitcode: (-?\d+)\) local_rank: (\d+)", line)
            if found and rank is not None and int(found[2]) == rank.number:
                code = int(found[1])
                is_signal = code < 0 and -code in {*signal.Signals}
                return Gpus.HOW(how=signal.Signals(-code).name if is_signal else Running.EXIT_CODE(code=code))
        return ""

    def _last_words(self) -> str:
        """Return what the processes have written last that says something, such as "; its last words: ..."."""
        lines = [line for line in self._log_lines() if "Error" in line and "torch.distributed" not in line]
        return Gpus.LAST_WORDS(line=lines[-1].strip()[:200]) if lines else ""

    def _log_lines(self) -> list[str]:
        with contextlib.suppress(OSError, ValueError):
            return (self._folder / "log").read_text(encoding="utf-8", errors="replace").splitlines()
        return []


def _blame(said: Sequence[tuple[_Rank, dict[str, Any] | None]]) -> tuple[_Rank | None, dict[str, Any] | None]:
    """Return the rank with which it began, and what it says: a full memory before other errors, what a rank says of
    itself before a silent end, and that before what ranks say of a neighbour. The others follow from it.
    """
    order = {"memory": 0, "silent": 1, "error": 1, "neighbour": 3}
    ranked = sorted(said, key=lambda each: 2 if each[1] is None else order[each[1]["kind"]])
    return ranked[0] if ranked else (None, None)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _end(supervisor: subprocess.Popen[bytes], ranks: list[_Rank], folder: Path, log: IO[bytes]) -> None:
    """End what runs. Ranks end by themselves when their connection does; torchrun, when they have."""
    for rank in ranks:
        rank.channel.close()
    try:
        supervisor.wait(_END_SECONDS if ranks else 0)
    except subprocess.TimeoutExpired:
        # Each rank has a session of its own, which the supervisor's end would not reach.
        processes = [rank.process for rank in ranks]
        with contextlib.suppress(psutil.Error):
            processes += psutil.Process(supervisor.pid).children(recursive=True)
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(supervisor.pid, signal.SIGKILL)
        supervisor.wait()
    log.close()
    shutil.rmtree(folder, ignore_errors=True)


# They end with the last object that refers to them.
_groups: weakref.WeakValueDictionary[Members, WorkerGroup] = weakref.WeakValueDictionary()


def running_group(members: Members) -> WorkerGroup | None:
    """Return the group of these devices, if it runs."""
    group = _groups.get(members)
    return group if group is not None and group.is_alive() else None


def group_of(members: Members, hooks: Hooks) -> WorkerGroup:
    """Return the group of these devices: the one that runs, or a new one. It runs for as long as it is referred to.

    Raises:
        RankError: it cannot be started.
    """
    group = running_group(members)
    if group is None:
        group = _groups[members] = WorkerGroup(members, hooks)
    return group
