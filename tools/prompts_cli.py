"""The command line of tools/run_prompts.py: a clip for every prompt of a list, by one worker or several."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..engine.parallel.split import MOST_RANKS
from ..engine.sentences.tools import Clips, Saving
from . import console
from .arguments import MAX_SEED, Parser, seconds, whole
from .clips.jobs import Job, make_jobs, read_prompts
from .clips.queue import ClipQueue, Fixed, Made, Worker, Workers
from .clips.results import RESULTS, Results
from .clips.show import Desk
from .clips.workers import PlaceWorker
from .headless.cli import comfy_folder
from .headless.errors import CommandError, WorkflowError
from .headless.places import Here, Place, Server
from .headless.progress import Progress, logging_to
from .headless.report import REPORT, write_report
from .headless.workflow import read_workflow
from .saving import NotSavedError, problem_of_file, problem_of_folder, problem_of_kind, refusal

_PACK_ROOT = Path(__file__).parent.parent
_FAILED, _CANCELLED = 3, 130
_MOST_RETRIES = 1000

_EPILOG = """\
PROMPTS.txt (UTF-8) has one prompt a line; empty lines and lines that start with # are skipped.
One line of JSON a prompt goes to PROMPTS.results.jsonl: prompt, seed, status, seconds, outputs, error, worker, tries.
What is there with status ok, for the same workflow, values, prompt and seed, is not made again. A file comes to its
place whole: --output-dir, in the folder that the workflow names, as 00017_s42_1a2b3c4d.mp4 (place in the list, seed,
and a part of the key that the results file has).

Several --server share the list: each takes the next prompt when it is free. What a server was making when it went away
goes to another one; it is asked again later. A prompt that fails is tried once on each of the others. --cluster does
the same with the GPUs of a Ray cluster, of which each makes one clip at a time; more may join while the list is made.
--gpus-per-clip lets several GPUs of a machine compute each clip together, which is for a clip that is to be there
sooner: a list is done sooner where each GPU makes its own.

exit codes:
  0    every prompt has its video
  2    wrong command line, or the workflow or a value in it is wrong
  3    some prompts failed, and the others were made; or results cannot be written
  4    no server can be reached; they want a login, or are not ComfyUI
  130  cancelled with Ctrl-C; started again, it goes on with the prompts that are not done

examples:
  python tools/run_prompts.py prompts.txt --server http://127.0.0.1:8188
  python tools/run_prompts.py prompts.txt --server 127.0.0.1:8188 --seed 7 --set LightX2VEmptyLatent.num_frames=49
  python tools/run_prompts.py prompts.txt --server http://10.0.0.7:8188 --server http://10.0.0.8:8188
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    results_file = options.results or options.prompts.with_suffix(".results.jsonl")
    try:
        prompts = read_prompts(options.prompts)
    except OSError as error:
        return _complain(Clips.NO_PROMPTS_FILE(path=options.prompts, reason=error.strerror), 2)
    except ValueError as error:
        return _complain(str(error), 2)
    problem = problem_of_folder(options.output_dir, "--output-dir")
    problem = problem or problem_of_kind(results_file, "--results", RESULTS)
    if problem is None and options.report:
        problem = _problem_of_report(options.report, results_file)
    if problem:
        return _complain(problem, _FAILED)
    jobs = make_jobs(
        prompts,
        workflow=options.workflow,
        values=options.set,
        seed=options.seed,
        prompt_input=options.prompt_input,
        seed_input=options.seed_input,
    )
    try:
        results = Results(results_file, options.output_dir)
        results.adopt(jobs)
    except OSError as error:
        return _complain(refusal(results_file, "--results", error), _FAILED)
    waiting = [job for job in jobs if not results.is_done(job)]
    if not options.quiet:
        console.complain(Clips.COUNT(num_prompts=len(jobs), num_done=len(jobs) - len(waiting)))
    desk = Desk(
        results=results,
        num_jobs=len(waiting),
        quiet=options.quiet,
        names_workers=bool(options.cluster) or len(options.server) > 1,
    )
    code = _run(options, waiting, desk) if waiting else 0
    if not code and desk.num_failed:
        code = _complain(
            Clips.SOME_FAILED(num_failed=desk.num_failed, num_waiting=len(waiting), path=results.path), _FAILED
        )
    if options.report:
        try:
            write_report(options.report, desk.summary())
        except NotSavedError as error:
            code = _complain(str(error), code or _FAILED)
        except OSError as error:
            code = _complain(refusal(options.report, "--report", error), code or _FAILED)
    return code


def _problem_of_report(report: Path, results_file: Path) -> str | None:
    """Return a sentence that says why the report cannot be written; or None."""
    problem = problem_of_file(report, "--report", REPORT)
    if problem is None and os.path.realpath(report) == os.path.realpath(results_file):
        return Saving.CHOOSE(option="--report", reason=Saving.ARE_RESULTS(path=report))
    return problem


