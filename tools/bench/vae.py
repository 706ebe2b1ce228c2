"""Decoders by themselves: seconds, peak memory beside what was predicted, and how far tiled is from whole.

Random weights look further than trained ones, which differ less where tiles meet.

    python tools bench vae --out vae.jsonl
    python tools bench vae --decoders lightvae
    python tools bench vae --dim 256 --decoders wan --sizes 256x256 --frames 5 --tiles 32     # any CPU
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch

from . import pack, weights
from .harness import Bench, Row, clean_up, parse_size, peaks, timed

# Base widths; 0 is the tiny autoencoder (taew2_1, lighttaew2_1).
DECODERS = {"wan": 96, "lightvae": 24, "tae": 0}
OVERLAP = 8


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--decoders", nargs="+", choices=DECODERS, default=("wan", "tae"))
    parser.add_argument("--sizes", nargs="+", default=("832x480", "1280x720"), help="WIDTHxHEIGHT ...")
    parser.add_argument("--frames", type=int, default=pack.DEFAULT_NUM_FRAMES)
    parser.add_argument("--tiles", type=int, nargs="*", default=(64, 48, 32), help="sizes, in latent cells (64 48 32)")
    parser.add_argument("--runs", type=int, default=2, help="timed runs after one to warm up; the fastest counts")


def measure(bench: Bench) -> Iterator[Row]:
    """Decode the same latents whole and with each tile size; yield a row each."""
    element_bytes = 2 if bench.device.type == "cuda" else 4
    for name in bench.options.decoders:
        base_dim = DECODERS[name] if weights.is_full(bench.options) else min(DECODERS[name], 8)
        decoder = pack.WanVideoDecoder(pack.resolve_vae(weights.ensure_vae(bench.folder, base_dim)), bench.device)
        decoder.load(pack.Hooks())
        for size in bench.options.sizes:
            width, height = parse_size(size)
            shape = pack.latent_shape(width, height, bench.options.frames)
            latents = pack.denormalize(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
            whole: torch.Tensor | None = None
            for tile_size in (None, *bench.options.tiles):
                if bench.seconds_left <= 0:
                    return
                tile = pack.Tile(size=tile_size, overlap=OVERLAP) if tile_size else None
                row, video = decode(decoder, latents, tile, bench)
                predicted = pack.decode_bytes(height, width, tile, base_dim, element_bytes, bench.options.frames)
                if not base_dim:
                    predicted = pack.tae_decode_bytes(height, width, tile, element_bytes)
                row["predicted_gib"] = predicted / pack.GIB
                if whole is None:
                    whole, whole_seconds = video, row["seconds"]
                else:
                    difference = (video - whole).abs_()
                    row |= {"mean_difference": float(difference.mean()), "most_difference": float(difference.max())}
                    row["times_whole"] = row["seconds"] / whole_seconds
                yield {"decoder": name, "size": size, "frames": bench.options.frames, "tile": tile_size, **row}
        decoder.unload()


def decode(
    decoder: pack.WanVideoDecoder, latents: torch.Tensor, tile: pack.Tile | None, bench: Bench
) -> tuple[Row, torch.Tensor]:
    """Return seconds of the fastest run and peaks, and the frames; the run to warm up decodes two latent frames."""

    def run(given: torch.Tensor) -> torch.Tensor:
        return pack.decode_video(decoder, given, tile=tile, hooks=pack.Hooks())

    run(latents[:, :2])
    clean_up(bench.device)
    runs = [timed(lambda: run(latents), bench.device) for _ in range(bench.options.runs)]
    return {"seconds": min(seconds for seconds, _ in runs), **peaks(bench.device)}, runs[-1][1]
