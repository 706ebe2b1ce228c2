"""Every checkpoint format of the field: accepted with the right reading, or refused by name."""

import re
from collections.abc import Callable

import pytest
from lightx2v_pack.engine.checkpoints.checks import describe_blocks
from lightx2v_pack.engine.checkpoints.formats import (
    detect_text_encoder,
    detect_transformer,
    detect_vae,
    find_missing_blocks,
)
from lightx2v_pack.engine.checkpoints.header import TensorInfo, read_header
from lightx2v_pack.engine.checkpoints.weights import open_weights
from lightx2v_pack.engine.errors import CheckpointError
from lightx2v_pack.tools.make_tiny_checkpoint import DEFAULT_SIZES, TinySizes
from support import checkpoints
from support.checkpoints import A14B_I2V_SIZES, FLF2V_SIZES, I2V_SIZES

Header = dict[str, TensorInfo]
SCALAR = TensorInfo("F32", ())


def transformer_header(precision: str, sizes: TinySizes = DEFAULT_SIZES) -> Header:
    return read_header(checkpoints.single_file(precision, sizes=sizes))


def text_header(precision: str) -> Header:
    return read_header(checkpoints.text_encoder(precision))


def vae_header() -> Header:
    return read_header(checkpoints.vae())


def cast(header: Header, dtypes: dict[str, str]) -> Header:
    return {name: TensorInfo(dtypes.get(info.dtype, info.dtype), info.shape) for name, info in header.items()}


def add_prefix(header: Header, prefix: str) -> Header:
    return {prefix + name: info for name, info in header.items()}


def without(header: Header, pattern: str) -> Header:
    return {name: info for name, info in header.items() if not re.search(pattern, name)}


def reshape(header: Header, **shapes: tuple[int, ...]) -> Header:
    """Replace shapes; `__` in a keyword stands for the dots of a name."""
    changed = {name.replace("__", "."): shape for name, shape in shapes.items()}
    return {name: TensorInfo(info.dtype, changed.get(name, info.shape)) for name, info in header.items()}


def as_new_comfy(header: Header) -> Header:
    """ComfyUI's newer layout: scalar `weight_scale` and a `comfy_quant` tensor a layer."""
    result = {}
    for name, info in header.items():
        result[name] = SCALAR if name.endswith(".weight_scale") else info
        if name.endswith(".weight_scale"):
            result[name.replace(".weight_scale", ".comfy_quant")] = TensorInfo("U8", (27,))
    return result


ACCEPTED_TRANSFORMERS = {
    "LightX2V bf16": (lambda: transformer_header("bf16"), "bf16", None, ""),
    "LightX2V fp8": (lambda: transformer_header("fp8"), "fp8", "weight_scale", ""),
    "LightX2V int8": (lambda: transformer_header("int8"), "int8", "weight_scale", ""),
    "fp16 file": (lambda: cast(transformer_header("bf16"), {"BF16": "F16"}), "bf16", None, ""),
    "fp32 file": (lambda: cast(transformer_header("bf16"), {"BF16": "F32"}), "bf16", None, ""),
    "ComfyUI scaled fp8": (lambda: read_header(checkpoints.comfy_transformer()), "fp8", "scale_weight", ""),
    "ComfyUI scaled fp8 without marker": (
        lambda: read_header(checkpoints.comfy_transformer(has_marker=False)),
        "fp8",
        "scale_weight",
        "",
    ),
    "ComfyUI scaled fp8 with prefix": (
        lambda: read_header(checkpoints.comfy_transformer("model.diffusion_model.")),
        "fp8",
        "scale_weight",
        "model.diffusion_model.",
    ),
    "newer ComfyUI fp8": (
        lambda: as_new_comfy(add_prefix(transformer_header("fp8"), "diffusion_model.")),
        "fp8",
        "weight_scale",
        "diffusion_model.",
    ),
    "fp8 with one scale a tensor of one element": (
        lambda: {
            name: TensorInfo("F32", (1,)) if name.endswith("_scale") else info
            for name, info in transformer_header("fp8").items()
        },
        "fp8",
        "weight_scale",
        "",
    ),
    "a plain cast to fp8": (lambda: without(transformer_header("fp8"), "_scale$"), "fp8", None, ""),
    "all of it cast to fp8": (
        lambda: cast(add_prefix(transformer_header("bf16"), "diffusion_model."), {"BF16": "F8_E4M3"}),
        "fp8",
        None,
        "diffusion_model.",
    ),
    "prefix model.": (lambda: add_prefix(transformer_header("int8"), "model."), "int8", "weight_scale", "model."),
}


