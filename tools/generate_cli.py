"""The command line of tools/generate.py: a prompt, the engine, and a video; no graph and no ComfyUI."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from ..engine import pipeline, report_table, shapes
from ..engine.backends.table import ATTENTION_CHOICES
from ..engine.checkpoints.companions import find_companion
from ..engine.checkpoints.files import Checkpoint, list_checkpoint_folders, resolve_checkpoint
from ..engine.checkpoints.published import PUBLISHED, Variant
from ..engine.constants import (
    DEFAULT_HEIGHT,
    DEFAULT_NUM_FRAMES,
    DEFAULT_WIDTH,
    DISTILL_SHIFT,
    DISTILL_STEPS,
    FRAME_RATE,
    MAX_FRAMES,
    MAX_GIB,
    MAX_STEPS,
    PRECISIONS,
)
from ..engine.errors import CheckpointError, LightX2VError
from ..engine.panel.doctor import rank_files_here
from ..engine.progress import ProgressLine
from ..engine.report import records_of
from ..engine.sentences import joined
from ..engine.sentences.between import Between
from ..engine.sentences.kinds import Parts
from ..engine.sentences.report import Report
from ..engine.sentences.tools import Command
from ..engine.settings import (
    COMPILE_MODES,
    ENGINES,
    OFFLOAD_MODES,
    SAMPLING_METHODS,
    SHIFTS,
    TEXT_DEVICES,
    TILING_MODES,
    EngineSettings,
    OffloadSettings,
    SamplingSettings,
)
from ..engine.stages.conditioning import of_rows
from ..engine.system import is_out_of_memory
from . import console
from .arguments import MAX_SEED, Parser, number, whole
from .headless.cli import comfy_folder
from .headless.errors import Cancelled, CommandError, RunError
from .headless.places import interruptible
from .headless.progress import Progress, logging_to
from .mp4 import write_mp4
from .saving import problem_of_file, refusal, save

_EPILOG = """\
exit codes:
  0    done; stdout has the path of the video, or the post
  2    wrong command line, no checkpoint, or a value is wrong; nothing was run
  3    the run failed
  130  cancelled with Ctrl-C

examples:
  python tools/generate.py "a red fox in the snow" --size 832x480 --out fox.mp4
  python tools/generate.py "a red fox in the snow" --checkpoint demo/checkpoint --size 64x64 --frames 17
  python tools/generate.py --benchmark --size 1280x720 > post.md
