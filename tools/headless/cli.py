"""The command line of tools/run_workflow.py."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from ...engine.sentences.tools import Command
from .. import console
from ..arguments import Parser, seconds
from ..saving import NotSavedError, problem_of_file, problem_of_folder, refusal
from .errors import Cancelled, CommandError, RunError, WorkflowError
from .places import Here, Place, Server, Task
from .progress import Progress, logging_to
from .report import REPORT, RunLog, build_report, write_report

_PACK_ROOT = Path(__file__).parent.parent.parent

_MAX_ERROR_LINES = 20

_EPILOG = """\
exit codes:
  0    done; stdout has the path of every result, one a line
  2    wrong command line, the workflow or a value in it is wrong, or results cannot be written; nothing was run
  3    the run failed, took longer than --timeout, or what it made is in another place, which is said
  4    the server cannot be reached, wants a login, or is not ComfyUI
  130  cancelled with Ctrl-C

examples:
  python tools/run_workflow.py "example_workflows/1 Wan text to video.json" --models-dir ~/ComfyUI/models
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
        error = Cancelled(Command.CANCELLED())
    except CommandError as caught:
        error = caught
    except OSError as caught:
        error = RunError(Command.NO_ROOM_FOR_RESULTS(caught=caught))
    seconds = time.perf_counter() - start
    report = build_report(log, workflow=options.workflow, seconds=seconds, error=error)
    # Before anything is printed: what is known is kept first.
    if options.report:
        try:
            write_report(options.report, report)
        except NotSavedError as caught:
            error = error or caught
        except OSError as caught:
            error = error or RunError(refusal(options.report, "--report", caught))
    progress.clear()
    for path in log.outputs:
        console.say(str(path))
    for warning in log.warnings:
        console.complain(warning, by="run_workflow")
    if error:
        console.complain(_shorten(str(error)), by="run_workflow")
    return (error.exit_code if error else 0), report


def _shorten(message: str) -> str:
    """Say messages, cut where they list every tensor of a model; the report has them whole."""
    message = console.spoken(message)
    lines = message.splitlines()
    more = len(lines) - _MAX_ERROR_LINES
    return (
        message if more <= 0 else "\n".join([*lines[:_MAX_ERROR_LINES], console.spoken(Command.MORE_LINES(more=more))])
    )


def _parser() -> Parser:
    parser = Parser(
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
    parser.add_argument("--timeout", type=seconds, metavar="SECONDS", help="cancel the run after this long")
    parser.add_argument("--quiet", action="store_true", help="no progress, no log; errors are still printed")
    return parser


def comfy_folder(name: str) -> Path:
    """Return ComfyUI's folder of that name where the pack is installed in ComfyUI, else one in the working folder."""
    is_installed = _PACK_ROOT.parent.name == "custom_nodes"
    return _PACK_ROOT.parent.parent / name if is_installed else Path(name)


def _run(options: argparse.Namespace, progress: Progress, log: RunLog) -> None:
    problem = problem_of_folder(options.output_dir, "--output-dir")
    if problem is None and options.report:
        problem = problem_of_file(options.report, "--report", REPORT)
    if problem:
        raise WorkflowError(problem)
    place: Place = Here(options.models_dir, options.output_dir)
    if options.server:
        place = Server(options.server, options.header, options.token)
    task = Task(
        workflow=options.workflow, assignments=options.set, output_dir=options.output_dir, timeout=options.timeout
    )
    place.run(task, progress, log)
