"""VAEs by themselves, decoding and encoding: seconds, peak memory beside what was predicted, and how far tiled is from
whole. With COMFYUI_DIR also ComfyUI's own VAE, with the same weights, on the same latents and frames.

Random weights look further than trained ones, which differ less where tiles meet.

    python tools bench vae --out vae.jsonl
    python tools bench vae --vaes lightvae
    python tools bench vae --stages encode --vaes wan --sizes 832x480
    python tools bench vae --dim 256 --vaes wan --sizes 256x256 --frames 5 --tiles 32     # any CPU
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ..arguments import whole
from . import pack, peer_comfyui, weights
from .harness import Bench, Row, clean_up, parse_size, peaks, timed
from .peer import Peer

# Base widths; 0 is the tiny autoencoder (taew2_1, lighttaew2_1).
VAES = {"wan": 96, "lightvae": 24, "tae": 0}
STAGES = ("decode", "encode")
OVERLAP = 8
COMFYUI = "ComfyUI"
# ComfyUI builds Wan2.1's VAE at full width whatever the file says, and has no class for the others.
_COMFYUI_KNOWS = "wan"

Run = Callable[[torch.Tensor, pack.Tile | None], torch.Tensor]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vaes", nargs="+", choices=VAES, default=("wan", "tae"))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--sizes", nargs="+", default=("832x480", "1280x720"), help="WIDTHxHEIGHT ...")
    parser.add_argument("--frames", type=whole(), default=pack.DEFAULT_NUM_FRAMES)
    parser.add_argument(
        "--tiles", type=whole(), nargs="*", default=(64, 48, 32), help="sizes, in latent cells (64 48 32)"
    )
    parser.add_argument("--runs", type=whole(), default=2, help="timed runs after one to warm up; the fastest counts")


def measure(bench: Bench) -> Iterator[Row]:
    """Decode the same latents and encode the same frames whole and with each tile size; yield a row each."""
    for name in bench.options.vaes:
        base_dim = VAES[name] if weights.is_full(bench.options) else min(VAES[name], 8)
        file = weights.ensure_vae(bench.folder, base_dim)
        for stage in bench.options.stages:
            part, run = load(stage, file, bench)
            for size in bench.options.sizes:
                for row in measure_size(bench, stage, base_dim, size, run):
                    yield {"vae": name, "stage": stage, "by": "pack", **row}
            part.unload()
            if name == _COMFYUI_KNOWS and os.environ.get("COMFYUI_DIR"):
                yield from measure_comfyui(bench, stage, file, base_dim)


def measure_size(bench: Bench, stage: str, base_dim: int, size: str, run: Run) -> Iterator[Row]:
    given = draw(bench, stage, size)
    whole: torch.Tensor | None = None
    for tile_size in (None, *bench.options.tiles):
        if bench.seconds_left <= 0:
            return
        tile = pack.Tile(size=tile_size, overlap=OVERLAP) if tile_size else None
        row, found = time_runs(bench, given, lambda each, tile=tile: run(each, tile))
        row["predicted_gib"] = predict(bench, stage, base_dim, size, tile) / pack.GIB
        if whole is None:
            whole, whole_seconds = found, row["seconds"]
        else:
            difference = (found - whole).abs_()
            row |= {"mean_difference": float(difference.mean()), "most_difference": float(difference.max())}
            row["times_whole"] = row["seconds"] / whole_seconds
        yield {"size": size, "frames": bench.options.frames, "tile": tile_size, **row}


def measure_comfyui(bench: Bench, stage: str, file: Any, base_dim: int) -> Iterator[Row]:
    """Yield a row a size of ComfyUI's own VAE, whole."""
    vae = load_comfyui(bench, file, base_dim)
    for size in bench.options.sizes:
        if bench.seconds_left <= 0:
            return
        given = draw(bench, stage, size)
        call = (lambda each: vae.decode(each[None])[0]) if stage == "decode" else (lambda each: vae.encode(each)[0])
        with torch.inference_mode():
            row, _ = time_runs(bench, given, call)
        yield {
            "vae": _COMFYUI_KNOWS, "stage": stage, "by": COMFYUI, "size": size, "frames": bench.options.frames,
            "tile": None, "dtype": str(vae.vae_dtype).removeprefix("torch."), **row,
        }  # fmt: skip