@pytest.mark.parametrize("case", ACCEPTED_TRANSFORMERS)
def test_transformer_formats(case: str) -> None:
    make, scheme, scale_suffix, prefix = ACCEPTED_TRANSFORMERS[case]
    found = detect_transformer(make())
    assert (found.precision, found.scale_suffix, found.prefix) == (scheme, scale_suffix, prefix)


def test_architecture_comes_from_shapes() -> None:
    sizes = checkpoints.tiny.TinySizes(dim=96, ffn_dim=160, num_layers=3, freq_dim=32, text_dim=48)
    architecture = detect_transformer(read_header(checkpoints.single_file("bf16", sizes=sizes))).architecture
    assert (architecture.dim, architecture.ffn_dim, architecture.num_layers) == (96, 160, 3)
    assert (architecture.freq_dim, architecture.text_dim) == (32, 48)
    assert (architecture.in_dim, architecture.out_dim) == (16, 16)
    assert architecture.num_heads == 1
    assert detect_transformer(transformer_header("bf16")).architecture.num_heads == 2


def lora() -> Header:
    return {
        f"diffusion_model.blocks.0.{part}.lora_{side}.weight": TensorInfo("BF16", (4, 4))
        for part in ("self_attn.q", "ffn.0")
        for side in ("down", "up")
    }


def nvfp4() -> Header:
    header = cast(transformer_header("fp8"), {"F8_E4M3": "U8"})
    return header | {name.replace("_scale", "_scale_2"): SCALAR for name in header if name.endswith(".weight_scale")}


