"""How many bytes of activations one forward pass takes on its device: arithmetic on sizes, and measured constants.

The engines allocate their workspace by these numbers and the memory plan predicts by them, so the two agree.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..backends.choose import Backends
from ..constants import FP8_BRANCH_PARTS
from .rounding import round_up

# The feed-forward runs in this many row chunks whatever the plan, so that latents do not depend on the plan.
FFN_CHUNKS = 2

# Bytes per token and unit of width outside of the blocks, which never compute at once with them.
EDGE_BYTES = 0.1
# The same of everything in a pass of LightX2V's own compute: 1.15 times what it allocates, measured beside the
# weights at 832x480x81 on an H200 (docs/benchmarks.md: 5.39, 4.67 and 5.27 GiB with them). Where there is room torch
# reserves more, 8.3, 7.1 and 7.0 GiB; where there is not it gives unused blocks back before it fails.
OWN_COMPUTE_BYTES = {"fp8": 30.3, "int8": 25.0, "bf16": 24.6}
# Bytes per token beside the above: the rotary table, two FP32 values for each pair of a head's 128 channels.
ROTARY_BYTES = 512
# cuBLAS's workspaces (32 MiB on Hopper, 8.5 MiB elsewhere), row chunks of operations in plain torch, small tensors.
FIXED_BYTES = 96 * 2**20
# While weights are requantized in plain torch: three chunks of a weight in FP32, see kernels/quantize.py.
REQUANTIZE_BYTES = 48 * 2**20
# Columns before the inputs of linears come in multiples of this, a step of the tensor cores' kernels. LoRAs of a higher
# rank than this are added to the outputs: with more columns the product costs as much as that.
_ROOM_MULTIPLE = 128
_JOINED_RANK = 160
# Rows of text whose keys and values the cross-attention keeps for every block: 128 and one for all padding.
TEXT_ROWS_KEPT = 129


@dataclass(frozen=True)
class WorkspaceSizes:
    """Bytes of the parts of a block's workspace, each rounded up as tensors in a buffer are."""

    hidden: int
    """x [N, D] BF16: what the blocks pass on."""
    quantized: int
    """Input of the next linear [N, D]: 8-bit, or BF16 with BF16 weights."""
    scales: int
    """[N, 1] FP32; none with BF16 weights."""
    region: int
    """q | k | v [N, D] BF16 each; later the linears' outputs, and the feed-forward's chunks."""

    @property
    def total(self) -> int:
        return self.hidden + self.quantized + self.scales + self.region


def branch_room(rank: int, *, joins_loras: bool) -> int:
    """Return the columns that are kept before the inputs of the blocks' linears for LoRAs, see kernels/joined.py.

    Args:
        rank: the highest of a layer's branch.
        joins_loras: of the kernels, see Backends.
    """
    if not joins_loras or rank > _JOINED_RANK:
        return 0
    return -(-FP8_BRANCH_PARTS * rank // _ROOM_MULTIPLE) * _ROOM_MULTIPLE


def workspace_sizes(*, tokens: int, dim: int, ffn_dim: int, precision: str, room: int = 0) -> WorkspaceSizes:
    """Return the sizes of the workspace of one clip.

    Args:
        tokens: of the clip (N).
        dim: width of the transformer (D).
        ffn_dim: width of the feed-forward (F).
        precision: fp8 | int8 | bf16, of the inputs of the blocks' linears.
        room: see branch_room.
    """
    is_quantized = precision != "bf16"
    rows = -(-tokens // FFN_CHUNKS)
    # A chunk of the feed-forward: h [rows, F] BF16; with 8-bit weights its quantized copy too, and the outputs of the
    # chunks before it [rows, D] BF16 (its own goes where h was; with BF16 weights all go to the linears' input).
    chunk = round_up(rows * ffn_dim * 2)
    if is_quantized:
        outputs = round_up((FFN_CHUNKS - 1) * rows * dim * 2)
        chunk += round_up(rows * (room + ffn_dim)) + round_up(rows * 4) + outputs
    return WorkspaceSizes(
        hidden=round_up(tokens * dim * 2),
        quantized=round_up(tokens * ((room + dim) if is_quantized else 2 * dim)),
        scales=round_up(tokens * 4) if is_quantized else 0,
        region=max(3 * round_up(tokens * dim * 2), chunk),
    )


def activation_bytes(
    *,
    tokens: int,
    dim: int,
    ffn_dim: int,
    num_blocks: int,
    backends: Backends,
    image_rows: int = 0,
    lora_rank: int = 0,
) -> int:
    """Return the bytes that a forward pass takes beside the weights, as torch's allocator reserves them (of LightX2V's
    own compute: with little to spare, see OWN_COMPUTE_BYTES).

    Args:
        tokens, dim, ffn_dim: of the clip and the transformer.
        num_blocks: of the transformer.
        image_rows: of CLIP Vision, whose keys and values are kept for every block as the text's are.
        lora_rank: the highest of a layer's branch.
        backends: what computes; a matmul that dequantizes holds one linear in BF16 and computes like BF16 weights.
    """
    widened = round_up(dim * ffn_dim * 2) if backends.matmul.name == "dequantize" else 0
    if backends.engine == "lightx2v":
        return int(tokens * dim * OWN_COMPUTE_BYTES[backends.precision]) + widened + FIXED_BYTES
    room = branch_room(lora_rank, joins_loras=backends.joins_loras)
    workspace = workspace_sizes(tokens=tokens, dim=dim, ffn_dim=ffn_dim, precision=backends.inputs, room=room).total
    # The largest weight beside its branch, see lora/branch.py.
    joined = round_up(max(dim * (room + ffn_dim), ffn_dim * (room + dim))) if room else 0
    temporary = int(tokens * dim * max(backends.attention_bytes, EDGE_BYTES))
    kept = 2 * num_blocks * (TEXT_ROWS_KEPT + image_rows) * dim * 2
    # The cross-attention's last linear applied to the text, see wan/block.py: its weights in BF16 (2) where they are
    # stored in 8 bits, and the result, dim / 2 rows at most (1). What else a block takes is not there at that time.
    requantizing = REQUANTIZE_BYTES if backends.requantizes and backends.matmul.backend.package is None else 0
    outputs = dim * dim * (1 if backends.precision == "bf16" else 3)
    temporary = max(temporary + widened, outputs)
    return workspace + joined + temporary + tokens * ROTARY_BYTES + kept + requantizing + FIXED_BYTES
