"""The command line of tools/train_tiny."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from ...engine.logic.shapes import latent_shape
from . import captions, distill, evaluate, flow, text
from . import vae as autoencoder
from .export import export_checkpoint
from .models import Generator, Sizes, build_generator, load_modules, save_modules
from .sheet import draw_sheet
from .training import Budget, Log

VAE_DIM = 24
SIZE, NUM_FRAMES = autoencoder.CLIP
LATENT_SHAPE = latent_shape(SIZE, SIZE, NUM_FRAMES)

_EPILOG = """\
  python tools/train_tiny train RUN --compile       all stages, on a GPU: about half an hour
  python tools/train_tiny export RUN demo/checkpoint
  python tools/train_tiny evaluate demo/checkpoint  on any machine
RUN gets the weights after each stage (text, vae, flow, distill; bfloat16), spiece.model, log.jsonl and a contact
sheet of most stages. A stage reads what the ones before it wrote, so each can be run again alone.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    options.run_command(options)
    return 0


def _train(options: argparse.Namespace) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    options.run.mkdir(parents=True, exist_ok=True)
    tokenizer = options.run / "spiece.model"
    if not tokenizer.exists():
        tokenizer.write_bytes(captions.train_tokenizer())
    for name in options.stages:
        torch.manual_seed(options.seed)
        budget = Budget(seconds=getattr(options, f"{name}_seconds"), steps=getattr(options, f"{name}_steps"))
        _STAGES[name](options, budget, Log(options.run / "log.jsonl", name))


def _train_text(options: argparse.Namespace, budget: Budget, log: Log) -> None:
    generator = build_generator(Sizes(), _device())
    text.train_text(generator, _read_tokenizer(options.run), budget, log, seed=options.seed)
    save_modules(options.run / "text.safetensors", text_encoder=generator.text_encoder)


def _train_vae(options: argparse.Namespace, budget: Budget, log: Log) -> None:
    vae = autoencoder.build_vae(VAE_DIM).to(_device())
    if options.resume_vae:
        load_modules(options.resume_vae, vae=vae)
        autoencoder.unset_wan_statistics(vae)
    autoencoder.train_vae(vae, budget, log, seed=options.seed)
    save_modules(options.run / "vae.safetensors", vae=vae)
    with torch.no_grad():
        video = autoencoder.ClipSource(options.seed + 2, _device(), held_out=True)(4, SIZE, NUM_FRAMES)
        decoded = autoencoder.decode(vae, autoencoder.encode(vae, video)).clamp(-1, 1)
    pairs = torch.stack([video, decoded], dim=1).flatten(0, 1)
    frames = [(clip + 1).permute(1, 2, 3, 0) / 2 for clip in pairs]
    draw_sheet(frames, ["drawn", "encoded and decoded"] * len(video)).save(options.run / "vae.png")


def _train_flow(options: argparse.Namespace, budget: Budget, log: Log) -> None:
    generator = build_generator(Sizes(), _device())
    load_modules(options.run / "text.safetensors", text_encoder=generator.text_encoder)
    if options.resume_flow:
        load_modules(options.resume_flow, transformer=generator.transformer)
    vae, spiece_model = _read_vae(options.run), _read_tokenizer(options.run)
    pool = flow.fill_pool(
        generator,
        vae,
        spiece_model,
        Budget(seconds=options.pool_seconds, steps=options.pool_steps),
        log,
        seed=options.seed,
        size=SIZE,
        num_frames=NUM_FRAMES,
    )
    _compile(generator, options)
    flow.train_flow(generator, pool, budget, log, batch=options.batch)
    _save_generator(options.run / "flow.safetensors", generator)
    settings = {"20 steps": evaluate.TEACHER_SETTINGS, "lcm, 4 steps": evaluate.SETTINGS["lcm, 4 steps"]}
    _look(options, log, generator, settings)


def _distill(options: argparse.Namespace, budget: Budget, log: Log) -> None:
    generator = _read_generator(options.run / "flow.safetensors")
    _compile(generator, options)
    spiece_model = _read_tokenizer(options.run)
    distill.distill(
        generator,
        spiece_model,
        budget,
        log,
        latent_shape=LATENT_SHAPE,
        seed=options.seed,
        batch=options.batch,
        resume=options.resume_distill,
    )
    _save_generator(options.run / "distill.safetensors", generator)
    _look(options, log, generator, evaluate.SETTINGS)