REFUSED_TRANSFORMERS: dict[str, tuple[Callable[[], Header], str]] = {
    "int8 without scales": (
        lambda: without(transformer_header("int8"), "_scale$"),
        "Use a file with scales, distill_fp8.*INT8 weights without them.*blocks.0.self_attn.q.weight",
    ),
    "one scale missing": (
        lambda: without(transformer_header("fp8"), r"blocks\.1\.ffn\.2\.weight_scale"),
        "incomplete: the scale blocks.1.ffn.2.weight_scale is missing",
    ),
    "MXFP8": (
        lambda: {
            name: TensorInfo("U8", (info.shape[0], 8)) if name.endswith("_scale") else info
            for name, info in transformer_header("fp8").items()
        },
        "scale .*weight_scale of U8 .*MXFP8",
    ),
    "NVFP4": (nvfp4, "use the FP8 or INT8 version.*NVFP4"),
    "unknown dtype": (lambda: cast(transformer_header("bf16"), {"BF16": "F8_E8M0"}), "fp8_e4m3fn.*as F8_E8M0"),
    "mixed dtypes": (
        lambda: transformer_header("fp8") | {"blocks.0.ffn.0.weight": TensorInfo("BF16", (512, 256))},
        "as BF16 and F8_E4M3",
    ),
    "INT8 outside the blocks": (
        lambda: transformer_header("int8") | {"head.head.weight": TensorInfo("I8", (64, 256))},
        "stores head.head.weight as I8, where 8-bit weights are expected in the blocks' linear layers only",
    ),
    "a scale of another shape outside the blocks": (
        lambda: (
            transformer_header("fp8")
            | {
                "head.head.weight": TensorInfo("F8_E4M3", (64, 256)),
                "head.head.weight_scale": TensorInfo("F32", (64, 8)),
            }
        ),
        r"a scale head.head.weight_scale of F32 \[64, 8\]; expected one number or \[64, 1\]",
    ),
    "part of an image branch": (
        lambda: transformer_header("bf16") | {"img_emb.proj.0.bias": TensorInfo("BF16", (8,))},
        r"incomplete: \d+ tensors are missing \(img_emb.proj.0.weight, ",
    ),
    "a block without its image keys": (
        lambda: without(transformer_header("bf16", I2V_SIZES), r"blocks\.1\.cross_attn\.k_img\.weight"),
        r"a tensor is missing \(blocks.1.cross_attn.k_img.weight\)",
    ),
    "an image branch of other width": (
        lambda: reshape(transformer_header("bf16", I2V_SIZES), img_emb__proj__3__weight=(256, 48)),
        r"img_emb.proj.3.weight has shape \[256, 48\], expected \[256, 32\]",
    ),
    "an image branch and no image input": (
        lambda: reshape(transformer_header("bf16", I2V_SIZES), patch_embedding__weight=(256, 16, 1, 2, 2)),
        "takes 16 and returns 16 latent channels and has an image branch",
    ),
    "image keys in other precision": (
        lambda: (
            transformer_header("fp8", I2V_SIZES) | {"blocks.0.cross_attn.k_img.weight": TensorInfo("BF16", (256, 256))}
        ),
        "as BF16 and F8_E4M3",
    ),
    "Wan2.2 5B": (
        lambda: reshape(transformer_header("bf16"), patch_embedding__weight=(256, 48, 1, 2, 2)),
        "Wan2.2 TI2V 5B",
    ),
    "VACE": (
        lambda: transformer_header("bf16") | {"vace_patch_embedding.weight": TensorInfo("BF16", (8, 96, 1, 2, 2))},
        "VACE",
    ),
    "other channels": (
        lambda: reshape(transformer_header("bf16"), patch_embedding__weight=(256, 20, 1, 2, 2)),
        r"takes 20 and returns 16 latent channels; expected 16 \(text-to-video\) or 36 \(image-to-video\) and 16",
    ),
    "block missing": (lambda: without(transformer_header("bf16"), r"^blocks\.0\."), "incomplete: block 0 is missing"),
    "last blocks of the 14B missing": (
        lambda: reshape(transformer_header("bf16"), head__modulation=(1, 2, 5120)),
        "blocks 2-39 are missing",
    ),
    "tensor of a block missing": (
        lambda: without(transformer_header("bf16"), r"blocks\.1\.cross_attn\.norm_k\.weight"),
        r"a tensor is missing \(blocks.1.cross_attn.norm_k.weight\)",
    ),
    "non-block tensors missing": (
        lambda: without(transformer_header("bf16"), "^(text|time)_embedding"),
        r"8 tensors are missing \(text_embedding.0.weight, .*, \.\.\.\)",
    ),
    "shapes of two models": (
        lambda: reshape(transformer_header("bf16"), blocks__1__ffn__0__weight=(512, 255)),
        r"blocks.1.ffn.0.weight has shape \[512, 255\], expected \[512, 256\]",
    ),
    "diffusers": (
        lambda: {"condition_embedder.text_embedder.linear_1.weight": SCALAR, "blocks.0.attn1.to_q.weight": SCALAR},
        "native names.*diffusers' layout",
    ),
    "LoRA": (lora, "put the LoRA on it with LightX2V LoRA.*is a LoRA"),
    "text encoder": (lambda: text_header("bf16"), "Load it as the text encoder.*T5 text encoder"),
    "ComfyUI text encoder": (lambda: read_header(checkpoints.comfy_text_encoder()), "T5 text encoder"),
    "VAE": (vae_header, "Load it as the VAE.*is a Wan VAE"),
    "CLIP": (lambda: {"text_model.encoder.layers.0.mlp.fc1.weight": SCALAR}, "CLIP"),
    "another family": (lambda: {"transformer_blocks.0.attn1.to_q.weight": SCALAR}, "own nodes.*another family"),
    "unknown": (lambda: {"some.weight": SCALAR}, "not recognised: found tensors such as some.weight"),
    "empty": (dict, "holds no tensors; expected a Wan2.1"),
}


@pytest.mark.parametrize("case", REFUSED_TRANSFORMERS)
def test_transformer_refusals(case: str) -> None:
    make, message = REFUSED_TRANSFORMERS[case]
    with pytest.raises(CheckpointError, match=message) as refusal:
        detect_transformer(make(), "some/file.safetensors")
    assert "some/file.safetensors " in str(refusal.value)


