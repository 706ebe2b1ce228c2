"""A run's folder: the weights of its stages, the tokenizer, and what all stages agree on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...engine.shapes import latent_shape
from . import captions
from . import vae as autoencoder
from .export import EXPERTS, load_checkpoint
from .image import build_expert
from .models import Generator, Sizes, build_generator, load_modules, save_modules

SIZES = Sizes()
VAE_DIM = 24
SIZE, NUM_FRAMES = autoencoder.CLIP
LATENT_SHAPE = latent_shape(SIZE, SIZE, NUM_FRAMES)

_TOKENIZER = "spiece.model"


def unpack(folder: Path, run: Path) -> None:
    """Make a run of a finished checkpoint: what its stages would have left."""
    generator, vae = build_generator(SIZES, torch.device("cpu")), autoencoder.build_vae(VAE_DIM)
    spiece_model = load_checkpoint(folder, generator, vae)
    run.mkdir(parents=True, exist_ok=True)
    (run / _TOKENIZER).write_bytes(spiece_model)
    save_modules(run / "vae.safetensors", vae=vae)
    save_modules(run / "text.safetensors", text_encoder=generator.text_encoder)
    save_generator(run / "distill.safetensors", generator)


def make_tokenizer(run: Path) -> None:
    """Train the tokenizer, unless the run has one."""
    run.mkdir(parents=True, exist_ok=True)
    tokenizer = run / _TOKENIZER
    if not tokenizer.exists():
        # Whole or not at all: stages may run side by side.
        unfinished = tokenizer.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(captions.train_tokenizer())
        unfinished.replace(tokenizer)


def device() -> torch.device:
    """Return where to train."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def read_tokenizer(run: Path) -> bytes:
    """Return the tokenizer's file."""
    return (run / _TOKENIZER).read_bytes()


def read_vae(run: Path) -> Any:
    """Return the VAE, which is not to be trained."""
    vae = autoencoder.build_vae(VAE_DIM).to(device()).requires_grad_(False)
    load_modules(run / "vae.safetensors", vae=vae)
    return vae


def read_generator(path: Path) -> Generator:
    """Read the weights of a stage from text to video."""
    generator = build_generator(SIZES, device())
    load_modules(path, transformer=generator.transformer, text_encoder=generator.text_encoder)
    return generator


def save_generator(path: Path, generator: Generator) -> None:
    """Write what `read_generator` reads."""
    save_modules(path, transformer=generator.transformer, text_encoder=generator.text_encoder)


def read_experts(run: Path, stage: str) -> list[Generator]:
    """Read the image-to-video experts of a stage, high noise first, each with the text encoder."""
    experts = [build_expert(SIZES, device()) for _ in EXPERTS]
    resume_experts(run, stage, experts)
    for expert in experts:
        load_modules(run / "text.safetensors", text_encoder=expert.text_encoder)
    return experts


def resume_experts(run: Path, stage: str, experts: Sequence[Generator]) -> None:
    """Give experts the transformers that a stage left."""
    for name, expert in zip(EXPERTS, experts, strict=True):
        load_modules(run / f"{stage}_{name}.safetensors", transformer=expert.transformer)


def save_experts(run: Path, stage: str, experts: Sequence[Generator]) -> None:
    """Write what `read_experts` reads, but for the text encoder."""
    for name, expert in zip(EXPERTS, experts, strict=True):
        save_modules(run / f"{stage}_{name}.safetensors", transformer=expert.transformer)
