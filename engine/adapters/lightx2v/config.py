"""The one list of LightX2V's own words: config keys, op names. Nothing else in the pack knows them.

Every key below is read by LightX2V's sources and every op name is registered there; a contract test proves both.
Facts: LightX2V at the commit of bootstrap.py, lightx2v/models/networks/wan and lightx2v/common/ops.
"""

from __future__ import annotations

from typing import Any

from ...backends.table import Backend
from ...checkpoints.formats import WanArchitecture
from ...constants import DEFAULT_NUM_FRAMES, DISTILL_SHIFT, DISTILL_STEP_LIST

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

_EIGHT_BIT = frozenset({"fp8", "int8"})
_Q8_INSTALL = "pip install --no-build-isolation git+https://github.com/KONAKONA666/q8_kernels"
# Matmul back ends of this engine; see backends/table.py. LightX2V's Triton kernels quantise activations in the same
# pass, which plain torch does in several; its INT8 one cuts values off where it should round, so torch's goes first.
MATMUL_BACKENDS: tuple[Backend, ...] = (
    Backend(
        name="q8_kernels",
        dtypes=_EIGHT_BIT,
        rank=70,
        package="q8_kernels",
        min_capability=(8, 9),
        max_capability=(8, 9),
        install=_Q8_INSTALL,
    ),
    Backend(
        name="sgl_kernel",
        dtypes=_EIGHT_BIT,
        rank=60,
        package="sgl_kernel",
        min_capability=(8, 9),
        install="pip install --no-deps sgl-kernel",
    ),
    Backend(
        name="vllm",
        dtypes=_EIGHT_BIT,
        rank=50,
        package="vllm",
        min_capability=(8, 9),
        install="pip install vllm",
    ),
    Backend(name="triton", dtypes=frozenset({"fp8"}), rank=40, package="triton", min_capability=(8, 9)),
    Backend(name="scaled_mm", dtypes=frozenset({"fp8"}), rank=30, min_capability=(8, 9)),
    Backend(name="int_mm", dtypes=frozenset({"int8"}), rank=30, min_capability=(8, 0)),
    Backend(name="triton", dtypes=frozenset({"int8"}), rank=20, package="triton", min_capability=(8, 0)),
    Backend(name="dequantize", dtypes=_EIGHT_BIT, rank=10),
)


def build_config(
    architecture: WanArchitecture, *, attention_op: str, matmul_op: str, use_triton: bool
) -> dict[str, Any]:
    """Return the keys that LightX2V's Wan text-to-video path reads, beyond its own defaults.

    Its offload keys are not among them: the weights are brought by offload.py. LightX2V's own offload
    computes on a stream of its own while SageAttention 2 launches on the default one, which gives NaN.

    Args:
        architecture: sizes of the checkpoint.
        attention_op: registered name for self-attention.
        matmul_op: registered name for the blocks' linears; "Default" is unquantised.
        use_triton: fused Triton kernel for the modulation (GPU).
    """
    config: dict[str, Any] = {
        "task": "t2v",
        "model_cls": "wan2.1_distill",
        "dim": architecture.dim,
        "num_heads": architecture.num_heads,
        "num_layers": architecture.num_layers,
        "in_dim": architecture.in_dim,
        "out_dim": architecture.out_dim,
        "freq_dim": architecture.freq_dim,
        # T2V has no image encoder; LightX2V's default is True.
        "use_image_encoder": False,
        "enable_cfg": False,
        "self_attn_1_type": attention_op,
        # 512 keys are too few for a quantised attention to pay.
        "cross_attn_1_type": "torch_sdpa",
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
