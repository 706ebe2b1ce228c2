"""The command line of demo/train."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...tools.arguments import MAX_SEED, Parser, number, whole
from . import captions, distill, evaluate, flow, image, lora, runs, scores, text
from . import vae as autoencoder
from .evaluate_lora import WAYS, evaluate_lora
from .export import EXPERTS, export_checkpoint, export_experts
from .models import Generator, build_generator, load_modules, save_modules
from .sheet import draw_sheet
from .training import Budget, Log

_EPILOG = """\
  python demo/train train RUN --compile       all stages, on a GPU: about half an hour
  python demo/train export RUN demo/checkpoint
  python demo/train evaluate demo/checkpoint  on any machine
RUN gets the weights of each stage (bfloat16) every minute and at its end, spiece.model, log.jsonl and a contact sheet
of most stages. A stage reads what the ones before it wrote, so each can be run alone. Two more start from the finished
checkpoint:
  python demo/train unpack demo/checkpoint RUN
  python demo/train train RUN --stages lora
  python demo/train train RUN --stages image image_distill --compile
  python demo/train export-image RUN demo/image_to_video
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    options.run_command(options)
    return 0


def _train(options: argparse.Namespace) -> None:
    if options.graphs and runs.device().type != "cuda":
        raise SystemExit("train: --graphs needs a CUDA device; none was found. Leave it away.")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    runs.make_tokenizer(options.run)
    for name in options.stages:
        torch.manual_seed(options.seed)
        budget = Budget(seconds=getattr(options, f"{name}_seconds"), steps=getattr(options, f"{name}_steps"))
        _STAGES[name](options, budget, Log(options.run / "log.jsonl", name))


def _train_text(options: argparse.Namespace, budget: Budget, log: Log) -> None:
    generator = build_generator(runs.SIZES, runs.device())
    text.train_text(generator, runs.read_tokenizer(options.run), budget, log, seed=options.seed)
    save_modules(options.run / "text.safetensors", text_encoder=generator.text_encoder)


def _train_vae(options: argparse.Namespace, budget: Budget, log: Log) -> None:
    vae = autoencoder.build_vae(runs.VAE_DIM).to(runs.device())
    if options.resume_vae:
        load_modules(options.resume_vae, vae=vae)
        autoencoder.unset_wan_statistics(vae)
    autoencoder.train_vae(
        vae,
        budget,
        log,
        seed=options.seed,
        graphs=options.graphs,
        keep=lambda finished: save_modules(options.run / "vae.safetensors", vae=finished),
    )
    # How well clips are measured that are as they should be: no model can score more.
    contents = [content for content, _ in captions.list_prompts(64)]
    drawn, decoded = evaluate.reconstruct(vae, contents, size=runs.SIZE, num_frames=runs.NUM_FRAMES, seed=options.seed)
    for name, clips in {"drawn": drawn, "encoded and decoded": decoded}.items():
        log.write(setting=name, clips=len(clips), **evaluate.score_clips(clips, contents).facts())
    pairs = [clip for pair in zip(drawn[:4], decoded[:4], strict=True) for clip in pair]
    draw_sheet(pairs, ["drawn", "encoded and decoded"] * 4).save(options.run / "vae.png")


def _train_flow(options: argparse.Namespace, budget: Budget, log: Log) -> None:
    generator = build_generator(runs.SIZES, runs.device())
    load_modules(options.run / "text.safetensors", text_encoder=generator.text_encoder)
    if options.resume_flow:
        load_modules(options.resume_flow, transformer=generator.transformer)
    vae, spiece_model = runs.read_vae(options.run), runs.read_tokenizer(options.run)
    pool = flow.fill_pool(
        generator,
        vae,
        spiece_model,
        Budget(seconds=options.pool_seconds, steps=options.pool_steps),
        log,
        seed=options.seed,
        size=runs.SIZE,
        num_frames=runs.NUM_FRAMES,
    )
    _compile(generator, options)
    flow.train_flow(
        [generator],
        pool,
        budget,
        log,
        batch=options.batch,
        graphs=options.graphs,
        keep=lambda: _keep(options, log, generator, "flow", evaluate.TEACHER_SETTINGS),
    )
    settings = {"20 steps": evaluate.TEACHER_SETTINGS, "lcm, 4 steps": evaluate.SETTINGS["lcm, 4 steps"]}
    scores.look(options.run, options.batch, log, generator, "flow", settings)