"""
# What a benchmark shows when no prompt is given.
_PROMPT = "A red fox trots through fresh snow at the edge of a pine forest at sunrise."
# What makes a video from a picture, by whether the model has a branch for CLIP Vision, as Wan2.1's.
_TEMPLATES = {
    True: "example_workflows/2 Wan image to video.json",
    False: "example_workflows/3 Wan2.2 first and last frame.json",
}


class UsageError(CommandError):
    """The command line is wrong; nothing was run."""

    exit_code = 2


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    progress = Progress(sys.stderr, quiet=options.quiet)
    try:
        with logging_to(progress):
            result = _run(options, progress)
    except KeyboardInterrupt:
        error: CommandError = Cancelled(Command.CANCELLED())
    except CommandError as caught:
        error = caught
    except OSError as caught:
        error = RunError(refusal(Path(caught.filename or options.models_dir), "--models-dir", caught))
    else:
        progress.clear()
        console.say(result)
        return 0
    progress.clear()
    console.complain(str(error), by="generate")
    return error.exit_code


def _parser() -> Parser:
    parser = Parser(
        prog="generate.py",
        description="Make a video from a prompt with the pack's engine, without a graph and without ComfyUI.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompt", nargs="?", help="what the video shows; --benchmark has one of its own")
    parser.add_argument("--out", type=Path, metavar="FILE.mp4", help="default: lightx2v.mp4; none with --benchmark")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE.mp4 if it is there")
    size = f"{DEFAULT_WIDTH}x{DEFAULT_HEIGHT}"
    parser.add_argument("--size", default=size, metavar="WxH", help="multiples of 16 (default: %(default)s)")
    parser.add_argument(
        "--frames", type=whole(1, MAX_FRAMES), default=DEFAULT_NUM_FRAMES, help="4n+1 (default: %(default)s)"
    )
    parser.add_argument("--seed", type=whole(0, MAX_SEED), default=0, help="default: %(default)s")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="PATH",
        help="text-to-video checkpoint folder or transformer file (default: the first folder in lightx2v/ of "
        "--models-dir, else a published file in diffusion_models/)",
    )
    parser.add_argument(
        "--text-encoder",
        type=Path,
        metavar="FILE",
        help="default: the checkpoint's, else the one in text_encoders/ of --models-dir",
    )
    parser.add_argument(
        "--vae", type=Path, metavar="FILE", help="default: the checkpoint's, else the one in vae/ of --models-dir"
    )
    parser.add_argument(
        "--models-dir", type=Path, default=comfy_folder("models"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--benchmark", action="store_true", help="run twice, print a Markdown post of the second")
    parser.add_argument("--quiet", action="store_true", help="no progress, no log; errors are still printed")
    more = parser.add_argument_group("as on the nodes")
    for name, choices in (
        ("precision", PRECISIONS),
        ("offload", OFFLOAD_MODES),
        ("engine", ENGINES),
        ("attention", ATTENTION_CHOICES),
        ("compile", COMPILE_MODES),
        ("tiling", TILING_MODES),
    ):
        more.add_argument(f"--{name}", choices=choices, default="auto", help="default: auto")
    more.add_argument("--vram-budget", type=number(0, MAX_GIB), default=0.0, metavar="GIB", help="0: what is free")
    more.add_argument("--text-device", choices=TEXT_DEVICES, default="cpu", help="default: cpu")
    more.add_argument("--method", choices=SAMPLING_METHODS, default="lcm", help="default: lcm")
    more.add_argument("--steps", type=whole(1, MAX_STEPS), default=DISTILL_STEPS, help="default: %(default)s")
    more.add_argument("--shift", type=number(*SHIFTS), default=DISTILL_SHIFT, help="default: %(default)s")
    return parser


def _run(options: argparse.Namespace, progress: Progress) -> str:
    """Return what goes to stdout: the video's path, or the post.

    Raises:
        CommandError: with the sentence and the exit code.
    """
    width, height = _read_size(options.size)
    prompt = options.prompt if options.prompt is not None else _PROMPT if options.benchmark else None
    if prompt is None:
        raise UsageError(Command.NO_PROMPT())
    out = options.out or (None if options.benchmark else Path("lightx2v.mp4"))
    if out:
        _check_out(out, options.overwrite)
    problem = shapes.size_problem(width, height, options.frames, frames="--frames")
    if problem:
        raise UsageError(problem)
    try:
        settings = SamplingSettings(seed=options.seed, method=options.method, steps=options.steps, shift=options.shift)
        checkpoint = _resolve(options)
        loaded = pipeline.load_checkpoint(
            checkpoint.path,
            precision=options.precision,
            text_encoder=checkpoint.text_encoder,
            vae=checkpoint.vae,
            settings=EngineSettings(engine=options.engine, attention=options.attention, compile=options.compile),
            offload=OffloadSettings(
                mode=options.offload, vram_budget_gib=options.vram_budget, vae_tiling=options.tiling
            ),
        )
    except (CheckpointError, ValueError) as error:
        raise UsageError(str(error)) from error

    interrupted = False

    def interrupt(value: bool) -> None:
        nonlocal interrupted
        interrupted = value

    def check_interrupt() -> None:
        if interrupted:
            raise Cancelled(Command.CANCELLED())

    line = ProgressLine(lambda done, total, text: _show(progress, done, total, text))
    hooks = line.hooks(check_interrupt=check_interrupt)

    def make() -> torch.Tensor:
        progress.start_run(3)
        # Before a prompt is encoded for a size that does not fit.
        pipeline.check_size(loaded.transformer, (1, *shapes.latent_shape(width, height, options.frames)))
        progress.start_node(Report.ENCODE_PROMPT())
        rows = pipeline.encode_text(loaded.text_encoder, prompt, device=options.text_device, hooks=hooks)
        progress.finish_node()
        progress.start_node("sample")
        empty = pipeline.empty_latent(width, height, options.frames)
        conditioning = of_rows(rows, loaded.transformer.text_dim, records_of(rows))
        latents = pipeline.sample(loaded.transformer, conditioning, empty, settings, hooks=hooks)
        progress.finish_node()
        progress.start_node("decode")
        frames = pipeline.decode(loaded.vae, latents, tiling=options.tiling, hooks=hooks)
        progress.finish_node()
        return frames

    with interruptible(interrupt, None):
        frames = _explained(make)
        if options.benchmark:
            first = pipeline.report_of(frames)
            del frames
            frames = _explained(make)
        if out:
            save({out: lambda path: write_mp4(path, frames, FRAME_RATE, check_interrupt=check_interrupt)})
    if not options.benchmark:
        return str(out)
    started = report_table.format_seconds(first["total_seconds"])
    post = report_table.as_markdown(console.spoken(report_table.as_rows(pipeline.report_of(frames))))
    return f"{post}\n- {console.spoken(Command.FIRST_RUN(started=started))}"


def _show(progress: Progress, done: int, total: int, what: str) -> None:
    progress.note(what)
    progress.update(done, total)


def _read_size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", text)
    if not found:
        raise UsageError(Command.NO_SIZE(text=text, width=DEFAULT_WIDTH, height=DEFAULT_HEIGHT))
    return int(found[1]), int(found[2])


def _check_out(out: Path, is_replaced: bool) -> None:
    """Refuse before the run what would fail after it."""
    if out.suffix.lower() != ".mp4":
        raise UsageError(Command.NO_MP4(out=out))
    try:
        has_folder = Path(os.path.realpath(out)).parent.exists()
        is_there = out.exists() and not out.is_dir()
    except OSError as error:
        raise UsageError(refusal(out, "--out", error)) from error
    if not has_folder:
        raise UsageError(Command.NO_FOLDER(out=out))
    if is_there and not is_replaced:
        raise UsageError(Command.EXISTS(out=out))
    problem = problem_of_file(out, "--out")
    if problem:
        raise UsageError(problem)


def _resolve(options: argparse.Namespace) -> Checkpoint:
    """Return what a text-to-video checkpoint consists of, with what ComfyUI's folders have of what it lacks.

    Raises:
        CheckpointError: a file is damaged or of the wrong kind, or several could be what is missing.
        UsageError: it is no text-to-video model, or a part is nowhere.
    """
    path = options.checkpoint or _find_checkpoint(options.models_dir)
    given = {"text_encoder": options.text_encoder, "vae": options.vae}
    found = resolve_checkpoint(path, options.precision, **given)
    if found.transformer is not None and found.transformer.format.architecture.takes_image:
        template = _TEMPLATES[bool(found.transformer.format.architecture.image_dim)]
        raise UsageError(Command.ONLY_TEXT_TO_VIDEO(path=path, template=template))
    if not found.has_text:
        given["text_encoder"] = find_companion(Parts.TEXT_ENCODER(), options.models_dir, path.name)
    if found.vae is None:
        given["vae"] = find_companion("VAE", options.models_dir, path.name)
    found = resolve_checkpoint(path, options.precision, **given)
    if found.transformer is not None and found.missing:
        variant = _variant_of(path, found)
        lacks = {"text-encoder": not found.has_text, "vae": found.vae is None}
        names = [name for name, is_missing in lacks.items() if is_missing]
        raise UsageError(
            Command.PARTS_MISSING(
                variant=variant.name,
                parts=" ".join(word for name in names for word in ("--part", name)),
                models_dir=options.models_dir,
                options=joined([f"--{name}" for name in names], Between.AND),
                missing=joined(found.missing, Between.BLANK),
            )
        )
    return found


def _variant_of(path: Path, found: Checkpoint) -> Variant:
    """Return what is published as a checkpoint, or else what has the parts for its kind and precision."""
    for variant in PUBLISHED.values():
        if path.name in variant.file_names:
            return variant
    precision = found.transformer.format.precision if found.transformer is not None else "fp8"
    return PUBLISHED[precision if path.is_dir() else f"{precision}-single"]


def _find_checkpoint(models_dir: Path) -> Path:
    root = models_dir / "lightx2v"
    names = list_checkpoint_folders(root)
    if names:
        return root / names[0]
    variants = [advice.variant for advice in rank_files_here()]
    single = next(
        (file for each in variants if not each.is_folder and (file := models_dir / each.entry).is_file()), None
    )
    if single is None:
        raise UsageError(Command.NO_CHECKPOINT(root=root, variant=variants[0].name, models_dir=models_dir))
    return single


def _explained(work: Callable[[], torch.Tensor | None]) -> torch.Tensor | None:
    """Do a part of the run; what users can do something about becomes a sentence."""
    try:
        return work()
    except (LightX2VError, ValueError, OSError) as error:
        raise RunError(str(error)) from error
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(Command.GPU_FULL(said=str(error).splitlines()[0])) from error
