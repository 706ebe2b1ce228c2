"""SageAttention 2's kernel for Hopper behind a preparation of our own: an eighth of the memory, half of the passes.

SageAttention copies what it quantizes, pads V in another copy and transposes it in a third. Here its inputs come from
attention_inputs.py.
Source of the layouts: SageAttention 2.2 csrc/qattn/qk_int_sv_f8_cuda_sm90.cu, csrc/fused/fused.cu.

Imports Triton: import this module only when it is to be used.
"""

from __future__ import annotations

import math

import torch

from .attention_inputs import FP8_LARGEST, Prepared

# Scales of a block of keys where a warp's threads have scales of their own (Sage's "per thread"), and its name there.
KEY_GROUPS = 4
_PER_THREAD = 3


def attend(inputs: Prepared, out: torch.Tensor) -> None:
    """Write the attention of `inputs`, which have KEY_GROUPS scales a block of keys, to out [N, H, 128] BF16."""
    from sageattention import _qattn_sm90

    _, heads, head_dim = out.shape
    _qattn_sm90.qk_int8_sv_f8_accum_f32_fuse_v_scale_attn_inst_buf(
        inputs.q[None],
        inputs.k[None],
        inputs.values.transpose(0, 1)[None],
        out[None],
        inputs.query_scales[None],
        inputs.key_scales[None],
        (inputs.value_peaks / FP8_LARGEST).view(1, heads, head_dim),
        0,
        0,
        _PER_THREAD,
        1 / math.sqrt(head_dim),
        0,
    )