# A name of each family's files, as ComfyUI has them and as diffusers has them, with one that Wan's have too.
FAMILIES = {
    "Flux": ("double_blocks.0.img_attn.qkv.weight", "single_transformer_blocks.0.proj_mlp.weight"),
    "Flux.2": ("double_stream_modulation_img.lin.weight", "double_stream_modulation_img.linear.weight"),
    "Chroma": ("distilled_guidance_layer.norms.0.scale", "distilled_guidance_layer.norms.0.weight"),
    "HunyuanVideo": (
        "model.model.txt_in.individual_token_refiner.blocks.0.norm1.weight",
        "context_embedder.token_refiner.refiner_blocks.0.attn.to_q.weight",
        "double_blocks.0.img_attn_qkv.weight",
    ),
    "SDXL": (
        "model.diffusion_model.label_emb.0.0.weight",
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
        "add_embedding.linear_1.weight",
    ),
    "Stable Diffusion": (
        "model.diffusion_model.input_blocks.1.1.proj_in.weight",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight",
    ),
    "Stable Diffusion 3": (
        "joint_blocks.0.context_block.attn.qkv.weight",
        "transformer_blocks.0.norm1_context.linear.weight",
    ),
    "AuraFlow": ("double_layers.0.attn.w1q.weight", "joint_transformer_blocks.0.attn.to_q.weight"),
    "LTX-Video": ("patchify_proj.weight", "time_embed.emb.timestep_embedder.linear_1.weight"),
    "Qwen-Image": (
        "transformer_blocks.0.img_mod.1.weight",
        "model.diffusion_model.transformer_blocks.0.txt_mod.1.bias",
    ),
    "CogVideoX": ("patch_embed.text_proj.weight", "transformer.layers.0.attention.query_key_value.weight"),
    "Mochi": ("t5_yproj.weight", "blocks.0.attn.qkv_x.weight", "time_embed.pooler.to_kv.weight"),
    "Cosmos": (
        "net.blocks.block0.blocks.0.block.attn.to_q.0.weight",
        "blocks.0.adaln_modulation_self_attn.1.weight",
        "time_embed.t_embedder.linear_1.weight",
    ),
    "PixArt": (
        "t_block.1.weight",
        "blocks.0.cross_attn.q_linear.weight",
        "adaln_single.emb.timestep_embedder.linear_1.bias",
    ),
    "Sana": ("transformer_blocks.0.ff.conv_inverted.weight",),
    "HiDream": ("double_stream_blocks.0.block.adaLN_modulation.1.weight",),
    "Lumina": ("noise_refiner.0.attention.qkv.weight",),
    "HunyuanDiT": ("mlp_t5.0.weight", "time_extra_emb.pooler.q_proj.weight"),
    "Kandinsky 5": ("visual_transformer_blocks.0.self_attention.to_query.weight",),
    "Stable Cascade": ("clip_txt_pooled_mapper.weight",),
    "Stable Video Diffusion": ("model.diffusion_model.input_blocks.1.1.time_stack.0.attn1.to_q.weight",),
}
# What these have beside them, which other rows know.
ALSO = (
    "transformer_blocks.0.attn1.to_q.weight",
    "blocks.0.self_attn.q_proj.weight",
    "blocks.0.attn.qkv.weight",
    "text_model.encoder.layers.0.mlp.fc1.weight",
)


@pytest.mark.parametrize("detect", [detect_transformer, detect_text_encoder, detect_vae])
@pytest.mark.parametrize(("family", "name"), [(family, name) for family, names in FAMILIES.items() for name in names])
def test_models_of_other_families_are_named_and_none_is_called_wans(family: str, name: str, detect) -> None:
    header = dict.fromkeys((*ALSO, name), SCALAR)
    with pytest.raises(
        CheckpointError, match=rf"Load it with ComfyUI's own nodes\. .* of the {family}\b.* family; exp"
    ):
        detect(header)


@pytest.mark.parametrize(
    "name",
    [
        "condition_embedder.text_embedder.linear_1.weight",
        "blocks.3.ffn.net.0.proj.weight",
        "condition_embedder.time_proj.bias",
    ],
)
def test_wan_in_diffusers_layout_is_told_by_its_own_names(name: str) -> None:
    header = {name: SCALAR, "blocks.0.attn1.to_q.weight": SCALAR}
    with pytest.raises(
        CheckpointError, match=r"same model with Wan's native names.* is a Wan transformer in diffusers"
    ):
        detect_transformer(header)


