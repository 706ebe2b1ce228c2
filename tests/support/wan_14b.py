"""The published Wan2.1-T2V-14B without its weights: sizes, headers and kernels, for what is planned or predicted."""

from dataclasses import replace
from pathlib import Path

from lightx2v_pack.engine.backends.choose import Backends, Wanted, choose
from lightx2v_pack.engine.backends.table import Machine
from lightx2v_pack.engine.checkpoints.formats import TransformerFormat, WanArchitecture
from lightx2v_pack.engine.checkpoints.header import Header, TensorInfo
from lightx2v_pack.engine.checkpoints.published import ARCHITECTURE
from lightx2v_pack.engine.checkpoints.transformers import TransformerFiles
from lightx2v_pack.engine.handles import weight_sizes
from lightx2v_pack.engine.memory.clip import Clip
from lightx2v_pack.engine.memory.needs import Sizes

WAN_14B = ARCHITECTURE
WAN_I2V_14B = replace(ARCHITECTURE, in_dim=36, image_dim=1280)
WAN_I2V_A14B = replace(ARCHITECTURE, in_dim=36)
_STORED = {"fp8": "F8_E4M3", "int8": "I8", "bf16": "BF16"}


def make_files(precision: str = "fp8", architecture: WanArchitecture = WAN_14B) -> TransformerFiles:
    """Return what resolving a single file in this precision gives; there is no such file."""
    header = _make_header(precision, architecture)
    suffix = None if precision == "bf16" else "weight_scale"
    return TransformerFiles(
        files=(Path(f"wan_14b_{precision}.safetensors"),),
        layout="single",
        format=TransformerFormat(precision=precision, scale_suffix=suffix, prefix="", architecture=architecture),
        num_bytes=sum(info.num_bytes for info in header.values()),
        header=header,
    )


def make_experts(precision: str = "fp8", architecture: WanArchitecture = WAN_14B) -> TransformerFiles:
    """Return the same of Wan2.2 A14B's two experts."""
    high, low = (replace(make_files(precision, architecture), noise=noise) for noise in ("high", "low"))
    return replace(high, second=low)


def choose_kernels(
    precision: str = "fp8", attention: str = "sage_attn2", capability: tuple[int, int] = (8, 9), **wanted: str
) -> Backends:
    """Return the kernels for it on a card with Triton and SageAttention."""
    machine = Machine(capability=capability, packages={"triton": "3.6.0", "sageattention": "2.2.0"})
    sizes = {"dim": WAN_14B.dim, "ffn_dim": WAN_14B.ffn_dim}
    return choose(machine, Wanted(precision=precision, attention=attention, **sizes, **wanted))


def make_sizes(clip: Clip, backends: Backends | None = None, architecture: WanArchitecture = WAN_14B) -> Sizes:
    """Return what a plan for a clip is made of."""
    backends = backends or choose_kernels()
    weights = weight_sizes(make_files(backends.precision, architecture))
    return Sizes(clip=clip, architecture=architecture, weights=weights, backends=backends)


def make_expert_sizes(clip: Clip, backends: Backends | None = None) -> Sizes:
    """Return the same of both experts of Wan2.2 A14B."""
    sizes = make_sizes(clip, backends)
    return replace(sizes, weights=weight_sizes(make_experts(sizes.backends.precision)))


def _make_header(precision: str, architecture: WanArchitecture) -> Header:
    """Names and shapes are those of Wan2.1 wan/modules/model.py; a scale is fp32 [N, 1], a channel of the output."""
    dim, ffn_dim, text_dim = architecture.dim, architecture.ffn_dim, architecture.text_dim
    header: dict[str, TensorInfo] = {}

    def add(name: str, *shape: int, dtype: str = "BF16") -> None:
        header[f"{name}.weight"] = TensorInfo(dtype, shape)
        header[f"{name}.bias"] = TensorInfo("BF16", shape[:1])

    def add_linear(name: str, outputs: int, inputs: int) -> None:
        add(name, outputs, inputs, dtype=_STORED[precision])
        if precision != "bf16":
            header[f"{name}.weight_scale"] = TensorInfo("F32", (outputs, 1))

    add("patch_embedding", dim, architecture.in_dim, 1, 2, 2)
    add("text_embedding.0", dim, text_dim)
    add("text_embedding.2", dim, dim)
    add("time_embedding.0", dim, architecture.freq_dim)
    add("time_embedding.2", dim, dim)
    add("time_projection.1", 6 * dim, dim)
    header["head.modulation"] = TensorInfo("BF16", (1, 2, dim))
    add("head.head", 4 * architecture.out_dim, dim)
    if architecture.image_dim:
        for name, width in (("0", architecture.image_dim), ("4", dim)):
            add(f"img_emb.proj.{name}", width)
        add("img_emb.proj.1", architecture.image_dim, architecture.image_dim)
        add("img_emb.proj.3", dim, architecture.image_dim)
    for block in (f"blocks.{index}" for index in range(architecture.num_layers)):
        header[f"{block}.modulation"] = TensorInfo("BF16", (1, 6, dim))
        add(f"{block}.norm3", dim)
        for attention in ("self_attn", "cross_attn"):
            for part in "qkvo":
                add_linear(f"{block}.{attention}.{part}", dim, dim)
            for norm in ("norm_q", "norm_k"):
                header[f"{block}.{attention}.{norm}.weight"] = TensorInfo("BF16", (dim,))
        if architecture.image_dim:
            for part in ("k_img", "v_img"):
                add_linear(f"{block}.cross_attn.{part}", dim, dim)
            header[f"{block}.cross_attn.norm_k_img.weight"] = TensorInfo("BF16", (dim,))
        add_linear(f"{block}.ffn.0", ffn_dim, dim)
        add_linear(f"{block}.ffn.2", dim, ffn_dim)
    return header
