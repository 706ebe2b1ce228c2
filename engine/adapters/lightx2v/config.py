"""The one list of LightX2V's own words: config keys, op names. Nothing else in the pack knows them.

Every key below is read by LightX2V's sources and every op name is registered there; a contract test proves both.
Facts: LightX2V at the commit of bootstrap.py, lightx2v/models/networks/wan and lightx2v/common/ops.
"""

from __future__ import annotations

from typing import Any

from ...checkpoints.formats import WanArchitecture
from ...constants import DEFAULT_NUM_FRAMES, DISTILL_SHIFT, DISTILL_STEP_LIST

# The key that says whether rows of CLIP Vision are attended to; read when a model is built, and in every pass.
USE_IMAGE_ENCODER = "use_image_encoder"
# Op names of matmul back ends; those that start with OURS are registered by ops.py.
OURS = "lightx2v_nodes."
MATMUL_OPS = {
    ("bf16", "bf16"): "Default",
    ("fp8", "q8_kernels"): "fp8-q8f",
    ("fp8", "sgl_kernel"): "fp8-sgl",
    ("fp8", "vllm"): "fp8-vllm",
    ("fp8", "triton"): "fp8-triton",
    # Plain torch._scaled_mm with a scale per row on both sides; needs no torchao.
    ("fp8", "scaled_mm"): "fp8-torchao",
    ("fp8", "dequantize"): f"{OURS}dequantize",
    ("int8", "q8_kernels"): "int8-q8f",
    ("int8", "sgl_kernel"): "int8-sgl",
    ("int8", "vllm"): "int8-vllm",
    ("int8", "int_mm"): f"{OURS}int_mm",
    ("int8", "triton"): "int8-triton",
    ("int8", "dequantize"): f"{OURS}dequantize",
}


def build_config(
    architecture: WanArchitecture, *, attention_op: str, matmul_op: str, use_triton: bool
) -> dict[str, Any]:
    """Return the keys that LightX2V's Wan text-to-video and image-to-video paths read, beyond its own defaults.

    Its offload keys are not among them: the weights are brought by engine/offload. LightX2V's own offload
    computes on a stream of its own while SageAttention 2 launches on the default one, which gives NaN.

    Args:
        architecture: sizes of the checkpoint.
        attention_op: registered name for self-attention.
        matmul_op: registered name for the blocks' linears; "Default" is unquantized.
        use_triton: fused Triton kernel for the modulation (GPU).
    """
    config: dict[str, Any] = {
        # A first and a last frame are "i2v" too: its "flf2v" differs in the positions alone, see model.WanModel.
        "task": "i2v" if architecture.takes_image else "t2v",
        "model_cls": "wan2.1_distill",
        "dim": architecture.dim,
        "num_heads": architecture.num_heads,
        "num_layers": architecture.num_layers,
        "in_dim": architecture.in_dim,
        "out_dim": architecture.out_dim,
        "freq_dim": architecture.freq_dim,
        # Wan2.1's image-to-video alone has one; LightX2V's default is True.
        USE_IMAGE_ENCODER: bool(architecture.image_dim),
        "enable_cfg": False,
        "self_attn_1_type": attention_op,
        # 512 keys of the text, 257 of an image: too few for a quantized attention to pay.
        "cross_attn_1_type": "torch_sdpa",
        "cross_attn_2_type": "torch_sdpa",
        # The default of both is a package that is not ours to ask for (flashinfer, sgl-kernel), and without
        # sgl-kernel the norm falls back to squares in bfloat16.
        "rope_type": "torch_complex_rope",
        "rms_norm_type": "torch_native",
        "layer_norm_type": "torch",
        "modulate_type": "triton" if use_triton else "torch",
        # Read by the scheduler's constructor; steps, shift and noise are our own.
        "infer_steps": len(DISTILL_STEP_LIST),
        "denoising_step_list": list(DISTILL_STEP_LIST),
        "sample_shift": DISTILL_SHIFT,
        "sample_guide_scale": 1.0,
        "target_video_length": DEFAULT_NUM_FRAMES,
    }
    if matmul_op != "Default":
        # Unset, 8-bit weights would be cast to bfloat16 without their scales: noise, and no error.
        config |= {"dit_quantized": True, "dit_quant_scheme": matmul_op}
    return config
