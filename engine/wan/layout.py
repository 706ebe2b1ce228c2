"""How Wan's tensors are named and grouped: what a unit of a block holds, and what is computed in fp32.

Source of the names: Wan2.1 wan/modules/model.py.
"""

from __future__ import annotations

# The phases of a block in the order of compute, each by the starts of its tensors' names under `blocks.<i>.`.
PHASES = (
    ("modulation", "self_attn."),
    ("norm3.", *(f"cross_attn.{name}." for name in ("q", "k", "v", "o", "norm_q", "norm_k"))),
    ("ffn.",),
)
# What makes a block's keys and values of an image, which a clip needs once and not in every step.
IMAGE_KEYS = tuple(f"cross_attn.{name}." for name in ("k_img", "v_img", "norm_k_img"))
# The phases of LightX2V's own compute, which makes them in every step.
PHASES_WITH_IMAGE = (PHASES[0], PHASES[1] + IMAGE_KEYS, PHASES[2])
# Names of what is computed in fp32: modulations, the affine norm of the blocks, the embedding of the time.
FLOAT32 = r"modulation$|norm3\.|^time_embedding\."
