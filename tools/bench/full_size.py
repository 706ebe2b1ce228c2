"""What the transformer benchmarks share: their size options, random weights of the full size, and how a run is titled.

Random weights stand in for the real ones: speed and memory do not depend on their values. Imported as
`lightx2v_pack.tools.bench.full_size`, after the script has registered the pack.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load_file

from ...engine.backends.trials import find_machine
from ...engine.constants import DEFAULT_HEIGHT, DEFAULT_NUM_FRAMES, DEFAULT_WIDTH, GIB
from ...engine.shapes import num_tokens
from .. import make_tiny_checkpoint as checkpoints

Shape = tuple[int, int, int, int]

PRECISIONS = ("fp8", "int8", "bf16")
MODES = ("none", "block", "phase", "disk")
TEXT_DIM = 4096

# Of writing.
_NUM_THREADS = 8
_DTYPE_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
}


def add_size_options(parser: argparse.ArgumentParser) -> None:
    """Add size of clip and model, number of steps, VRAM cap and folder."""
    parser.add_argument("--width", type=int, default=DEFAULT_WIDTH)
    parser.add_argument("--height", type=int, default=DEFAULT_HEIGHT)
    parser.add_argument("--frames", type=int, default=DEFAULT_NUM_FRAMES)
    parser.add_argument("--steps", type=int, default=4, help="steps a run; the first one is a warm-up (default 4)")
    parser.add_argument("--cap-gib", type=float, help="let torch use no more VRAM, to stand for a smaller card")
    add_model_options(parser)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add size of model, and folder."""
    parser.add_argument("--dim", type=int, default=5120)
    parser.add_argument("--ffn-dim", type=int, default=13824)
    parser.add_argument("--layers", type=int, default=40, help="width 5120 always has 40")
    parser.add_argument("--folder", type=Path, help="where the weights are written (default: the temporary folder)")


def cap_vram(arguments: argparse.Namespace, device: torch.device) -> None:
    """Let torch use no more VRAM than --cap-gib says."""
    if device.type == "cuda" and arguments.cap_gib:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(arguments.cap_gib * GIB / total, device)


def describe_machine(device: torch.device) -> str:
    """Return date, card and versions in one line."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    packages = "".join(f", {name} {version}" for name, version in find_machine(device).packages.items())
    return f"{datetime.date.today()}, {card}, torch {torch.__version__}, CUDA {torch.version.cuda}{packages}"


def describe_run(arguments: argparse.Namespace, shape: Shape, device: torch.device) -> str:
    """Return date, card, versions and size in one line."""
    return (
        f"{describe_machine(device)}; {arguments.width}x{arguments.height}x{arguments.frames}, "
        f"{num_tokens(shape)} tokens, {arguments.layers} blocks of {arguments.dim}"
    )


def make_template(arguments: argparse.Namespace) -> checkpoints.Tensors:
    """Return the float weights of a model of one block."""
    return checkpoints.make_transformer(
        checkpoints.TinySizes(dim=arguments.dim, ffn_dim=arguments.ffn_dim, num_layers=1, text_dim=TEXT_DIM)
    )


def load_template(folder: Path, arguments: argparse.Namespace) -> checkpoints.Tensors:
    """Return `make_template`'s weights in bfloat16, which holds them exactly; made once, then read from the folder."""
    file = folder / f"template-{arguments.dim}-{arguments.ffn_dim}.safetensors"
    if not file.exists():
        template = {name: tensor.bfloat16() for name, tensor in make_template(arguments).items()}
        write_file(template, file.with_suffix(".part"))
        file.with_suffix(".part").rename(file)
    return load_file(file)


def full_model(template: checkpoints.Tensors, num_layers: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield names and weights of the whole model that `write_weights` writes, on the template's device."""
    for name, tensor in template.items():
        if name.startswith("blocks.0."):
            for index in range(num_layers):
                yield name.replace("blocks.0.", f"blocks.{index}."), tensor.roll(index, 0)
        else:
            yield name, tensor


def ensure_weights(folder: Path, arguments: argparse.Namespace, precision: str, device: torch.device) -> Path:
    """Return the folder of the full-size weights of a precision below `folder`; written where it is not complete."""
    weights = folder / f"weights-{precision}-{arguments.dim}x{arguments.layers}"
    if not (weights / "non_block.safetensors").exists():
        shutil.rmtree(weights, ignore_errors=True)
        template = {name: tensor.float() for name, tensor in load_template(folder, arguments).items()}
        write_weights(weights, template, precision, arguments.layers, device)
    return weights


def drop_weights(folder: Path, precision: str) -> None:
    """Delete a precision's weights below `folder`: one H200's disk does not hold all three."""
    for weights in folder.glob(f"weights-{precision}-*"):
        shutil.rmtree(weights)


def write_weights(
    folder: Path, template: checkpoints.Tensors, precision: str, num_layers: int, device: torch.device
) -> None:
    """Write per-block files; block i has the template's rows moved by i, so that a wrong order is noticed.

    Scales are bfloat16 numbers: LightX2V rounds them to bfloat16 when it loads, and the runs are to be compared.
    """
    start = time.perf_counter()
    folder.mkdir(parents=True)
    block = {name: tensor.to(device) for name, tensor in template.items() if name.startswith("blocks.0.")}

    # One at a time: they need fp32 copies of a block on the device.
    computing = threading.Lock()

    def write_block(index: int) -> None:
        with computing:
            moved = {
                name.replace("blocks.0.", f"blocks.{index}."): tensor.roll(index, 0) for name, tensor in block.items()
            }
            stored = checkpoints.quantise_model(moved, precision, torch.float32)
            del moved
            for name in [name for name in stored if name.endswith("weight_scale")]:
                stored[name] = stored[name].bfloat16().float()
        write_file(stored, folder / f"block_{index}.safetensors")

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        list(pool.map(write_block, range(num_layers)))
    rest = {name: tensor for name, tensor in template.items() if not name.startswith("blocks.")}
    # Last: it says that the folder is complete.
    write_file(checkpoints.quantise_model(rest, precision, torch.float32), folder / "non_block.safetensors")
    print(f"wrote {precision} weights in {time.perf_counter() - start:.0f} s", flush=True)


def write_file(tensors: checkpoints.Tensors, path: Path) -> None:
    """Write a safetensors file; several threads may write side by side, which safetensors' own function prevents."""
    # Tensors of large elements first, so that all are aligned.
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
    ends = list(itertools.accumulate(tensor.numel() * tensor.element_size() for tensor in tensors.values()))
    header = {
        name: {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        for (name, tensor), start, end in zip(tensors.items(), [0, *ends], ends, strict=False)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            rest = tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data
            while rest:
                rest = rest[file.write(rest) :]


def synchronize(device: torch.device) -> None:
    """Wait for the GPU; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
