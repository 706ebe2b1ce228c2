"""The command line of demo/train."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...engine.shapes import latent_shape
from ...tools.clip_content import THING_COLOURS, measure_psnr
from . import captions, distill, evaluate, flow, image, lora, text
from . import vae as autoencoder
from .export import EXPERTS, export_checkpoint, export_experts, load_checkpoint
from .models import Generator, Sizes, build_generator, load_modules, save_modules
from .sheet import draw_sheet
from .training import Budget, Log

VAE_DIM = 24
SIZE, NUM_FRAMES = autoencoder.CLIP
LATENT_SHAPE = latent_shape(SIZE, SIZE, NUM_FRAMES)

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
    if options.graphs and _device().type != "cuda":
        raise SystemExit("train: --graphs needs a CUDA device; none was found. Leave it away.")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    options.run.mkdir(parents=True, exist_ok=True)
    tokenizer = options.run / "spiece.model"
    if not tokenizer.exists():
        # Whole or not at all: stages may run side by side.
        unfinished = tokenizer.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(captions.train_tokenizer())
        unfinished.replace(tokenizer)
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
    drawn, decoded = evaluate.reconstruct(vae, contents, size=SIZE, num_frames=NUM_FRAMES, seed=options.seed)
    for name, clips in {"drawn": drawn, "encoded and decoded": decoded}.items():
        log.write(setting=name, clips=len(clips), **evaluate.score_clips(clips, contents).facts())
    pairs = [clip for pair in zip(drawn[:4], decoded[:4], strict=True) for clip in pair]
    draw_sheet(pairs, ["drawn", "encoded and decoded"] * 4).save(options.run / "vae.png")


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
    path = options.run / "flow.safetensors"
    flow.train_flow(
        [generator],
        pool,
        budget,
        log,
        batch=options.batch,
        graphs=options.graphs,
        keep=lambda: _keep(options, log, generator, path, evaluate.TEACHER_SETTINGS),
    )
    settings = {"20 steps": evaluate.TEACHER_SETTINGS, "lcm, 4 steps": evaluate.SETTINGS["lcm, 4 steps"]}
    _look(options, log, generator, settings)


def _distill(options: argparse.Namespace, budget: Budget, log: Log) -> None:
    teacher, generator = (_read_generator(options.run / "flow.safetensors") for _ in range(2))
    if options.resume_distill:
        load_modules(options.resume_distill, transformer=generator.transformer)
    for each in (teacher, generator):
        _compile(each, options)
    path = options.run / "distill.safetensors"
    rows = distill.encode_captions(generator, _read_tokenizer(options.run), 64 * options.batch, options.seed)
    nothing = torch.empty(options.batch, 0, *LATENT_SHAPE[1:], device=rows.device)
    distill.distill(
        [generator],
        [teacher],
        lambda count: (rows[torch.randint(len(rows), (count,), device=rows.device)], nothing),
        budget,
        log,
        latent_shape=LATENT_SHAPE,
        batch=options.batch,
        graphs=options.graphs,
        keep=lambda: _keep(options, log, generator, path, evaluate.SETTINGS["lcm, 4 steps"]),
    )
    _look(options, log, generator, evaluate.SETTINGS)


def _train_image(options: argparse.Namespace, budget: Budget, log: Log) -> None:
    batch = options.batch // len(EXPERTS)
    generator = _read_generator(options.run / "distill.safetensors")
    experts = [image.build_expert(Sizes(), _device()) for _ in EXPERTS]
    for name, expert in zip(EXPERTS, experts, strict=True):
        image.start_from_text(expert, generator)
        if options.resume_image:
            load_modules(options.resume_image / f"image_{name}.safetensors", transformer=expert.transformer)
    vae = _read_vae(options.run)
    _log_ceiling(options, log, vae)
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
        keep=lambda: _keep_image(options, log, experts, "image", evaluate.TEACHER_SETTINGS),
    )
    _look_at_image(options, log, experts, "image", {"20 steps": evaluate.TEACHER_SETTINGS})


def _distill_image(options: argparse.Namespace, budget: Budget, log: Log) -> None:
    teachers, students = (_read_experts(options.run, "image") for _ in range(2))
    if options.resume_image_distill:
        for name, student in zip(EXPERTS, students, strict=True):
            path = options.resume_image_distill / f"image_distill_{name}.safetensors"
            load_modules(path, transformer=student.transformer)
    pool = _fill_image_pool(options, log, students[0], _read_vae(options.run))
    for each in (*teachers, *students):
        _compile(each, options)
    setting = evaluate.SETTINGS["lcm, 4 steps"]
    distill.distill(
        students,
        teachers,
        lambda count: pool.draw(count)[1:],
        budget,
        log,
        latent_shape=LATENT_SHAPE,
        batch=options.batch // len(EXPERTS),
        graphs=options.graphs,
        keep=lambda: _keep_image(options, log, students, "image_distill", setting),
    )
    settings = {name: evaluate.SETTINGS[name] for name in ("lcm, 4 steps", "euler, 4 steps")}
    _look_at_image(options, log, students, "image_distill", settings)
    for name, wrong in evaluate.WRONG_IMAGES.items():
        _score_image(options, log, students, name, setting, wrong=wrong)


def _train_lora(options: argparse.Namespace, budget: Budget, log: Log) -> None:
    generator, vae = _read_generator(options.run / "distill.safetensors"), _read_vae(options.run)
    spiece_model = _read_tokenizer(options.run)
    examples = lora.make_examples(
        generator,
        vae,
        spiece_model,
        Budget(seconds=options.examples_seconds, steps=options.examples_steps),
        log,
        seed=options.seed,
        latent_shape=LATENT_SHAPE,
        batch=options.batch // 4,
    )
    added = lora.Lora(generator.transformer)
    path = options.run / "lora.safetensors"

    def keep() -> None:
        added.save(path)
        _score_lora(options, log, generator, vae, added, count=64)

    lora.train_lora(generator, added, examples, budget, log, batch=options.batch, graphs=options.graphs, keep=keep)
    _score_lora(options, log, generator, vae, added, count=options.batch)


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
    generator, vae = build_generator(Sizes(), torch.device("cpu")), autoencoder.build_vae(VAE_DIM)
    spiece_model = load_checkpoint(options.folder, generator, vae)
    options.run.mkdir(parents=True, exist_ok=True)
    (options.run / "spiece.model").write_bytes(spiece_model)
    save_modules(options.run / "vae.safetensors", vae=vae)
    save_modules(options.run / "text.safetensors", text_encoder=generator.text_encoder)
    _save_generator(options.run / "distill.safetensors", generator)


def _export_image(options: argparse.Namespace) -> None:
    folder = export_experts(options.folder, _read_experts(options.run, "image_distill"))
    num_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"Wrote {folder}: {num_bytes / 1e6:.1f} MB")


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
        settings={name: evaluate.SETTINGS[name] for name in options.settings},
        tell=lambda line: print(line, flush=True),
    )


def _keep(
    options: argparse.Namespace, log: Log, generator: Generator, path: Path, setting: tuple[str, int, float]
) -> None:
    """Write the weights of a stage under way, and score a few held-out prompts."""
    _save_generator(path, generator)
    _score(options, log, generator, "so far", setting, count=64)


def _look(
    options: argparse.Namespace, log: Log, generator: Generator, settings: dict[str, tuple[str, int, float]]
) -> None:
    """Score a batch of held-out prompts with each setting, and draw a sheet of the first."""
    for index, (name, setting) in enumerate(settings.items()):
        prompts, clips = _score(options, log, generator, name, setting, count=options.batch)
        if index == 0:
            stage = "flow" if name == "20 steps" else "distill"
            draw_sheet(clips[:16], prompts[:16]).save(options.run / f"{stage}.png")


def _score(
    options: argparse.Namespace,
    log: Log,
    generator: Generator,
    name: str,
    setting: tuple[str, int, float],
    *,
    count: int,
) -> tuple[list[str], list[torch.Tensor]]:
    """Sample held-out prompts, log the score of the first `count`, and return prompts and clips."""
    method, steps, shift = setting
    # As many as a batch of the training: compiled blocks are compiled for that.
    contents, prompts = zip(*captions.list_prompts(options.batch), strict=True)
    clips = evaluate.generate(
        [generator],
        _read_vae(options.run),
        _read_tokenizer(options.run),
        prompts,
        latent_shape=LATENT_SHAPE,
        method=method,
        steps=steps,
        shift=shift,
    )
    score = evaluate.score_clips(clips[:count], contents[:count])
    pairs = {index for index, content in enumerate(contents[:count]) if len(content.things) == 2}
    pairs_right = 1 - len(pairs.intersection(score.wrong)) / max(1, len(pairs))
    log.write(setting=name, clips=min(count, len(clips)), **score.facts(), all_of_pairs=pairs_right)
    return list(prompts), clips


def _fill_image_pool(options: argparse.Namespace, log: Log, generator: Generator, vae: Any) -> flow.Pool:
    return flow.fill_pool(
        generator,
        vae,
        _read_tokenizer(options.run),
        Budget(seconds=options.pool_seconds, steps=options.pool_steps),
        log,
        seed=options.seed,
        size=SIZE,
        num_frames=NUM_FRAMES,
        batch=min(64, options.batch),
        has_images=True,
    )


def _image_cases(options: argparse.Namespace) -> evaluate.ImageCases:
    """As many as a batch of the training: compiled blocks are compiled for that."""
    return evaluate.list_image_cases(options.batch // len(EXPERTS), _device(), size=SIZE, num_frames=NUM_FRAMES)


def _log_ceiling(options: argparse.Namespace, log: Log, vae: Any) -> None:
    """Score the drawn clips, and the same encoded and decoded: no model can score more."""
    cases = _image_cases(options)
    for name, films in {
        "drawn": cases.drawn,
        "encoded and decoded": evaluate.encode_and_decode(vae, cases.video),
    }.items():
        log.write(setting=name, clips=len(films), **cases.score(films).facts())


def _keep_image(
    options: argparse.Namespace,
    log: Log,
    experts: Sequence[Generator],
    stage: str,
    setting: tuple[str, int, float],
) -> None:
    for name, expert in zip(EXPERTS, experts, strict=True):
        save_modules(options.run / f"{stage}_{name}.safetensors", transformer=expert.transformer)
    _score_image(options, log, experts, "so far", setting)


def _look_at_image(
    options: argparse.Namespace,
    log: Log,
    experts: Sequence[Generator],
    stage: str,
    settings: dict[str, tuple[str, int, float]],
) -> None:
    for index, (name, setting) in enumerate(settings.items()):
        cases, films = _score_image(options, log, experts, name, setting)
        if index == 0:
            pairs = [film for pair in zip(cases.drawn[:8], films[:8], strict=True) for film in pair]
            texts = [text for prompt in cases.prompts[:8] for text in ("drawn", prompt)]
            draw_sheet(pairs, texts).save(options.run / f"{stage}.png")


def _score_image(
    options: argparse.Namespace,
    log: Log,
    experts: Sequence[Generator],
    name: str,
    setting: tuple[str, int, float],
    *,
    wrong: evaluate.WrongImage | None = None,
) -> tuple[evaluate.ImageCases, list[torch.Tensor]]:
    method, steps, shift = setting
    cases, vae = _image_cases(options), _read_vae(options.run)
    given = image.encode_given(vae, cases.video, cases.has_last)
    if wrong:
        experts, given = wrong(experts, given)
    films = evaluate.generate(
        experts,
        vae,
        _read_tokenizer(options.run),
        cases.prompts,
        latent_shape=LATENT_SHAPE,
        method=method,
        steps=steps,
        shift=shift,
        given=given,
    )
    log.write(setting=name, clips=len(films), **cases.score(films).facts())
    return cases, films


def _score_lora(
    options: argparse.Namespace, log: Log, generator: Generator, vae: Any, added: lora.Lora, *, count: int
) -> None:
    """Score prompts with the new colour, and others, each with and without the LoRA; both with the same noise."""
    colours = (*THING_COLOURS, lora.COLOUR)
    for name, prompts in {"new": lora.list_prompts(count), "others": captions.list_prompts(count)}.items():
        contents, texts = zip(*prompts, strict=True)
        made = {}
        for is_on in (False, True):
            added.switch(is_on)
            made[is_on] = evaluate.generate(
                [generator],
                vae,
                _read_tokenizer(options.run),
                texts,
                latent_shape=LATENT_SHAPE,
                method="lcm",
                steps=distill.DISTILL_STEPS,
                shift=distill.DISTILL_SHIFT,
            )
            score = evaluate.score_clips(made[is_on], contents, colours)
            log.write(setting=f"{name}, {'with' if is_on else 'without'}", clips=count, **score.facts())
        same = [measure_psnr(one, other) for one, other in zip(made[True], made[False], strict=True)]
        log.write(setting=f"{name}, with beside without", psnr_db=sum(same) / count)
        if name == "new":
            draw_sheet(made[True][:16], texts[:16]).save(options.run / "lora.png")


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


def _read_experts(run: Path, stage: str) -> list[Generator]:
    """Read the image-to-video experts of a stage, with the text encoder."""
    experts = [image.build_expert(Sizes(), _device()) for _ in EXPERTS]
    for name, expert in zip(EXPERTS, experts, strict=True):
        load_modules(run / f"{stage}_{name}.safetensors", transformer=expert.transformer)
        load_modules(run / "text.safetensors", text_encoder=expert.text_encoder)
    return experts


def _save_generator(path: Path, generator: Generator) -> None:
    save_modules(path, transformer=generator.transformer, text_encoder=generator.text_encoder)


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
    parser = argparse.ArgumentParser(
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
        train.add_argument(f"--{option}-seconds", type=float, default=seconds, help=f"at most (default {seconds:g})")
        train.add_argument(f"--{option}-steps", type=int, help="at most; repeats a run on a machine of other speed")
    train.add_argument("--batch", type=int, default=256, help="clips in a batch of flow and distill (default 256)")
    train.add_argument("--compile", action="store_true", help="torch.compile the blocks: twice as fast on a GPU")
    train.add_argument("--graphs", action="store_true", help="record steps as CUDA graphs: faster yet, on a GPU only")
    train.add_argument("--seed", type=int, default=0)
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
    evaluation.add_argument("--count", type=int, default=200, help="held-out prompts (default 200)")
    return parser
