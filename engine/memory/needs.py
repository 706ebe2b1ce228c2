"""How much memory each stage of a run takes: arithmetic on sizes, and constants that were measured.

VRAM is what torch's allocator will have reserved at the peak; the CUDA context, about 0.5 GiB, is extra. RAM is what
a stage takes beside what the process has anyway. `python tools bench grid` compares both with what is measured.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from .. import shapes
from ..backends.choose import Backends
from ..checkpoints.formats import WanArchitecture
from ..constants import GIB, LATENT_CHANNELS
from ..parallel.split import most_rows
from ..sentences import joined
from ..sentences.between import Between
from ..sentences.memory import Memory
from .activations import ROTARY_BYTES, activation_bytes
from .clip import Clip
from .decoder import decode_bytes, tae_decode_bytes
from .encoder import encode_bytes, tae_encode_bytes
from .placement import Placement
from .rounding import round_up
from .tiles import Tile
from .weights import WeightSizes

# What the stages of a VAE take: Wan's, and the tiny autoencoder.
_VAE_BYTES = {"decode": (decode_bytes, tae_decode_bytes), "encode": (encode_bytes, tae_encode_bytes)}
_BF16_BYTES = 2
# torch's allocator takes large blocks from the device in multiples of this.
_SEGMENT_BYTES = 2 * 2**20
# What a plan leaves free beside its own figures: a share of them, and at least so much. The first run of a process also
# loads kernels, which takes VRAM outside of torch; what was planned with a whole margin must still fit then.
_VRAM_MARGIN = (0.03, GIB // 3)
_RAM_MARGIN = (0.03, GIB)
LATER_MARGIN = 0.2
# RAM of libraries and kernels that come with the first run on a GPU, and stay: 0.57 to 0.59 GiB beside what the process
# had with its CUDA context, measured over every placement and size of docs/benchmarks.md. While resident blocks load it
# is 0.46 (BF16) to 0.54 (8 bits, whose trial run has loaded cuBLAS by then).
RAM_FIXED_BYTES = int(0.62 * GIB)
_LOADING_FIXED_BYTES = int(0.48 * GIB)
# A rank's process: Python, torch and its libraries. Of gloo ranks 0.3 GiB; CUDA's own comes with RAM_FIXED_BYTES.
RANK_BYTES = int(0.4 * GIB)
# Parts [rows, D] BF16 of the exchange that are there at once at most: q and k packed, q, k and v as they arrive.
EXCHANGE_PARTS = 5
# What resident blocks pass through on their way to the device: the ring of offload/reader.py.
RING_BYTES = 2**28
# T5: share of its file that is in RAM while it encodes on the CPU (of the embedding only a prompt's rows are read), and
# VRAM on the GPU, where a weight is there for its own product only (docs/benchmarks.md).
_TEXT_RAM_SHARE = 0.76
_TEXT_VRAM_BYTES = int(0.3 * GIB)
# A decoded chunk is at most this many frames; two lie in page-locked memory on their way from the GPU. On their way to
# it, when they are encoded, it is two frames.
_CHUNK_FRAMES = 4
# Base width of Wan2.1's VAE, for a run whose decoder is not known yet.
VAE_BASE_DIM = 96


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is to be run: the clip, the checkpoint, and how it computes."""

    clip: Clip
    architecture: WanArchitecture
    weights: WeightSizes
    backends: Backends
    lora_columns: int = 0
    """Of the widest product of a LoRA: the rank of the stack, that of q, k and v together."""
    lora_rank: int = 0
    """The highest of a layer's branch."""
    leaner: Backends | None = None
    """Kernels that take less memory and are slower here; planned with where the others would not fit as well."""
    vae_dim: int = VAE_BASE_DIM
    """Base width of the VAE: 96 Wan2.1, 24 LightVAE; 0 is the tiny autoencoder."""
    text_encoder_bytes: int = 0
    """Of its file; 0 where it is not known."""
    ranks: int = 1
    """GPUs that compute the clip together. What is VRAM is of each, what is RAM of all of them."""

    @functools.cached_property
    def activations(self) -> int:
        """Bytes that a forward pass takes beside the weights, on each GPU; asked for with every placement."""
        return activations(self)

    @property
    def image_rows(self) -> int:
        """Rows of CLIP Vision that are attended to; what is usual where the clip's are not known."""
        usual, known = self.architecture.image_rows, self.clip.image_rows
        return usual if known is None or not usual else known


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What this process can have, all that it holds for earlier runs included."""

    vram: int | None
    """Bytes that torch may reserve in all; None without a GPU."""
    ram: int
    vram_limit: str = ""
    """What keeps `vram` below what is free, for messages; "" for nothing."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """Peak of a stage, in bytes."""

    vram: int
    ram: int

    def fits(self, budget: Budget, margin: float = 1.0) -> bool:
        """Say whether the budget has this much, and so much of the usual margins, to spare."""
        return self.ram + margin * _margin(self.ram, _RAM_MARGIN) <= budget.ram and self.fits_vram(budget, margin)

    def fits_vram(self, budget: Budget, margin: float = 1.0) -> bool:
        """Say the same of VRAM alone."""
        return budget.vram is None or self.vram + margin * _margin(self.vram, _VRAM_MARGIN) <= budget.vram

    def __add__(self, other: Need) -> Need:
        return Need(vram=self.vram + other.vram, ram=self.ram + other.ram)

    def describe(self, budget: Budget) -> str:
        """Return e.g. "4.1 GiB of VRAM and 14.9 GiB of RAM"; without a GPU only the RAM."""
        ram = Memory.RAM(ram=self.ram / GIB)
        return ram if budget.vram is None else joined([Memory.VRAM(vram=self.vram / GIB), ram], Between.AND)


def weights_vram(weights: WeightSizes, placement: Placement) -> int:
    """Return the bytes of weights on the device: what is not a block, resident blocks, and two streaming buffers, which
    all experts share; but for those of LoRAs, of which each has its own.

    Two more are there in the first step, for what a clip needs once.
    """
    block, others = _segments(weights.block), weights.others + 2 * _segments(weights.image_block)
    if placement.mode == "none":
        return others + weights.num_experts * weights.num_blocks * block
    unit = _segments(weights.phase) if placement.mode == "phase" else block
    lora_units = 2 * (weights.num_experts - 1) * _segments(weights.lora_block)
    return others + weights.num_experts * placement.resident_blocks * block + 2 * unit + lora_units


def weights_ram(weights: WeightSizes, placement: Placement, ranks: int = 1) -> int:
    """Return the bytes of RAM that stay taken: streamed blocks, or what comes from the drive passes through.

    Ranks share the streamed blocks, but not what LoRAs add to them.
    """
    once = ranks * 2 * weights.image_block
    if placement.mode == "none":
        return once
    streamed = weights.num_blocks - placement.resident_blocks
    num_in_ram = placement.experts_in_ram(weights.num_experts)
    in_ram = num_in_ram * streamed * (weights.block - weights.lora_block)
    staging = 2 * (weights.block - weights.lora_block) if num_in_ram < weights.num_experts else 0
    loras = weights.num_experts * streamed * weights.lora_block
    return once + in_ram + ranks * (staging + loras)


def activations(sizes: Sizes) -> int:
    """Return the bytes that a forward pass takes beside the weights, on each GPU."""
    tokens, dim = sizes.clip.tokens, sizes.architecture.dim
    rows = most_rows(tokens, sizes.ranks) if sizes.ranks > 1 else tokens
    loras = rows * sizes.lora_columns * _BF16_BYTES
    # Rows on their way to other GPUs and heads from there; the angles of all rows.
    exchanged = EXCHANGE_PARTS * rows * dim * _BF16_BYTES + (tokens - rows) * ROTARY_BYTES if sizes.ranks > 1 else 0
    return (
        loras
        + exchanged
        + activation_bytes(
            tokens=rows,
            dim=dim,
            ffn_dim=sizes.architecture.ffn_dim,
            num_blocks=sizes.architecture.num_layers,
            backends=sizes.backends,
            image_rows=sizes.image_rows,
            lora_rank=sizes.lora_rank,
        )
    )


def loading_need(sizes: Sizes, placement: Placement, *, on_gpu: bool) -> Need:
    """Return what loading the transformer takes: resident blocks come first, through a ring that is gone after them."""
    loaded = resting_need(sizes.weights, placement, on_gpu=on_gpu, ranks=sizes.ranks)
    if not on_gpu:
        return loaded
    ring = RING_BYTES if placement.mode == "none" or placement.resident_blocks else 0
    return Need(vram=loaded.vram, ram=max(loaded.ram, sizes.ranks * (ring + _LOADING_FIXED_BYTES)))


def resting_need(weights: WeightSizes, placement: Placement, *, on_gpu: bool, ranks: int = 1) -> Need:
    """Return what the loaded transformer takes; on a CPU its weights are mapped from their files."""
    processes = ranks * RANK_BYTES if ranks > 1 else 0
    if not on_gpu:
        if placement.mode != "disk":
            return Need(vram=0, ram=weights.total + processes)
        other_blocks = weights.num_experts * weights.num_blocks - 1
        blocks = weights.block + other_blocks * weights.lora_block
        return Need(vram=0, ram=weights.others + blocks + weights.image_block + processes)
    ram = weights_ram(weights, placement, ranks) + ranks * RAM_FIXED_BYTES + processes
    return Need(vram=weights_vram(weights, placement), ram=ram)


def sampling_need(sizes: Sizes, placement: Placement, *, on_gpu: bool) -> Need:
    """Return what denoising takes, weights included."""
    weights, work = resting_need(sizes.weights, placement, on_gpu=on_gpu, ranks=sizes.ranks), sizes.activations
    return weights + (Need(vram=work, ram=0) if on_gpu else Need(vram=0, ram=sizes.ranks * work))


def decoding_need(clip: Clip, vae_dim: int, tile: Tile | None, *, on_gpu: bool, beside: Need | None = None) -> Need:
    """Return what decoding takes beside other weights: the decoder, and the frames of all clips in RAM."""
    decoder = vae_bytes("decode", clip, vae_dim, tile, on_gpu=on_gpu)
    frames = clip.batch * clip.num_frames * _frame_bytes(clip)
    held = beside or Need(vram=0, ram=0)
    if on_gpu:
        return Need(vram=held.vram + decoder, ram=held.ram + frames + copied_frames_bytes(clip))
    return Need(vram=0, ram=held.ram + frames + decoder)


def copied_frames_bytes(clip: Clip) -> int:
    """Return the RAM through which frames come from the GPU; torch rounds it up to a power of two if page-locked."""
    return 2 << (_CHUNK_FRAMES * _frame_bytes(clip) - 1).bit_length()


def video_encoding_need(
    clip: Clip, vae_dim: int, tile: Tile | None, *, on_gpu: bool, beside: Need | None = None
) -> Need:
    """Return what encoding frames takes beside them and other weights: the encoder, and the latents in RAM."""
    encoder = vae_bytes("encode", clip, vae_dim, tile, on_gpu=on_gpu)
    cells = math.prod(shapes.cells((clip.num_frames, clip.height, clip.width)))
    latents = clip.batch * cells * LATENT_CHANNELS * 4
    held = beside or Need(vram=0, ram=0)
    if on_gpu:
        return Need(vram=held.vram + encoder, ram=held.ram + latents + uploaded_frames_bytes(clip))
    return Need(vram=0, ram=held.ram + latents + encoder)


def uploaded_frames_bytes(clip: Clip) -> int:
    """Return the RAM through which frames go to the GPU; see copied_frames_bytes."""
    return 2 << (_frame_bytes(clip) - 1).bit_length()


def _frame_bytes(clip: Clip) -> int:
    return clip.height * clip.width * 3 * 4


def vae_bytes(stage: str, clip: Clip, vae_dim: int, tile: Tile | None, *, on_gpu: bool = True) -> int:
    """Return what a VAE's decoder or encoder takes on its device, weights included. Args: stage: decode | encode."""
    whole, tiny = _VAE_BYTES[stage]
    element_bytes = 2 if on_gpu else 4
    if not vae_dim:
        return tiny(clip.height, clip.width, tile, element_bytes)
    return whole(clip.height, clip.width, tile, vae_dim, element_bytes, num_frames=clip.num_frames)


def vae_weight_bytes(stage: str, vae_dim: int) -> int:
    """Return what the weights of a stage take on a GPU: those of a clip without cells."""
    return vae_bytes(stage, Clip(width=0, height=0, num_frames=1), vae_dim, None)


def encoding_need(text_encoder_bytes: int, device: str) -> Need:
    """Return what encoding a prompt takes with a text encoder file of so many bytes, on "cpu" or "gpu"."""
    return Need(vram=_TEXT_VRAM_BYTES if device == "gpu" else 0, ram=int(text_encoder_bytes * _TEXT_RAM_SHARE))


def _margin(needed: int, margin: tuple[float, int]) -> float:
    share, least = margin
    return max(needed * share, least)


def _segments(num_bytes: int) -> int:
    return round_up(num_bytes, _SEGMENT_BYTES)
