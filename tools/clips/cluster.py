"""GPUs of a Ray cluster as workers of the queue: one actor a GPU, or for several, which keeps its models loaded.

The queue decides who makes what, and what becomes of a clip whose worker is lost; Ray starts processes where GPUs are,
and says when they are gone. Only this file imports it. Source of the interfaces: Ray 2.60.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...engine.sentences.tools import Clips
from ..headless.errors import Cancelled, RunError, ServerError, WorkflowError
from ..saving import save_bytes
from .jobs import Job
from .queue import Made, Worker, WorkerLostError

logger = logging.getLogger(__name__)

# What Ray keeps results in: files of a few MB come through it.
_STORE_BYTES = 256 * 2**20
# How often the cluster is asked for GPUs that nobody uses.
_LOOK_SECONDS = 5.0
# How long a cluster may take to answer, and an actor to start.
_KNOCK_SECONDS = 10.0
_START_SECONDS = 300.0
_ERRORS = {each.__name__: each for each in (WorkflowError, RunError, ServerError, Cancelled)}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every actor is made from: paths as they are on its machine."""

    pack: Path
    """This pack's folder."""
    models_dir: Path
    workflow: bytes
    """The content of the workflow's file."""
    timeout: float | None
    gpus: int | None
    """That compute a clip together, of one machine; None is one."""

    @property
    def num_gpus(self) -> int:
        """Of an actor."""
        return self.gpus or 1

    @property
    def fields(self) -> dict[str, Any]:
        """What a maker is made from (maker.py), in types that are known everywhere."""
        return {
            "models_dir": str(self.models_dir),
            "workflow": self.workflow,
            "timeout": self.timeout,
            "gpus": self.gpus,
        }


def _actor_class() -> type:
    """Return the class of the actors. It is sent to them as it is here: they have the pack once they have begun."""

    class ClipActor:
        def __init__(self, pack: str, fields: dict[str, Any]) -> None:
            import importlib
            import os
            import runpy

            runpy.run_path(os.path.join(pack, "tools", "register_pack.py"))
            self._maker = importlib.import_module("lightx2v_pack.tools.clips.maker").ClipMaker(**fields)

        def describe(self) -> str:
            return str(self._maker.describe())

        def make(self, name: str, values: list[str]) -> tuple[str, Any]:
            made: tuple[str, Any] = self._maker.make(name, values)
            return made

        def stop(self) -> None:
            self._maker.stop()

    return ClipActor


def _knock(address: str) -> None:
    """See whether somebody answers at HOST:PORT.

    Raises:
        OSError: nobody does.
        ValueError: the port is none.
    """
    host, colon, port = address.rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), _KNOCK_SECONDS).close()


class RayWorker:
    """An actor as the queue sees it."""

    def __init__(self, ray: Any, actor: Any, name: str) -> None:
        self.name, self.actor = name, actor
        self.is_gone = False
        self._ray = ray

    def make(self, job: Job, folder: Path) -> Made:
        start = time.perf_counter()
        try:
            kind, value = self._ray.get(self.actor.make.remote(job.name, list(job.values)))
        except self._ray.exceptions.RayActorError as error:
            self.is_gone = True
            gone = Clips.WORKER_GONE(kind=type(error).__name__)
            raise WorkerLostError(gone, had_clip=True, comes_back=False) from error
        if kind != "made":
            raise _ERRORS.get(kind, RunError)(value)
        files, facts = value
        contents = {}
        for place, content in files:
            path = folder / place
            contents[path] = content
        save_bytes(contents)
        return Made(files=list(contents), seconds=round(time.perf_counter() - start, 3), facts=facts)

    def stop(self) -> None:
        self.actor.stop.options(concurrency_group="io").remote()


class Cluster:
    """The GPUs of a cluster; new ones are found while the list is made."""

    def __init__(self, address: str, recipe: Recipe) -> None:
        """Connect.

        Args:
            address: local (this machine alone), auto (a cluster that this machine is in), or HOST:PORT of one.
            recipe: of the actors.

        Raises:
            RunError: Ray is not installed.
            ServerError: there is no such cluster.
        """
        try:
            import ray
        except ImportError as error:
            raise RunError(Clips.NO_RAY(error=error)) from error
        # It ends processes near 95 % of the RAM, which streamed weights fill on purpose.
        os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address == "local":
            options |= {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
        else:
            options["address"] = address
        try:
            # Ray itself would try for minutes.
            _knock(address)
            ray.init(**options)
        except (OSError, ValueError, RuntimeError) as error:
            said = str(error).strip().partition("\n")[0]
            raise ServerError(Clips.NO_CLUSTER(address=address, said=said)) from error
        self._ray, self._recipe = ray, recipe
        self._looked = float("-inf")
        self._workers: list[RayWorker] = []
        self._starting: list[tuple[Any, Any, float]] = []
        self._remote = ray.remote(
            num_gpus=recipe.num_gpus, num_cpus=0, max_restarts=0, max_task_retries=0, concurrency_groups={"io": 1}
        )(_actor_class())

    def find(self) -> Sequence[Worker]:
        """Return actors that are ready since the last call, and start more where GPUs are free."""
        ray = self._ray
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._looked = time.monotonic()
            for _ in range(self._num_possible()):
                actor = self._remote.remote(str(self._recipe.pack), self._recipe.fields)
                said = actor.describe.options(concurrency_group="io").remote()
                self._starting.append((actor, said, time.monotonic()))
        ready, still = [], []
        for actor, said, since in self._starting:
            if not ray.wait([said], timeout=0)[0]:
                if time.monotonic() - since < _START_SECONDS:
                    still.append((actor, said, since))
                else:
                    ray.kill(actor)
                continue
            try:
                name = ray.get(said)
            except ray.exceptions.RayError as error:
                logger.warning("LightX2V: %s", Clips.NO_WORKER(error=str(error).strip().splitlines()[-1]))
                continue
            ready.append(RayWorker(ray, actor, name))
        self._starting = still
        self._workers += ready
        return ready

    def _num_possible(self) -> int:
        """Return how many actors more there is room for: an actor's GPUs are of one machine."""
        wanted, ray = self._recipe.num_gpus, self._ray
        free = ray.available_resources().get("GPU", 0.0) - len(self._starting) * wanted
        room = sum(int(node["Resources"].get("GPU", 0.0)) // wanted for node in ray.nodes() if node["Alive"])
        taken = len(self._starting) + sum(not worker.is_gone for worker in self._workers)
        return max(0, min(int(free / wanted + 1e-6), room - taken))

    def close(self) -> None:
        """End the actors, and leave the cluster."""
        for actor in [*(worker.actor for worker in self._workers), *(actor for actor, *_ in self._starting)]:
            self._ray.kill(actor)
        self._ray.shutdown()
