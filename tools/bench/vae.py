"""Measure the portable VAE decode: seconds, peak memory beside what was predicted, and how far tiled is from whole.

Weights are random, as speed and memory do not depend on them; the difference does, and trained weights, which
look less far, differ less. Without --width and --height: 832x480 and 1280x720.

    python tools/bench/vae.py --tile 64 8 --tile 48 8 --tile 32 8
    python tools/bench/vae.py --dim 24         # LightVAE
    python tools/bench/vae.py --tae            # the tiny autoencoder
    python tools/bench/vae.py --device cpu --dim 8 --width 256 --height 256 --frames 5 --tile 32 8
"""

from __future__ import annotations

import argparse
import datetime
import math
import sys
import tempfile
import types
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
pack = types.ModuleType("lightx2v_pack")
pack.__path__ = [str(ROOT)]
sys.modules["lightx2v_pack"] = pack

from lightx2v_pack.engine import system  # noqa: E402
from lightx2v_pack.engine.checkpoints.tae import TaeFormat  # noqa: E402
from lightx2v_pack.engine.constants import DEFAULT_NUM_FRAMES, GIB  # noqa: E402
from lightx2v_pack.engine.interfaces import Hooks  # noqa: E402
from lightx2v_pack.engine.memory.decoder import decode_bytes, tae_decode_bytes  # noqa: E402
from lightx2v_pack.engine.memory.tiles import Tile, split_axis  # noqa: E402
from lightx2v_pack.engine.report import StageRecord, measure  # noqa: E402
from lightx2v_pack.engine.shapes import latent_shape  # noqa: E402
from lightx2v_pack.engine.stages.decode import decode_video  # noqa: E402
from lightx2v_pack.engine.wan.vae import PortableVideoDecoder  # noqa: E402
from lightx2v_pack.tools import make_tiny_checkpoint as tiny  # noqa: E402

SIZES = ((832, 480), (1280, 720))


def main() -> None:
    arguments = parse_arguments()
    device = torch.device(arguments.device) if arguments.device else system.compute_device()
    sizes = [(arguments.width, arguments.height)] if arguments.width else SIZES
    tiles = [Tile(size=size, overlap=overlap) for size, overlap in arguments.tile or [(Tile().size, Tile().overlap)]]
    with tempfile.TemporaryDirectory() as folder:
        weights = make_tae() if arguments.tae else tiny.make_vae(tiny.TinySizes(vae_dim=arguments.dim))
        file = tiny.write_vae(Path(folder) / "vae.safetensors", weights, torch.bfloat16)
        decoder = PortableVideoDecoder(file, device)
        with measure("load_vae") as record:
            decoder.load(Hooks())
        card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        print(f"{datetime.date.today()}, {card}, torch {torch.__version__}, CUDA {torch.version.cuda}")
        print(f"{decoder.describe()}, loaded in {record.seconds:.1f} s")
        for width, height in sizes:
            compare(decoder, latent_shape(width, height, arguments.frames), tiles, arguments.runs)


def make_tae() -> tiny.Tensors:
    """Return random weights of a tiny autoencoder's decoder at the published sizes."""
    shapes = TaeFormat(widths=(256, 128, 64, 64)).shapes()
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) / math.sqrt(max(math.prod(shape[1:]), 50))
        for name, shape in shapes.items()
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int)
    parser.add_argument("--height", type=int)
    parser.add_argument("--frames", type=int, default=DEFAULT_NUM_FRAMES)
    parser.add_argument("--dim", type=int, default=96, help="base width: 96 Wan2.1, 24 LightVAE (default 96)")
    parser.add_argument("--tae", action="store_true", help="the tiny autoencoder (taew2_1, lighttaew2_1) instead")
    parser.add_argument("--device", help="cpu | cuda | cuda:1 ... (default: the GPU in use, else the CPU)")
    parser.add_argument(
        "--tile", type=int, nargs=2, action="append", metavar=("SIZE", "OVERLAP"), help="latent cells; may be repeated"
    )
    parser.add_argument("--runs", type=int, default=2, help="timed runs after one to warm up; the fastest counts")
    arguments = parser.parse_args()
    if bool(arguments.width) != bool(arguments.height):
        parser.error("--width and --height go together")
    if arguments.runs < 1:
        parser.error("--runs must be at least 1")
    return arguments


def compare(decoder: PortableVideoDecoder, shape: tuple[int, int, int, int], tiles: list[Tile], runs: int) -> None:
    """Decode the same latents whole and with each tile size, and print one line each."""
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    whole, record = timed(decoder, latents, None, runs)
    frames, height, width, _ = whole.shape
    print(f"\n{width}x{height}, {frames} frames")
    print(f"  whole {costs(record)}{predicted(decoder, whole.shape, None)}", flush=True)
    for tile in tiles:
        video, tiled = timed(decoder, latents, tile, runs)
        rows, columns = (len(split_axis(length, tile)) for length in shape[-2:])
        difference = (video - whole).abs_()
        print(
            f"  {rows} x {columns} tiles of at most {tile.size}, overlap {tile.overlap}: {costs(tiled)}, "
            f"{tiled.seconds / record.seconds:.2f} times whole{predicted(decoder, whole.shape, tile)}; "
            f"difference mean {difference.mean():.6f}, most {difference.max():.4f}",
            flush=True,
        )


def timed(
    decoder: PortableVideoDecoder, latents: torch.Tensor, tile: Tile | None, runs: int
) -> tuple[torch.Tensor, StageRecord]:
    """Return the frames and the record of the fastest run; the run to warm up decodes two latent frames."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    decode_video(decoder, latents[:, :2], tile=tile, hooks=Hooks())
    records = []
    for _ in range(runs):
        with measure("decode") as record:
            video = decode_video(decoder, latents, tile=tile, hooks=Hooks())
        records.append(record)
    return video, min(records, key=lambda record: record.seconds)


def predicted(decoder: PortableVideoDecoder, video: torch.Size, tile: Tile | None) -> str:
    """Return what the memory plan expects of the decoder's device."""
    frames, height, width, _ = video
    dim, element_bytes = decoder.describe()["vae_dim"], 2 if decoder.device.type == "cuda" else 4
    if dim == "TAE":
        return f", predicted {tae_decode_bytes(height, width, tile, element_bytes) / GIB:.2f}"
    return f", predicted {decode_bytes(height, width, tile, dim, element_bytes, frames) / GIB:.2f}"


def costs(record: StageRecord) -> str:
    ram = f"{record.seconds:.2f} s, peak RAM {record.peak_ram_bytes / GIB:.2f} GiB"
    if not record.peak_vram_reserved_bytes:
        return ram
    allocated, reserved = record.peak_vram_allocated_bytes / GIB, record.peak_vram_reserved_bytes / GIB
    return f"{ram}, peak VRAM {allocated:.2f} GiB allocated, {reserved:.2f} GiB reserved"


if __name__ == "__main__":
    main()
