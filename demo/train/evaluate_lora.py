"""Does the LoRA do what it should, in every precision, and what is left of it where it is rounded into FP8 weights?

Through the engine, as a user's graph runs it; measured from the pixels by tools/clip_content.py.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ...tools.clip_content import THING_COLOURS, measure_psnr
from ...tools.make_tiny_checkpoint import PRECISION_FOLDERS
from . import captions
from .evaluate import SETTINGS, Engine, score_clips
from .export import write_precision
from .lora import COLOUR, list_prompts

NO_LORA, MERGED = "fp8, without", "fp8, merged and rounded"
# Precision of the file, and whether the LoRA is put on.
WAYS = {
    NO_LORA: ("fp8", False),
    "bf16": ("bf16", True),
    "fp8": ("fp8", True),
    "int8": ("int8", True),
    MERGED: ("fp8", False),
}
_HALVES = ("down", "up")
_FP8_LIMIT = torch.finfo(torch.float8_e4m3fn).max


def merge_and_round(checkpoint: Path, lora: Path, target: Path) -> float:
    """Write an FP8 checkpoint with a LoRA added to its weights and rounded to FP8 again, as others apply one.

    Args:
        checkpoint: as export.py writes it.
        lora: file of lora.Lora.
        target: becomes a checkpoint: what is not changed is linked to.

    Returns:
        Share of the LoRA that is left: the projection of what changed in the weights on what should have.
    """
    pairs = load_file(lora)
    shutil.copytree(checkpoint, target, copy_function=os.link)
    left = wanted = 0.0
    for file in sorted((target / PRECISION_FOLDERS["fp8"]).glob("block_*.safetensors")):
        tensors = load_file(file)
        for name in [name for name in tensors if f"diffusion_model.{name.removesuffix('weight')}alpha" in pairs]:
            down, up = (pairs[f"diffusion_model.{name.removesuffix('weight')}lora_{part}.weight"] for part in _HALVES)
            alpha = pairs[f"diffusion_model.{name.removesuffix('weight')}alpha"]
            change = alpha / len(down) * up.float() @ down.float()
            scale, before = tensors[f"{name}_scale"], tensors[name].float()
            tensors[name] = (before + change / scale).clamp(-_FP8_LIMIT, _FP8_LIMIT).to(tensors[name].dtype)
            left += float(((tensors[name].float() - before) * scale * change).sum())
            wanted += float(change.square().sum())
        file.unlink()  # it is a link to the checkpoint's
        save_file(tensors, file)
    return left / wanted


def evaluate_lora(
    checkpoint: Path,
    lora: Path,
    *,
    size: int,
    num_frames: int,
    count: int,
    ways: Sequence[str],
    tell: Callable[[str], None],
) -> None:
    """Run held-out prompts with the new colour, and others, through the engine in each of WAYS; prompt i has seed i."""
    prompts = {"new": list_prompts(count), "others": captions.list_prompts(count)}
    setting = SETTINGS["lcm, 4 steps"]
    for way in ways:
        precision, is_on = WAYS[way]
        with tempfile.TemporaryDirectory() as folder:
            path = checkpoint
            if way == MERGED:
                path = Path(folder, "merged")
                tell(f"{way}: {100 * merge_and_round(checkpoint, lora, path):.1f} % of the LoRA is left in the weights")
            elif precision == "int8":
                path = Path(folder, "int8")
                shutil.copytree(checkpoint, path, copy_function=os.link)
                write_precision(path, precision)
            engine = Engine(path, precision=precision, size=size, num_frames=num_frames)
            plain = Engine(path if way != MERGED else checkpoint, precision=precision, size=size, num_frames=num_frames)
            if is_on:
                engine.put_on(lora)
            for name, wanted in prompts.items():
                clips = [engine.draw(text, seed, setting) for seed, (_, text) in enumerate(wanted)]
                score = score_clips(clips, [content for content, _ in wanted], (*THING_COLOURS, COLOUR))
                line = f"{way:24s}{name:8s}{score}"
                if name == "others" and way != NO_LORA:
                    beside = [plain.draw(text, seed, setting) for seed, (_, text) in enumerate(wanted)]
                    same = [measure_psnr(one, other) for one, other in zip(clips, beside, strict=True)]
                    line += f"  beside without it {sum(same) / count:.1f} dB, at least {min(same):.1f}"
                tell(line)