@pytest.mark.parametrize(
    ("sizes", "image_dim", "image_positions"), [(I2V_SIZES, 32, 0), (FLF2V_SIZES, 32, 18), (A14B_I2V_SIZES, 0, 0)]
)
@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_image_to_video_is_told_from_its_tensors(
    precision: str, sizes: TinySizes, image_dim: int, image_positions: int
) -> None:
    found = detect_transformer(transformer_header(precision, sizes))
    architecture = found.architecture
    assert found.precision == precision
    assert architecture.takes_image and (architecture.in_dim, architecture.out_dim) == (36, 16)
    assert (architecture.image_dim, architecture.image_positions) == (image_dim, image_positions)
    assert not detect_transformer(transformer_header(precision)).architecture.takes_image


def test_missing_blocks_are_found_and_named() -> None:
    header = {f"model.blocks.{index}.modulation": TensorInfo("F32", (1, 6, 5120)) for index in (0, 2, 3, 37, 39)}
    missing = find_missing_blocks(header)
    assert missing == [1, *range(4, 37), 38]
    assert describe_blocks(missing) == "blocks 1, 4-36, 38 are"
    assert describe_blocks([7]) == "block 7 is"
    assert describe_blocks([7, 8]) == "blocks 7, 8 are"
    assert find_missing_blocks({"head.modulation": TensorInfo("F32", (1, 2, 256))}) == [0]
    assert len(find_missing_blocks({"head.modulation": TensorInfo("F32", (1, 2, 1536))})) == 30


ACCEPTED_TEXT_ENCODERS = {
    "Wan bf16": (lambda: text_header("bf16"), "wan", "bf16", None),
    "Wan fp8": (lambda: text_header("fp8"), "wan", "fp8", "weight_scale"),
    "Wan int8": (lambda: text_header("int8"), "wan", "int8", "weight_scale"),
    "Wan fp8, plain cast": (lambda: without(text_header("fp8"), "_scale$"), "wan", "fp8", None),
    "Wan fp8, plain cast of every tensor": (
        lambda: cast(text_header("bf16"), {"BF16": "F8_E4M3"}),
        "wan",
        "fp8",
        None,
    ),
    "ComfyUI fp16": (lambda: read_header(checkpoints.comfy_text_encoder()), "hf", "bf16", None),
    "ComfyUI scaled fp8": (
        lambda: read_header(checkpoints.comfy_text_encoder(scaled_fp8=True)),
        "hf",
        "fp8",
        "scale_weight",
    ),
}


@pytest.mark.parametrize("case", ACCEPTED_TEXT_ENCODERS)
def test_text_encoder_formats(case: str) -> None:
    make, naming, scheme, scale_suffix = ACCEPTED_TEXT_ENCODERS[case]
    found = detect_text_encoder(make())
    assert (found.naming, found.precision, found.scale_suffix, found.prefix) == (naming, scheme, scale_suffix, "")
    assert (found.num_layers, found.d_model, found.d_ff, found.num_heads, found.d_kv) == (2, 64, 128, 4, 16)
    assert (found.vocab_size, found.num_buckets) == (400, 32)
    assert found.spiece == ("spiece_model" if naming == "hf" else None)
    assert bool(found.notes) == ("plain cast" in case)


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_pth_and_safetensors_read_alike(precision: str) -> None:
    pth = open_weights([checkpoints.text_encoder(precision, ".pth")]).header
    assert pth == text_header(precision)