def _distill(options: argparse.Namespace, budget: Budget, log: Log) -> None:
    teacher, generator = (runs.read_generator(options.run / "flow.safetensors") for _ in range(2))
    if options.resume_distill:
        load_modules(options.resume_distill, transformer=generator.transformer)
    for each in (teacher, generator):
        _compile(each, options)
    rows = distill.encode_captions(generator, runs.read_tokenizer(options.run), 64 * options.batch, options.seed)
    nothing = torch.empty(options.batch, 0, *runs.LATENT_SHAPE[1:], device=rows.device)
    distill.distill(
        [generator],
        [teacher],
        lambda count: (rows[torch.randint(len(rows), (count,), device=rows.device)], nothing),
        budget,
        log,
        latent_shape=runs.LATENT_SHAPE,
        batch=options.batch,
        graphs=options.graphs,
        keep=lambda: _keep(options, log, generator, "distill", evaluate.SETTINGS["lcm, 4 steps"]),
    )
    scores.look(options.run, options.batch, log, generator, "distill", evaluate.SETTINGS)


def _train_image(options: argparse.Namespace, budget: Budget, log: Log) -> None:
    batch = options.batch // len(EXPERTS)
    generator = runs.read_generator(options.run / "distill.safetensors")
    experts = [image.build_expert(runs.SIZES, runs.device()) for _ in EXPERTS]
    for expert in experts:
        image.start_from_text(expert, generator)
    if options.resume_image:
        runs.resume_experts(options.resume_image, "image", experts)
    vae = runs.read_vae(options.run)
    scores.log_ceiling(batch, log, vae)
    pool = _fill_image_pool(options, log, generator, vae)
    for expert in experts:
        _compile(expert, options)
    flow.train_flow(
        experts,
        pool,
        budget,
        log,
        batch=batch,
        graphs=options.graphs,
        keep=lambda: _keep_experts(options, log, experts, "image", evaluate.TEACHER_SETTINGS),
    )
    settings = {"20 steps": evaluate.TEACHER_SETTINGS}
    scores.look_at_image(options.run, batch, log, experts, "image", settings)


def _distill_image(options: argparse.Namespace, budget: Budget, log: Log) -> None:
    batch = options.batch // len(EXPERTS)
    teachers, students = (runs.read_experts(options.run, "image") for _ in range(2))
    if options.resume_image_distill:
        runs.resume_experts(options.resume_image_distill, "image_distill", students)
    pool = _fill_image_pool(options, log, students[0], runs.read_vae(options.run))
    for each in (*teachers, *students):
        _compile(each, options)
    setting = evaluate.SETTINGS["lcm, 4 steps"]
    distill.distill(
        students,
        teachers,
        lambda count: pool.draw(count)[1:],
        budget,
        log,
        latent_shape=runs.LATENT_SHAPE,
        batch=batch,
        graphs=options.graphs,
        keep=lambda: _keep_experts(options, log, students, "image_distill", setting),
    )
    settings = {name: evaluate.SETTINGS[name] for name in ("lcm, 4 steps", "euler, 4 steps")}
    scores.look_at_image(options.run, batch, log, students, "image_distill", settings)
    for name, wrong in evaluate.WRONG_IMAGES.items():
        scores.score_image(options.run, batch, log, students, name, setting, wrong=wrong)


