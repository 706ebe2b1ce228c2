"""How many bytes of activations one forward pass takes on its device: arithmetic on sizes, and measured constants.

The engines allocate their workspace by these numbers and the memory plan predicts by them, so the two agree.
"""

from __future__ import annotations

from dataclasses import dataclass

# Every part of the workspace starts where CUDA's allocator would put it.
ALIGNMENT = 512
# The feed-forward runs in this many row chunks whatever the plan, so that latents do not depend on the plan.
FFN_CHUNKS = 2


# Bytes per token and unit of width of what a self-attention back end takes beside q, k, v, its output included.
# First principles: the output is BF16 (2); SageAttention 2 holds q and k in INT8 (2), v transposed in BF16 (2) and in
# FP8 (1); its Triton kernel q and k in INT8 (2) and v in FP16 (2); the pack's own has copies of q and k (4) and v in
# FP8 (1).
# In place, behind the pack's preparation, only v in FP8 is new.
ATTENTION_BYTES = {
    "sage_attn2": 7.0,
    "sage_attn2_in_place": 1.1,
    "sage_triton": 6.0,
    "sdpa": 2.1,
    "sdpa_cudnn": 2.1,
    "flash_attn2": 2.1,
    "flash_attn3": 2.1,
    "triton": 7.1,
    "triton_in_place": 1.1,
}
# The same outside of the blocks, by who computes there: LightX2V's head normalises to a tensor of its own. Blocks and
# what is outside of them never compute at once.
EDGE_BYTES = {"portable": 0.1, "lightx2v": 2.1}
# The same of everything in a pass of LightX2V's own block compute: 1.15 times what it allocates, measured beside the
# weights at 832x480x81 on an H200 (docs/benchmarks.md: 5.39, 4.67 and 5.27 GiB with them). Where there is room torch
# reserves more, 8.3, 7.1 and 7.0 GiB; where there is not it gives unused blocks back before it fails.
OWN_COMPUTE_BYTES = {"fp8": 30.3, "int8": 25.0, "bf16": 24.6}
# Bytes per token beside the above: the rotary table, two FP32 values for each pair of a head's 128 channels. LightX2V
# keeps its own beside the blocks'.
ROTARY_BYTES = {"portable": 512, "lightx2v": 1024}
# cuBLAS's workspaces (32 MiB on Hopper, 8.5 MiB elsewhere), row chunks of operations in plain torch, small tensors.
FIXED_BYTES = 96 * 2**20
# Rows of text whose keys and values the cross-attention keeps for every block: 128 and one for all padding.
TEXT_ROWS_KEPT = 129


@dataclass(frozen=True)
class WorkspaceSizes:
    """Bytes of the parts of a block's workspace, each a multiple of ALIGNMENT."""

    hidden: int
    """x [N, D] BF16: what the blocks pass on."""
    quantised: int
    """Input of the next linear [N, D]: 8-bit, or BF16 with BF16 weights."""
    scales: int
    """[N, 1] FP32; none with BF16 weights."""
    region: int
    """q | k | v [N, D] BF16 each; later the linears' outputs, and the feed-forward's chunks."""

    @property
    def total(self) -> int:
        return self.hidden + self.quantised + self.scales + self.region


def workspace_sizes(*, tokens: int, dim: int, ffn_dim: int, scheme: str) -> WorkspaceSizes:
    """Return the sizes of the workspace of one clip.

    Args:
        tokens: of the clip (N).
        dim: width of the transformer (D).
        ffn_dim: width of the feed-forward (F).
        scheme: fp8 | int8 | bf16, of the inputs of the blocks' linears.
    """
    is_quantised = scheme != "bf16"
    rows = -(-tokens // FFN_CHUNKS)
    # A chunk of the feed-forward: h [rows, F] BF16; with 8-bit weights its quantised copy too, and the outputs of the
    # chunks before it [rows, D] BF16 (its own goes where h was; with BF16 weights all go to the linears' input).
    chunk = _aligned(rows * ffn_dim * 2)
    if is_quantised:
        outputs = _aligned((FFN_CHUNKS - 1) * rows * dim * 2)
        chunk += _aligned(rows * ffn_dim) + _aligned(rows * 4) + outputs
    return WorkspaceSizes(
        hidden=_aligned(tokens * dim * 2),
        quantised=_aligned(tokens * dim * (1 if is_quantised else 2)),
        scales=_aligned(tokens * 4) if is_quantised else 0,
        region=max(3 * _aligned(tokens * dim * 2), chunk),
    )


def activation_bytes(
    *, tokens: int, dim: int, ffn_dim: int, num_blocks: int, scheme: str, attention: str, matmul: str, path: str
) -> int:
    """Return the bytes that a forward pass takes beside the weights, as torch's allocator reserves them (for
    lightx2v_own: with little to spare, see OWN_COMPUTE_BYTES).

    Args:
        tokens, dim, ffn_dim: of the clip and the transformer.
        num_blocks: of the transformer.
        scheme: fp8 | int8 | bf16, of the blocks' linears.
        attention: name of a self-attention back end of support.py.
        matmul: name of the matmul back end; "dequantize" holds one linear in BF16 and computes like BF16 weights.
        path: whose blocks and what is around them: portable | lightx2v (its engine with the pack's blocks) |
            lightx2v_own (its engine with compile off).
    """
    widened = _aligned(dim * ffn_dim * 2) if matmul == "dequantize" else 0
    if path == "lightx2v_own":
        return int(tokens * dim * OWN_COMPUTE_BYTES[scheme]) + widened + FIXED_BYTES
    inputs = "bf16" if matmul == "dequantize" else scheme
    workspace = workspace_sizes(tokens=tokens, dim=dim, ffn_dim=ffn_dim, scheme=inputs).total
    temporary = int(tokens * dim * max(ATTENTION_BYTES[attention], EDGE_BYTES[path]))
    text = 2 * num_blocks * TEXT_ROWS_KEPT * dim * 2
    # The cross-attention's last linear applied to the text, see wan/block.py: its weights in BF16 (2) where they are
    # stored in 8 bits, and the result, dim / 2 rows at most (1). What else a block takes is not there at that time.
    outputs = dim * dim * (1 if scheme == "bf16" else 3)
    temporary = max(temporary + widened, outputs)
    return workspace + temporary + tokens * ROTARY_BYTES[path] + text + FIXED_BYTES


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