REFUSED_TEXT_ENCODERS: dict[str, tuple[Callable[[], Header], str]] = {
    "T5 v1.1": (
        lambda: without(
            read_header(checkpoints.comfy_text_encoder()), r"block\.1\.layer\.0\.SelfAttention\.relative_attention_bias"
        ),
        "T5 v1.1 encoder, as Flux.*expected a UMT5-XXL",
    ),
    "int8 without scales": (lambda: without(text_header("int8"), "_scale$"), "INT8 weights without them"),
    "8-bit embedding beside scaled layers": (
        lambda: text_header("fp8") | {"token_embedding.weight": TensorInfo("F8_E4M3", (400, 64))},
        "stores token_embedding.weight as F8_E4M3",
    ),
    "block missing": (lambda: without(text_header("bf16"), r"blocks\.0\."), "block 0 is missing"),
    "last blocks missing": (
        lambda: reshape(text_header("bf16"), token_embedding__weight=(256384, 4096)),
        "blocks 2-23 are missing",
    ),
    "embedding missing": (
        lambda: without(text_header("bf16"), "token_embedding"),
        r"a tensor is missing \(token_embedding.weight\)",
    ),
    "odd heads": (
        lambda: {
            name: TensorInfo(info.dtype, (32, 5)) if "pos_embedding" in name else info
            for name, info in text_header("bf16").items()
        },
        "64 columns for 5 heads",
    ),
    "CLIP": (lambda: {"text_model.encoder.layers.0.mlp.fc1.weight": SCALAR}, "no CLIP.*CLIP model"),
    "OpenCLIP": (lambda: {"transformer.resblocks.0.ln_1.weight": SCALAR}, "CLIP model"),
    "language model": (lambda: {"model.layers.0.self_attn.q_proj.weight": SCALAR}, "language model"),
    "transformer": (lambda: transformer_header("fp8"), "as the transformer.*Wan transformer; expected a UMT5-XXL"),
    "VAE": (vae_header, "is a Wan VAE"),
}


@pytest.mark.parametrize("case", REFUSED_TEXT_ENCODERS)
def test_text_encoder_refusals(case: str) -> None:
    make, message = REFUSED_TEXT_ENCODERS[case]
    with pytest.raises(CheckpointError, match=message):
        detect_text_encoder(make(), "t5.safetensors")


@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model."])
def test_vae_format(prefix: str) -> None:
    found = detect_vae(add_prefix(vae_header(), prefix))
    assert (found.prefix, found.base_dim, found.z_dim) == (prefix, 8, 16)
    assert (found.dim_mult, found.num_res_blocks) == ((1, 2, 4, 4), 2)
    assert found.temporal_downsample == (False, True, True)
    assert found.has_encoder
    assert not detect_vae(add_prefix(without(vae_header(), "^encoder"), prefix)).has_encoder


REFUSED_VAES: dict[str, tuple[Callable[[], Header], str]] = {
    "diffusers": (lambda: {"decoder.mid_block.resnets.0.conv1.weight": SCALAR}, "VAE in diffusers' layout"),
    "image VAE": (lambda: {"decoder.mid.block_1.conv1.weight": SCALAR}, "image model's VAE"),
    "TAE": (lambda: {"decoder.1.weight": SCALAR, "encoder.0.weight": SCALAR}, "tiny auto-encoder"),
    "Wan2.2": (
        lambda: reshape(vae_header(), conv2__weight=(48, 48, 1, 1, 1), decoder__conv1__weight=(32, 48, 3, 3, 3)),
        "48 latent channels.*Wan2.2",
    ),
    "fp8": (lambda: cast(vae_header(), {"F32": "F8_E4M3"}), "in F8_E4M3; expected BF16"),
    "layer missing": (
        lambda: without(vae_header(), r"decoder\.upsamples\.9\.residual\.6\.weight"),
        r"missing \(decoder.upsamples.9.residual.6.weight\)",
    ),
    "uneven stages": (
        lambda: {
            name: TensorInfo(info.dtype, (24, 24, 3, 3, 3)) if "upsamples.4.residual.6.weight" in name else info
            for name, info in vae_header().items()
        },
        "decoder stages of widths",
    ),
    "transformer": (lambda: transformer_header("bf16"), "Wan transformer; expected a Wan2.1 VAE"),
    "text encoder": (lambda: text_header("bf16"), "T5 text encoder"),
}


@pytest.mark.parametrize("case", REFUSED_VAES)
def test_vae_refusals(case: str) -> None:
    make, message = REFUSED_VAES[case]
    with pytest.raises(CheckpointError, match=message):
        detect_vae(make(), "vae.safetensors")