def _train_lora(options: argparse.Namespace, budget: Budget, log: Log) -> None:
    generator, vae = runs.read_generator(options.run / "distill.safetensors"), runs.read_vae(options.run)
    spiece_model = runs.read_tokenizer(options.run)
    examples = lora.make_examples(
        generator,
        vae,
        spiece_model,
        Budget(seconds=options.examples_seconds, steps=options.examples_steps),
        log,
        seed=options.seed,
        latent_shape=runs.LATENT_SHAPE,
        batch=options.batch // 4,
    )
    added = lora.Lora(generator.transformer, options.lora_rank)
    path = options.run / "lora.safetensors"

    def keep() -> None:
        added.save(path)
        scores.score_lora(options.run, log, generator, vae, added, count=min(64, options.batch))

    lora.train_lora(generator, added, examples, budget, log, batch=options.batch, graphs=options.graphs, keep=keep)
    scores.score_lora(options.run, log, generator, vae, added, count=options.batch)


_STAGES = {
    "text": _train_text,
    "vae": _train_vae,
    "flow": _train_flow,
    "distill": _distill,
    "lora": _train_lora,
    "image": _train_image,
    "image_distill": _distill_image,
}


def _unpack(options: argparse.Namespace) -> None:
    runs.unpack(options.folder, options.run)


def _export_image(options: argparse.Namespace) -> None:
    _tell_size(export_experts(options.folder, runs.read_experts(options.run, "image_distill")))


def _export(options: argparse.Namespace) -> None:
    generator = runs.read_generator(options.run / "distill.safetensors")
    vae, spiece_model = runs.read_vae(options.run), runs.read_tokenizer(options.run)
    _tell_size(export_checkpoint(options.folder, generator, vae, spiece_model))


def _tell_size(folder: Path) -> None:
    num_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"Wrote {folder}: {num_bytes / 1e6:.1f} MB")


def _evaluate(options: argparse.Namespace) -> None:
    evaluate.evaluate_checkpoint(
        options.folder,
        precision=options.precision,
        size=runs.SIZE,
        num_frames=runs.NUM_FRAMES,
        count=options.count,
        settings={name: evaluate.SETTINGS[name] for name in options.settings},
        tell=lambda line: print(line, flush=True),
    )


def _evaluate_image(options: argparse.Namespace) -> None:
    evaluate.evaluate_images(
        options.folder,
        size=runs.SIZE,
        num_frames=runs.NUM_FRAMES,
        count=options.count,
        settings={name: evaluate.SETTINGS[name] for name in options.settings},
        tell=lambda line: print(line, flush=True),
    )


def _evaluate_lora(options: argparse.Namespace) -> None:
    evaluate_lora(
        options.folder,
        options.lora,
        size=runs.SIZE,
        num_frames=runs.NUM_FRAMES,
        count=options.count,
        ways=options.ways,
        tell=lambda line: print(line, flush=True),
    )


def _keep(options: argparse.Namespace, log: Log, generator: Generator, stage: str, setting: scores.Setting) -> None:
    """Write the weights of a stage under way, and score a few held-out prompts."""
    runs.save_generator(options.run / f"{stage}.safetensors", generator)
    scores.score(options.run, options.batch, log, generator, "so far", setting, count=64)