def check(rows: Sequence[Row]) -> list[str]:
    """Return where encoding on a GPU is slower than ComfyUI's, or takes more than was predicted."""
    rows = [row for row in rows if row.get("stage") == "encode" and "reserved_gib" in row]
    theirs = {row["size"]: row["seconds"] for row in rows if row["by"] == COMFYUI}
    problems = []
    for row in rows:
        title = f"{row['vae']} {row['stage']} {row['size']}, tiles of {row['tile']}"
        seconds = theirs.get(row["size"]) if row["vae"] == _COMFYUI_KNOWS and row["tile"] is None else None
        if row["by"] == "pack" and seconds is not None and row["seconds"] > seconds:
            problems.append(f"{title}: {row['seconds']:.2f} s, ComfyUI's takes {seconds:.2f} s")
        if row["by"] == "pack" and row["reserved_gib"] > row["predicted_gib"]:
            problems.append(f"{title}: {row['reserved_gib']:.2f} GiB, predicted {row['predicted_gib']:.2f}")
    return problems


def load(stage: str, file: Any, bench: Bench) -> tuple[Any, Run]:
    """Return the pack's decoder or encoder, loaded, and what runs it."""
    files = pack.resolve_vae(file)
    if stage == "decode":
        decoder = pack.WanVideoDecoder(files, bench.device)
        decoder.load(pack.Hooks())
        return decoder, lambda latents, tile: pack.decode_video(decoder, latents, tile=tile, hooks=pack.Hooks())
    encoder = pack.WanVideoEncoder(files, bench.device)
    encoder.load(pack.Hooks())
    return encoder, lambda frames, tile: pack.encode_video(encoder, frames, tile=tile, hooks=pack.Hooks())


def load_comfyui(bench: Bench, file: Any, base_dim: int) -> Any:
    """Return ComfyUI's VAE of a file, whatever its width."""
    peer_comfyui.prepare(Peer(title=COMFYUI, runner="comfyui", precision="bf16"), bench)
    import comfy.ldm.wan.vae
    import comfy.sd
    import comfy.utils

    network = comfy.ldm.wan.vae.WanVAE
    comfy.ldm.wan.vae.WanVAE = lambda **config: network(**{**config, "dim": base_dim})
    try:
        return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(file)))
    finally:
        comfy.ldm.wan.vae.WanVAE = network


def draw(bench: Bench, stage: str, size: str) -> torch.Tensor:
    """Return latents [16, T, h, w] or frames [F, H, W, 3], the same for the same size."""
    width, height = parse_size(size)
    generator = torch.Generator().manual_seed(0)
    if stage == "decode":
        return pack.denormalize(
            torch.randn(pack.latent_shape(width, height, bench.options.frames), generator=generator)
        )
    return torch.rand(bench.options.frames, height, width, 3, generator=generator)


def predict(bench: Bench, stage: str, base_dim: int, size: str, tile: pack.Tile | None) -> int:
    width, height = parse_size(size)
    clip = pack.Clip(width=width, height=height, num_frames=bench.options.frames)
    return pack.vae_bytes(stage, clip, base_dim, tile, on_gpu=bench.device.type == "cuda")


def time_runs(bench: Bench, given: torch.Tensor, call: Callable[[torch.Tensor], Any]) -> tuple[Row, torch.Tensor]:
    """Return seconds of the fastest run and peaks, and what came out; the run to warm up takes five frames."""
    call(given[:, :2] if given.dim() == 4 and given.shape[-1] != 3 else given[:5])
    clean_up(bench.device)
    runs = [timed(lambda: call(given), bench.device) for _ in range(bench.options.runs)]
    return {"seconds": min(seconds for seconds, _ in runs), **peaks(bench.device)}, runs[-1][1]