_STAGES = {"text": _train_text, "vae": _train_vae, "flow": _train_flow, "distill": _distill}


def _export(options: argparse.Namespace) -> None:
    generator = _read_generator(options.run / "distill.safetensors")
    folder = export_checkpoint(options.folder, generator, _read_vae(options.run), _read_tokenizer(options.run))
    num_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"Wrote {folder}: {num_bytes / 1e6:.1f} MB")


def _evaluate(options: argparse.Namespace) -> None:
    evaluate.evaluate_checkpoint(
        options.folder,
        precision=options.precision,
        size=SIZE,
        num_frames=NUM_FRAMES,
        count=options.count,
        tell=lambda line: print(line, flush=True),
    )


def _look(
    options: argparse.Namespace, log: Log, generator: Generator, settings: dict[str, tuple[str, int, float]]
) -> None:
    """Score a batch of held-out prompts, and draw a sheet of the first setting."""
    vae, spiece_model = _read_vae(options.run), _read_tokenizer(options.run)
    # As many as a batch of the training: compiled blocks are compiled for that.
    prompts = captions.list_prompts(options.batch)
    for index, (name, (method, steps, shift)) in enumerate(settings.items()):
        clips = evaluate.generate(
            generator,
            vae,
            spiece_model,
            [prompt for _, prompt in prompts],
            latent_shape=LATENT_SHAPE,
            method=method,
            steps=steps,
            shift=shift,
        )
        score = evaluate.score_clips(clips, [content for content, _ in prompts])
        log.write(setting=name, clips=len(clips), **score.facts())
        if index == 0:
            shown = [prompt for _, prompt in prompts[:16]]
            stage = "flow" if name == "20 steps" else "distill"
            draw_sheet(clips[: len(shown)], shown).save(options.run / f"{stage}.png")


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _compile(generator: Generator, options: argparse.Namespace) -> None:
    if options.compile:
        generator.transformer.compile_repeated_blocks(dynamic=False)


def _read_vae(run: Path) -> Any:
    vae = autoencoder.build_vae(VAE_DIM).to(_device()).requires_grad_(False)
    load_modules(run / "vae.safetensors", vae=vae)
    return vae


def _read_tokenizer(run: Path) -> bytes:
    return (run / "spiece.model").read_bytes()


def _read_generator(path: Path) -> Generator:
    generator = build_generator(Sizes(), _device())
    load_modules(path, transformer=generator.transformer, text_encoder=generator.text_encoder)
    return generator


def _save_generator(path: Path, generator: Generator) -> None:
    save_modules(path, transformer=generator.transformer, text_encoder=generator.text_encoder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train_tiny", description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train one stage or all")
    train.set_defaults(run_command=_train)
    train.add_argument("run", type=Path, help="folder of the run")
    train.add_argument("--stages", nargs="+", choices=tuple(_STAGES), default=tuple(_STAGES), help="default: all")
    for name, seconds in {"text": 30.0, "vae": 600.0, "pool": 60.0, "flow": 600.0, "distill": 600.0}.items():
        train.add_argument(f"--{name}-seconds", type=float, default=seconds, help=f"at most (default {seconds:g})")
        train.add_argument(f"--{name}-steps", type=int, help="at most; repeats a run on a machine of other speed")
    train.add_argument("--batch", type=int, default=256, help="clips in a batch of flow and distill (default 256)")
    train.add_argument("--compile", action="store_true", help="torch.compile the blocks: twice as fast on a GPU")
    train.add_argument("--seed", type=int, default=0)
    for name in ("vae", "flow", "distill"):
        train.add_argument(f"--resume-{name}", type=Path, metavar="FILE", help="start the stage from these weights")
    export = commands.add_parser("export", help="write the checkpoint")
    export.set_defaults(run_command=_export)
    export.add_argument("run", type=Path, help="folder of the run")
    export.add_argument("folder", type=Path, help="folder of the checkpoint")
    evaluation = commands.add_parser("evaluate", help="score a written checkpoint through the engine")
    evaluation.set_defaults(run_command=_evaluate)
    evaluation.add_argument("folder", type=Path, help="folder of the checkpoint")
    evaluation.add_argument("--precision", choices=("bf16", "fp8"), default="bf16")
    evaluation.add_argument("--count", type=int, default=200, help="held-out prompts (default 200)")
    return parser
