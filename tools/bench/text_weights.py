"""Random weights of a UMT5-XXL encoder under a real file's name and layout, for the benchmarks of the text encoder.

Imported as `lightx2v_pack.tools.bench.text_weights`, after the script has registered the pack.
"""

from __future__ import annotations

import mmap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .. import make_tiny_checkpoint as checkpoints

# Type of the linears' weights and the standard deviation of the stored values; None: stored unscaled.
STORED = {"fp8": (torch.float8_e4m3fn, 100.0), "int8": (torch.int8, 30.0), "bf16": (torch.bfloat16, None)}

# One draw, repeated from another place every time, is as good here as fresh values everywhere. Divides no row.
_POOL_ELEMENTS = 2**24 + 43
_NUM_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class TextSizes:
    """Sizes of the encoder; those of UMT5-XXL."""

    num_layers: int = 24
    d_model: int = 4096
    d_ff: int = 10240
    num_heads: int = 64
    d_kv: int = 64
    vocab_size: int = 256384


SMALL = TextSizes(d_ff=128, num_heads=4, vocab_size=400)
"""Of full width and depth, which names the model, for any CPU."""


@dataclass(frozen=True)
class Draw:
    """A tensor of normal values."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.bfloat16
    std: float = 0.0
    mean: float = 0.0


def ensure_text_encoder(folder: Path, scheme: str, sizes: TextSizes) -> Path:
    """Return the encoder's file in `folder`, its tokenizer beside it; both are written where they are not there."""
    file = folder / checkpoints.TEXT_ENCODER_NAME.format(precision=scheme)
    if not file.is_file():
        start = time.perf_counter()
        write_text_encoder(file, scheme, sizes)
        print(f"wrote {file.stat().st_size / 1e9:.2f} GB of text encoder in {time.perf_counter() - start:.1f} s")
    return file


def write_text_encoder(file: Path, scheme: str, sizes: TextSizes) -> None:
    """Write the encoder and a small tokenizer; threads fill the tensors in place, in the mapped file."""
    checkpoints.write_tokenizer(file.parent / checkpoints.TOKENIZER_FOLDER, checkpoints.train_tokenizer(400))
    draws = plan_tensors(scheme, sizes)
    partial = file.with_suffix(".partial")
    with torch.serialization.skip_data():
        torch.save({name: torch.empty(draw.shape, dtype=draw.dtype) for name, draw in draws.items()}, partial)
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        mapped = torch.load(partial, mmap=True, weights_only=True)
    normal = torch.randn(_POOL_ELEMENTS, generator=torch.Generator().manual_seed(0)).clamp_(-4, 4)
    pools = {
        (dtype, std, mean): normal.mul(std).add_(mean).to(dtype)
        for dtype, std, mean in {(draw.dtype, draw.std, draw.mean) for draw in draws.values()}
    }
    jobs = [
        (mapped[name], pools[draw.dtype, draw.std, draw.mean], index * 4099)
        for index, (name, draw) in enumerate(draws.items())
    ]
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        list(threads.map(lambda job: _repeat(*job), sorted(jobs, key=lambda job: -job[0].nbytes)))
    partial.rename(file)


def plan_tensors(scheme: str, sizes: TextSizes) -> dict[str, Draw]:
    """Return the tensors of models_t5_umt5-xxl-enc-*.pth: weights of variance 1 / inputs, q smaller (T5 does not
    divide the attention's scores)."""
    d_model, d_ff, inner = sizes.d_model, sizes.d_ff, sizes.num_heads * sizes.d_kv
    linears = {
        "attn.q": (inner, d_model, (d_model * sizes.d_kv) ** -0.5),
        "attn.k": (inner, d_model, d_model**-0.5),
        "attn.v": (inner, d_model, d_model**-0.5),
        "attn.o": (d_model, inner, inner**-0.5),
        "ffn.gate.0": (d_ff, d_model, d_model**-0.5),
        "ffn.fc1": (d_ff, d_model, d_model**-0.5),
        "ffn.fc2": (d_model, d_ff, d_ff**-0.5),
    }
    norm = Draw((d_model,), std=0.1, mean=1.0)
    draws = {"token_embedding.weight": Draw((sizes.vocab_size, d_model), std=1.0), "norm.weight": norm}
    for index in range(sizes.num_layers):
        block = f"blocks.{index}"
        draws |= {f"{block}.norm1.weight": norm, f"{block}.norm2.weight": norm}
        draws[f"{block}.pos_embedding.embedding.weight"] = Draw((32, sizes.num_heads), std=0.5)
        for name, (outputs, inputs, std) in linears.items():
            dtype, stored_std = STORED[scheme]
            draws[f"{block}.{name}.weight"] = Draw((outputs, inputs), dtype, stored_std or std)
            if stored_std:
                draws[f"{block}.{name}.weight_scale"] = Draw((outputs, 1), torch.float32, mean=std / stored_std)
    return draws


def _repeat(target: torch.Tensor, pool: torch.Tensor, start: int) -> None:
    """Fill `target` with the pool's values over and over, from `start` on."""
    # As bytes, by NumPy: it copies beside other threads without starting any.
    size = target.element_size()
    memory, values = (part.view(-1).view(torch.uint8).numpy() for part in (target, pool))
    position, source = 0, start * size % len(values)
    while position < len(memory):
        count = min(len(memory) - position, len(values) - source)
        np.copyto(memory[position : position + count], values[source : source + count])
        position, source = position + count, 0