def _keep_experts(
    options: argparse.Namespace, log: Log, experts: Sequence[Generator], stage: str, setting: scores.Setting
) -> None:
    runs.save_experts(options.run, stage, experts)
    scores.score_image(options.run, options.batch // len(EXPERTS), log, experts, "so far", setting)


def _fill_image_pool(options: argparse.Namespace, log: Log, generator: Generator, vae: Any) -> flow.Pool:
    return flow.fill_pool(
        generator,
        vae,
        runs.read_tokenizer(options.run),
        Budget(seconds=options.pool_seconds, steps=options.pool_steps),
        log,
        seed=options.seed,
        size=runs.SIZE,
        num_frames=runs.NUM_FRAMES,
        batch=min(64, options.batch),
        has_images=True,
    )


def _compile(generator: Generator, options: argparse.Namespace) -> None:
    if options.compile:
        generator.transformer.compile_repeated_blocks(dynamic=False)


# What is limited -> seconds, unless an option says otherwise.
_SECONDS = {
    "text": 30.0,
    "vae": 600.0,
    "pool": 60.0,
    "flow": 600.0,
    "distill": 600.0,
    "examples": 60.0,
    "lora": 120.0,
    "image": 240.0,
    "image_distill": 180.0,
}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="train", description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train one stage or all")
    train.set_defaults(run_command=_train)
    train.add_argument("run", type=Path, help="folder of the run")
    train.add_argument(
        "--stages", nargs="+", choices=tuple(_STAGES), default=tuple(_STAGES)[:4], help="default: the first four"
    )
    for name, seconds in _SECONDS.items():
        option = name.replace("_", "-")
        train.add_argument(f"--{option}-seconds", type=number(), default=seconds, help=f"at most (default {seconds:g})")
        train.add_argument(f"--{option}-steps", type=whole(), help="at most; repeats a run on a machine of other speed")
    train.add_argument("--batch", type=whole(), default=256, help="clips in a batch of flow and distill (default 256)")
    train.add_argument("--lora-rank", type=whole(), default=lora.RANK, help="rank of the LoRA (default 32)")
    train.add_argument("--compile", action="store_true", help="torch.compile the blocks: twice as fast on a GPU")
    train.add_argument("--graphs", action="store_true", help="record steps as CUDA graphs: faster yet, on a GPU only")
    train.add_argument("--seed", type=whole(0, MAX_SEED), default=0)
    for name in ("image", "image-distill"):
        train.add_argument(f"--resume-{name}", type=Path, metavar="RUN", help="start the stage from this run's experts")
    for name in ("vae", "flow", "distill"):
        train.add_argument(f"--resume-{name}", type=Path, metavar="FILE", help="start the stage from these weights")
    export = commands.add_parser("export", help="write the checkpoint")
    export.set_defaults(run_command=_export)
    export.add_argument("run", type=Path, help="folder of the run")
    export.add_argument("folder", type=Path, help="folder of the checkpoint")
    unpack = commands.add_parser("unpack", help="make a run of a finished checkpoint, to go on from")
    unpack.set_defaults(run_command=_unpack)
    unpack.add_argument("folder", type=Path, help="folder of the checkpoint")
    unpack.add_argument("run", type=Path, help="folder of the run")
    export_image = commands.add_parser("export-image", help="write the image-to-video experts")
    export_image.set_defaults(run_command=_export_image)
    export_image.add_argument("run", type=Path, help="folder of the run")
    export_image.add_argument("folder", type=Path, help="folder of the checkpoint")
    evaluation = commands.add_parser("evaluate", help="score a written checkpoint through the engine")
    evaluation.set_defaults(run_command=_evaluate)
    evaluation.add_argument("folder", type=Path, help="folder of the checkpoint")
    evaluation.add_argument("--precision", choices=("bf16", "fp8"), default="bf16")
    evaluation.add_argument(
        "--settings", nargs="+", choices=tuple(evaluate.SETTINGS), default=tuple(evaluate.SETTINGS), help="default: all"
    )
    evaluation.add_argument("--count", type=whole(), default=200, help="held-out prompts (default 200)")
    of_image = commands.add_parser("evaluate-image", help="score image-to-video experts, through the engine")
    of_image.set_defaults(run_command=_evaluate_image)
    of_image.add_argument("folder", type=Path, help="folder of the experts, with VAE and text encoder")
    of_image.add_argument(
        "--settings", nargs="+", choices=tuple(evaluate.SETTINGS), default=("lcm, 4 steps", "euler, 4 steps")
    )
    of_image.add_argument("--count", type=whole(), default=200, help="held-out images (default 200)")
    of_lora = commands.add_parser("evaluate-lora", help="score a LoRA on a written checkpoint, through the engine")
    of_lora.set_defaults(run_command=_evaluate_lora)
    of_lora.add_argument("folder", type=Path, help="folder of the checkpoint")
    of_lora.add_argument("lora", type=Path, help="file of the LoRA")
    of_lora.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=tuple(WAYS), help="default: all")
    of_lora.add_argument("--count", type=whole(), default=200, help="held-out prompts of each kind (default 200)")
    return parser
