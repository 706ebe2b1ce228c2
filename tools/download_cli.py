"""The command line of tools/download.py."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import time
from pathlib import Path

from ..engine.adapters.hub.download import Plan, download, plan_download
from ..engine.checkpoints.published import ALL_PUBLISHED, PUBLISHED, DownloadError, Variant, find_variant
from ..engine.errors import LightX2VError
from ..engine.panel.doctor import rank_files_here
from ..engine.quantities import format_bytes
from ..engine.sentences import Sentence, joined
from ..engine.sentences.between import Between
from ..engine.sentences.tools import Command
from . import console
from .arguments import Parser
from .saving import problem_of_folder

_PACK_ROOT = Path(__file__).parent.parent

_EXIT_CODES = {"unreachable": 4, "denied": 4, "disk": 5}
_FAILED = 3
_CANCELLED = 130
_REDRAW_SECONDS = 0.2

_EPILOG = """\
exit codes:
  0    done; stdout has what to choose in the loader, below the models folder
  2    wrong command line
  3    a file is missing, damaged, or in the way of another; or a download runs already
  4    the hub cannot be reached, or gives no access
  5    the disk is too small
  130  cancelled with Ctrl-C; the next run goes on where it stopped

environment: HF_ENDPOINT (a mirror of the hub), HF_TOKEN, HF_HUB_DOWNLOAD_TIMEOUT, HTTPS_PROXY

examples:
  python tools/download.py list
  python tools/download.py get int8
  python tools/download.py get int8-single --part vae
  python tools/download.py get int8-single --models-dir /data/models --dry-run
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        options.run(options)
    except DownloadError as error:
        return _fail(str(error), _EXIT_CODES.get(error.problem, _FAILED))
    except (LightX2VError, OSError) as error:
        return _fail(str(error), _FAILED)
    except KeyboardInterrupt:
        return _fail(Command.CANCELLED_DOWNLOAD(), _CANCELLED)
    return 0


def _fail(message: str, code: int) -> int:
    console.complain()
    console.complain(message, by="download")
    return code