def _run(options: argparse.Namespace, jobs: Sequence[Job], desk: Desk) -> int:
    """Make the clips; returns the exit code of what has ended the list early, or 0."""
    made_last: list[Path] = []

    def make(worker: Worker, job: Job) -> Made:
        with desk.results.parts(job) as folder:
            made = worker.make(job, folder)
            files = desk.results.publish(job, folder, made.files)
        made_last[:] = files[:1]
        return Made(files=files, seconds=made.seconds, facts=made.facts)

    progress = Progress(sys.stderr, quiet=options.quiet or bool(options.cluster) or len(options.server) > 1)
    try:
        workers = _find_workers(options, progress)
    except CommandError as error:
        return _complain(str(error), error.exit_code)
    try:
        with logging_to(progress):
            ClipQueue(jobs, workers, desk, make, retries=options.retries).run()
    except KeyboardInterrupt:
        return _complain(Clips.CANCELLED(), _CANCELLED)
    except CommandError as error:
        return error.exit_code
    except OSError as error:
        made = Clips.LAST_IS_MADE(file=made_last[0]) if made_last else ""
        where = error.filename2 or error.filename or options.output_dir
        return _complain(
            Clips.NO_ROOM(where=where, reason=error.strerror, made=made),
            _FAILED,
        )
    finally:
        workers.close()
    return 0


def _find_workers(options: argparse.Namespace, progress: Progress) -> Workers:
    """Return the servers, or this process where none is named.

    Raises:
        WorkflowError: an address or a header is none.
    """
    if options.cluster:
        return _find_cluster(options)
    servers = [Server(url, options.header, options.token) for url in options.server]
    places: dict[str, Place] = {server.base: server for server in servers}
    places = places or {"": Here(options.models_dir, options.output_dir, keeps_models=True)}
    how = (options.workflow, options.timeout, progress, options.gpus_per_clip)
    return Fixed([PlaceWorker(name, place, *how) for name, place in places.items()])


def _find_cluster(options: argparse.Namespace) -> Workers:
    """Return the GPUs of a Ray cluster.

    Raises:
        CommandError: Ray is not installed, there is no such cluster, or the workflow cannot be read.
    """
    from .clips.cluster import Cluster, Recipe

    if options.server:
        raise WorkflowError(Clips.TWO_PLACES())
    read_workflow(options.workflow)
    return Cluster(
        options.cluster,
        Recipe(
            pack=_PACK_ROOT,
            models_dir=options.models_dir.resolve(),
            workflow=options.workflow.read_bytes(),
            timeout=options.timeout,
            gpus=options.gpus_per_clip,
        ),
    )


def _complain(message: str, code: int) -> int:
    console.complain(message, by="run_prompts")
    return code


def _parser() -> Parser:
    parser = Parser(
        prog="run_prompts.py",
        description="Make a video for every line of a text file with a workflow file: here, in a running ComfyUI "
        "(--server), or in several. The model stays loaded from one to the next.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompts", type=Path, metavar="PROMPTS.txt")
    parser.add_argument(
        "--workflow",
        type=Path,
        default=_PACK_ROOT / "example_workflows" / "1 Wan text to video.json",
        metavar="FILE",
        help="default: example_workflows/1 Wan text to video.json of the pack",
    )
    parser.add_argument(
        "--server", action="append", default=[], metavar="URL", help="a ComfyUI to queue on; may be repeated"
    )
    parser.add_argument(
        "--cluster",
        metavar="local|auto|HOST:PORT",
        help="make the clips on the GPUs of a Ray cluster (pip install ray): of this machine, its own, or another",
    )
    parser.add_argument(
        "--gpus-per-clip",
        type=whole(1, MOST_RANKS),
        metavar="N",
        help="let N GPUs of a machine compute each clip together; default: as the workflow says, of a cluster one",
    )
    parser.add_argument("--header", action="append", default=[], metavar="'NAME: VALUE'", help="as for run_workflow.py")
    parser.add_argument("--token", metavar="TOKEN", help="as for run_workflow.py")
    parser.add_argument(
        "--seed", type=whole(0, MAX_SEED), default=0, metavar="N", help="of the first prompt; the next ones count up"
    )
    parser.add_argument("--results", type=Path, metavar="FILE", help="default: PROMPTS.results.jsonl")
    parser.add_argument(
        "--prompt-input", default="LightX2VTextEncode.text", metavar="NODE.INPUT", help="default: %(default)s"
    )
    parser.add_argument(
        "--seed-input", default="LightX2VSampler.seed", metavar="NODE.INPUT", help="default: %(default)s"
    )
    parser.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="for every prompt")
    parser.add_argument(
        "--models-dir", type=Path, default=comfy_folder("models"), metavar="DIR", help="as for run_workflow.py"
    )
    parser.add_argument(
        "--output-dir", type=Path, default=comfy_folder("output"), metavar="DIR", help="as for run_workflow.py"
    )
    parser.add_argument("--timeout", type=seconds, metavar="SECONDS", help="of one prompt; it then counts as failed")
    parser.add_argument(
        "--retries",
        type=whole(0, _MOST_RETRIES),
        default=2,
        metavar="N",
        help="how often a prompt is tried again (default: %(default)s)",
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write what the whole list took, as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress; errors are still printed")
    return parser
