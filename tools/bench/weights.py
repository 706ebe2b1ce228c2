"""Random weights of the full sizes in the layouts of the real files: transformer, text encoder, VAEs."""

from __future__ import annotations

import argparse
import math
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from .. import make_tiny_checkpoint as checkpoints
from . import pack

PRECISIONS = ("fp8", "int8", "bf16")
# What a kind of transformer has beside a text-to-video one.
KINDS: dict[str, dict[str, int]] = {"t2v": {}, "i2v": {"in_dim": 36, "image_dim": 1280}, "i2v-a14b": {"in_dim": 36}}
_LOW = "-low"
"""Behind a kind: its low-noise expert, other numbers of the same shapes."""
TEXT_DIM = 4096
SMALL_TEXT = checkpoints.TinySizes(text_dim=TEXT_DIM, text_layers=24)
"""Of full width and depth, which names the model, for any CPU."""
FULL_TEXT = replace(SMALL_TEXT, text_heads=64, text_d_kv=64, text_d_ff=10240, vocab_size=256384)
"""Of UMT5-XXL."""

# Of writing; each holds the bytes of a block.
_NUM_THREADS = 4


def is_full(options: argparse.Namespace) -> bool:
    """Say whether the other models are of full size too."""
    return bool(options.dim > 1000)


def vae_file(folder: Path, options: argparse.Namespace) -> Path:
    """Return the file of Wan2.1's VAE below `folder`, or of a narrow one."""
    return ensure_vae(folder, 96 if is_full(options) else 8)


def load_template(folder: Path, options: argparse.Namespace, kind: str = "t2v") -> checkpoints.Tensors:
    """Return the weights of a model of one block in bfloat16; made once, then read from the folder."""
    file = folder / f"template-{_named(kind)}{options.dim}-{options.ffn_dim}.safetensors"
    if not file.exists():
        sizes = checkpoints.TinySizes(
            dim=options.dim, ffn_dim=options.ffn_dim, num_layers=1, text_dim=TEXT_DIM, **KINDS[kind.removesuffix(_LOW)]
        )
        drawn = checkpoints.make_transformer(sizes, seed=int(kind.endswith(_LOW)))
        template = {name: tensor.bfloat16() for name, tensor in drawn.items()}
        file.with_suffix(".part").write_bytes(save(template))
        file.with_suffix(".part").rename(file)
    return load_file(file)


def moved_block(template: checkpoints.Tensors, index: int) -> checkpoints.Tensors:
    """Return the template's block as block `index`, its rows moved by so many: a wrong order is noticed."""
    moved = {}
    for name, tensor in template.items():
        if name.startswith("blocks.0."):
            # As integers: torch moves no 8-bit floats.
            plain = tensor.view(torch.int8) if tensor.dtype == torch.float8_e4m3fn else tensor
            moved[name.replace("blocks.0.", f"blocks.{index}.")] = plain.roll(index, 0).view(tensor.dtype)
    return moved


def full_model(template: checkpoints.Tensors, num_layers: int) -> checkpoints.Tensors:
    """Return the tensors of a whole model of the template's blocks, on its device."""
    tensors = {name: tensor for name, tensor in template.items() if not name.startswith("blocks.")}
    for index in range(num_layers):
        tensors |= moved_block(template, index)
    return tensors


def ensure_transformer(folder: Path, options: argparse.Namespace, precision: str, kind: str = "t2v") -> Path:
    """Return the folder of the transformer's weights of a precision below `folder`; written where it is not complete.

    Scales are bfloat16 numbers: LightX2V rounds them to bfloat16 when it loads, and the runs are to be compared.
    """
    target = folder / f"weights-{precision}-{_named(kind)}{options.dim}x{options.layers}"
    if (target / "non_block.safetensors").exists():
        return target
    shutil.rmtree(target, ignore_errors=True)
    start = time.perf_counter()
    target.mkdir(parents=True)
    template = {name: tensor.float() for name, tensor in load_template(folder, options, kind).items()}
    template = checkpoints.quantize_model(template, precision, torch.float32)
    for name in [name for name in template if name.endswith("weight_scale")]:
        template[name] = template[name].bfloat16().float()

    def write(index: int) -> None:
        # Bytes, as threads write files side by side, and safetensors' own function does not.
        (target / f"block_{index}.safetensors").write_bytes(save(moved_block(template, index)))

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        list(pool.map(write, range(options.layers)))
    # Last: it says that the folder is complete.
    (target / "non_block.safetensors").write_bytes(save(full_model(template, 0)))
    print(f"wrote {precision} weights of {kind} in {time.perf_counter() - start:.0f} s", flush=True)
    return target


def ensure_experts(folder: Path, options: argparse.Namespace, precision: str, kind: str = "t2v") -> Path:
    """Return a folder with links to two experts of a kind, as Wan2.2 A14B has, which are written below `folder`."""
    target = folder / f"experts-{precision}-{_named(kind)}{options.dim}x{options.layers}"
    target.mkdir(exist_ok=True)
    for noise, name in (("high", kind), ("low", kind + _LOW)):
        link, found = target / f"{noise}_noise_model", ensure_transformer(folder, options, precision, name)
        if not link.exists():
            link.symlink_to(found.resolve(), target_is_directory=True)
    return target


def _named(kind: str) -> str:
    return "" if kind == "t2v" else f"{kind}-"


def ensure_text_encoder(folder: Path, precision: str, sizes: checkpoints.TinySizes) -> Path:
    """Return the text encoder's file below `folder`, its tokenizer beside it; written where they are not there."""
    file = folder / f"text-{sizes.text_d_ff}" / checkpoints.TEXT_ENCODER_NAME.format(precision=precision)
    if not file.exists():
        start = time.perf_counter()
        checkpoints.write_tokenizer(file.parent / checkpoints.TOKENIZER_FOLDER, checkpoints.train_tokenizer(400))
        few = checkpoints.make_text_encoder(replace(sizes, text_layers=1, vocab_size=400))
        tensors = full_model(checkpoints.quantize_model(few, precision, torch.bfloat16), sizes.text_layers)
        embedding = tensors["token_embedding.weight"]
        repeats = -(-sizes.vocab_size // len(embedding))
        tensors["token_embedding.weight"] = embedding.repeat(repeats, 1)[: sizes.vocab_size].clone()
        torch.save(tensors, file.with_suffix(".part"))
        file.with_suffix(".part").rename(file)
        print(f"wrote {file.stat().st_size / 1e9:.2f} GB of text encoder in {time.perf_counter() - start:.0f} s")
    return file


def ensure_vae(folder: Path, base_dim: int) -> Path:
    """Return a VAE's file in `folder`: base width 96 is Wan2.1's, 24 LightVAE's, 0 stands for the tiny autoencoder."""
    file = folder / f"vae-{base_dim}.safetensors"
    if not file.exists():
        tensors = checkpoints.make_vae(checkpoints.TinySizes(vae_dim=base_dim)) if base_dim else _make_tae()
        checkpoints.write_vae(file, tensors, torch.bfloat16)
    return file


def _make_tae() -> checkpoints.Tensors:
    """Return random weights of a tiny autoencoder at the published sizes."""
    generator, sizes = torch.Generator().manual_seed(0), pack.TaeFormat(widths=(256, 128, 64, 64), encoder_width=64)
    return {
        name: torch.randn(shape, generator=generator) / math.sqrt(max(math.prod(shape[1:]), 50))
        for name, shape in (sizes.shapes() | sizes.encoder_shapes()).items()
    }