def _parser() -> Parser:
    parser = Parser(
        prog="download.py",
        description="List and fetch the published variants of the 4-step Wan2.1-T2V-14B: transformer, text encoder, "
        "tokenizer, VAE and config; models for image to video, and the LoRAs that distill others; verified, where the "
        "loaders look for them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="list | get")
    listing = commands.add_parser(
        "list", help="show the variants, the best for this card first, and the others, with their sizes; asks nobody"
    )
    listing.set_defaults(run=_list)
    get = commands.add_parser("get", help="fetch a variant, or what is missing of it")
    get.set_defaults(run=_get)
    get.add_argument("variant", choices=ALL_PUBLISHED, metavar="NAME", help="a name of 'list'")
    get.add_argument(
        "--part",
        action="append",
        default=[],
        metavar="PART",
        help="fetch only this part of it: text-encoder, vae, clip-vision ...; may be repeated",
    )
    get.add_argument(
        "--models-dir", type=Path, default=_default_models_dir(), metavar="DIR", help="default: %(default)s"
    )
    get.add_argument("--endpoint", metavar="URL", help="a mirror of the hub (default: HF_ENDPOINT)")
    get.add_argument("--replace", action="store_true", help="fetch files anew that are here with other content")
    get.add_argument("--dry-run", action="store_true", help="show the files with their exact sizes; fetch nothing")
    get.add_argument("--quiet", action="store_true", help="no progress; errors are still printed")
    return parser


def _default_models_dir() -> Path:
    """Return ComfyUI's folder where the pack is installed in ComfyUI, else one in the working folder."""
    is_installed = _PACK_ROOT.parent.name == "custom_nodes"
    return _PACK_ROOT.parent.parent / "models" if is_installed else Path("models")


def _list(_: argparse.Namespace) -> None:
    for advice in rank_files_here():
        _describe(advice.variant)
        if advice.step_seconds is not None:
            console.say(_INDENT + console.spoken(Command.ON_THIS_CARD(advice=advice)))
    for other in ALL_PUBLISHED.values():
        if other.name not in PUBLISHED:
            _describe(other)


_WIDTH = max(map(len, ALL_PUBLISHED))
_INDENT = " " * (_WIDTH + 12)


def _describe(variant: Variant) -> None:
    console.say(f"{variant.name:{_WIDTH}}  {format_bytes(variant.num_bytes):>8}  {console.spoken(variant.summary)}")
    parts = ", ".join(f"{console.spoken(part.what)} {format_bytes(part.num_bytes)}" for part in variant.parts)
    console.say(f"{_INDENT}{parts}")
    console.say(f"{_INDENT}{console.spoken(joined(variant.repositories, Between.AND))}")


def _get(options: argparse.Namespace) -> None:
    variant = _chosen(options)
    models_dir = options.models_dir.resolve()
    if options.dry_run:
        _show_plan(plan_download(variant, models_dir, endpoint=options.endpoint))
        return
    problem = problem_of_folder(models_dir, "--models-dir")
    if problem:
        raise LightX2VError(problem)
    # The pack shows one line for the whole; huggingface_hub would show one a file.
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    display = _Display(is_quiet=options.quiet)
    try:
        plan = download(
            variant, models_dir, on_progress=display.update, replace=options.replace, endpoint=options.endpoint
        )
    finally:
        display.close()
    for path in [file.target for file in plan.files] if variant.is_lora or variant.only else [plan.entry]:
        console.say(path.relative_to(models_dir).as_posix())


def _chosen(options: argparse.Namespace) -> Variant:
    """Return the variant, with what of it is to be fetched; ends with 2 where it has no such part."""
    variant = find_variant(options.variant)
    try:
        return variant.limited_to(options.part) if options.part else variant
    except ValueError as error:
        raise SystemExit(_fail(str(error), 2)) from None


def _show_plan(plan: Plan) -> None:
    for file in plan.files:
        state: Sentence = Command.BEGUN if file.part.exists() else Command.TO_FETCH
        if file.has_right_size:
            state = Command.THERE
        elif file.is_in_the_way:
            state = Command.IN_THE_WAY
        console.say(f"{console.spoken(state()):>10}  {file.remote.num_bytes:>15,}  {file.target}")
    console.say(
        Command.ALL_FILES(
            size=format_bytes(plan.num_bytes), num_files=len(plan.files), missing=format_bytes(plan.missing_bytes)
        )
    )


class _Display:
    """Progress on stderr: one live line on a terminal, else a line for every tenth."""

    def __init__(self, *, is_quiet: bool) -> None:
        self._is_quiet = is_quiet
        self._is_live = console.is_live(sys.stderr)
        self._started = self._drawn = time.monotonic()
        self._first: int | None = None
        self._tenth = 0

    def update(self, done: int, total: int, what: str) -> None:
        if self._is_quiet:
            return
        now = time.monotonic()
        if self._first is None:
            self._first = done
        if self._is_live and (now - self._drawn > _REDRAW_SECONDS or done == total):
            self._drawn = now
            self._write("\r" + self._line(done, total, what, now), end="")
        elif not self._is_live and done * 10 // max(total, 1) > self._tenth:
            self._tenth = done * 10 // max(total, 1)
            self._write(self._line(done, total, what, now).rstrip(), end="\n")

    def close(self) -> None:
        if self._is_live and not self._is_quiet:
            self._write("", end="\n")

    def _line(self, done: int, total: int, what: str, now: float) -> str:
        fetched, seconds = done - (self._first or 0), now - self._started
        speed = f"{format_bytes(int(fetched / seconds))}/s" if seconds > 1 else ""
        share = console.spoken(Command.OF_TOTAL(done=format_bytes(done), total=format_bytes(total)))
        line = f"{100 * done // max(total, 1):3d} %  {share}  {speed:>9}  {console.spoken(what)}"
        columns = shutil.get_terminal_size().columns - 1
        return line[:columns].ljust(columns) if self._is_live else line

    def _write(self, text: str, *, end: str) -> None:
        console.complain(text, end=end)
