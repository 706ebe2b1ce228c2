"""All that the benchmarks take from the engine: when the engine moves, this file follows."""

# ruff: noqa: F401
from ...engine import pipeline
from ...engine.adapters.lightx2v import bootstrap
from ...engine.backends.choose import BLOCKS, Wanted, choose_fused
from ...engine.backends.table import ATTENTION_BACKENDS, MATMUL_BACKENDS, choose_backend, why_not
from ...engine.backends.trials import confirm, find_machine
from ...engine.checkpoints.companions import resolve_text_encoder, resolve_vae
from ...engine.checkpoints.files import resolve_transformer
from ...engine.checkpoints.source import TransformerCheckpoint
from ...engine.checkpoints.tae import TaeFormat
from ...engine.constants import (
    CLIP_VISION_ROWS,
    DEFAULT_HEIGHT,
    DEFAULT_NUM_FRAMES,
    DEFAULT_WIDTH,
    DISTILL_SHIFT,
    DISTILL_STEPS,
    GIB,
    MASK_CHANNELS,
    TEXT_ROWS,
)
from ...engine.errors import LightX2VError
from ...engine.handles import TransformerHandle
from ...engine.interfaces import Conditioning, Hooks, Host
from ...engine.kernels import attention, matmul, ops_torch
from ...engine.kernels.implementations import load_ops
from ...engine.kernels.joined import balance_of
from ...engine.kernels.matmul import Linear
from ...engine.kernels.ops import Ops, Rotary
from ...engine.kernels.quantize import quantize
from ...engine.latent_space import denormalize, normalize
from ...engine.memory.activations import branch_room
from ...engine.memory.clip import Clip
from ...engine.memory.needs import vae_bytes
from ...engine.memory.placement import Placement
from ...engine.memory.tiles import Tile
from ...engine.offload import make_units, place_weights, reader
from ...engine.offload.pinned import locked_bytes
from ...engine.panel.speed import Setup, step_seconds
from ...engine.parallel.links import find_links
from ...engine.parallel.split import gain
from ...engine.report import records_of
from ...engine.settings import OFFLOAD_MODES, EngineSettings, GpuSettings, OffloadSettings, SamplingSettings
from ...engine.shapes import latent_shape, num_tokens
from ...engine.stages.conditioning import of_rows
from ...engine.stages.decode import decode_video
from ...engine.stages.encode_video import encode_video
from ...engine.stages.given import Given, with_given
from ...engine.stages.schedule import Schedule, build_schedule
from ...engine.system import compute_device, free_ram_bytes, page_lock_limit, release_memory
from ...engine.umt5.encoder import Umt5Encoder
from ...engine.umt5.tokenizer import open_tokenizer
from ...engine.wan.kernels import build_kernels
from ...engine.wan.layout import PHASES
from ...engine.wan.vae import WanVideoDecoder, WanVideoEncoder
