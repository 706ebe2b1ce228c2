"""The JSON report of a run: seconds per node and stage, peak memory, results, versions."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ...engine.sentences.tools import Saving
from ..saving import Kind, NotSavedError, problem_of_kind, write_whole
from .errors import Cancelled, CommandError

REPORT = Kind(
    other=Saving.NO_REPORT,
    # Of a workflow (build_report), and of a list of prompts (clips/show.py).
    records=(("workflow", "server", "status", "seconds", "nodes", "outputs"), ("clips", "made", "failed", "workers")),
    in_lines=False,
)


@dataclass(frozen=True, kw_only=True)
class NodeRun:
    """One node that ran."""

    node_id: str
    class_type: str
    title: str
    seconds: float


@dataclass(kw_only=True)
class RunLog:
    """What a run did so far; kept by the runner, readable when the run fails half way."""

    server: str | None = None
    """Its address, without user and password."""
    is_queued: bool = False
    """Whether the server has taken the job."""
    nodes: list[NodeRun] = field(default_factory=list)
    outputs: list[Path] = field(default_factory=list)
    """Result files, in the order of their nodes."""
    warnings: list[str] = field(default_factory=list)
    """What the user is to know of a run that succeeded."""
    engine: dict[str, Any] = field(default_factory=dict)
    """What the pack's engine measured: stages, peaks, device, versions."""


def build_report(log: RunLog, *, workflow: Path, seconds: float, error: CommandError | None) -> dict[str, Any]:
    """Return the report of a finished, failed or cancelled run as plain data."""
    status = "ok" if error is None else "cancelled" if isinstance(error, Cancelled) else "failed"
    return {
        "workflow": str(workflow),
        "server": log.server,
        "status": status,
        "error": str(error) if error else None,
        "seconds": round(seconds, 3),
        "nodes": [asdict(node) for node in log.nodes],
        "outputs": [str(output) for output in log.outputs],
        # Whole process, model loading and the command line itself included; a server's memory is not ours to measure.
        "peak_ram_bytes": None if log.server else peak_ram_bytes(),
        "engine": log.engine,
    }


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write a report as JSON; folders are made, and one that is there is replaced.

    Raises:
        OSError: it cannot be written.
        NotSavedError: something else is there.
    """
    problem = problem_of_kind(path, "--report", REPORT)
    if problem:
        raise NotSavedError(problem)
    content = (json.dumps(report, indent=2) + "\n").encode()
    write_whole(path, lambda part: part.write_bytes(content))


def peak_ram_bytes() -> int:
    """Return the largest resident set this process has had, mapped file pages included."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    # getrusage counts bytes on macOS, kibibytes elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
