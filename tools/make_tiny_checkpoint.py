"""Write a small checkpoint of random weights in exactly the layouts of the real one.

`write_checkpoint` writes the whole model repository (transformer per block in FP8 and INT8, single BF16
file, text encoder in three `.pth` forms, VAE, trained tokenizer); the other `write_*` functions write the
single-file variants found elsewhere. All forms hold the same float weights, so runs can be compared.
Needs torch, safetensors and sentencepiece only. Tests and demo/train import it; it also runs as a script.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]

TEXT_ENCODER_NAME = "models_t5_umt5-xxl-enc-{precision}.pth"
VAE_NAME = "Wan2.1_VAE.pth"
TOKENIZER_FOLDER = Path("google") / "umt5-xxl"
PRECISION_FOLDERS = {"fp8": "distill_fp8", "int8": "distill_int8", "bf16": "distill_models"}
# Names of the single-file repository lightx2v/Wan2.1-Distill-Models.
SINGLE_FILE_NAMES = {
    "bf16": "wan2.1_t2v_14b_lightx2v_4step.safetensors",
    "fp8": "wan2.1_t2v_14b_scaled_fp8_e4m3_lightx2v_4step.safetensors",
    "int8": "wan2.1_t2v_14b_int8_lightx2v_4step.safetensors",
}
COMFY_SINGLE_FILE_NAME = "wan2.1_t2v_14b_scaled_fp8_e4m3_lightx2v_4step_comfyui.safetensors"


@dataclass(frozen=True, kw_only=True)
class TinySizes:
    """Sizes of the three models; the defaults are small enough for a CPU, the layout is the real one."""

    dim: int = 256
    """Transformer width; heads are 128 wide."""
    ffn_dim: int = 512
    num_layers: int = 2
    freq_dim: int = 256
    text_dim: int = 64
    """Width of the text encoder (d_model) and of the transformer's text input."""
    text_layers: int = 2
    text_heads: int = 4
    text_d_kv: int = 16
    text_d_ff: int = 128
    vocab_size: int = 400
    """Rows of the embedding; the tokenizer has at most as many pieces."""
    vae_dim: int = 8
    in_dim: int = 16
    """Channels of the transformer's input: 36 is image to video."""
    image_dim: int = 0
    """Width of CLIP Vision's rows, for Wan2.1's image to video; 0: without that branch, as Wan2.2's."""
    image_positions: int = 0
    """Rows of a first and a last frame together, where they have learned positions (Wan2.1 FLF2V)."""


DEFAULT_SIZES = TinySizes()


class _Draw:
    """Random weights from one generator, rounded to bfloat16 so that every precision starts from the same values."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, std: float = 1.0, mean: float = 0.0) -> torch.Tensor:
        values = torch.randn(shape, generator=self._generator) * std + mean
        return values.bfloat16().float()

    def layer(self, tensors: Tensors, name: str, *shape: int, gain: float = 1.0, bias: bool = True) -> None:
        """Add `name`.weight with variance gain^2 / fan-in, and a small `name`.bias."""
        tensors[f"{name}.weight"] = self.normal(*shape, std=gain / math.sqrt(math.prod(shape[1:])))
        if bias:
            tensors[f"{name}.bias"] = self.normal(shape[0], std=0.02)

    def norm(self, tensors: Tensors, name: str, *shape: int) -> None:
        tensors[name] = self.normal(*shape, std=0.1, mean=1.0)


def make_transformer(sizes: TinySizes = DEFAULT_SIZES, seed: int = 0) -> Tensors:
    """Return a Wan transformer, text-to-video or image-to-video, under its native names, float32."""
    draw, tensors, dim = _Draw(seed), Tensors(), sizes.dim
    draw.layer(tensors, "patch_embedding", dim, sizes.in_dim, 1, 2, 2)
    draw.layer(tensors, "text_embedding.0", dim, sizes.text_dim)
    draw.layer(tensors, "text_embedding.2", dim, dim)
    draw.layer(tensors, "time_embedding.0", dim, sizes.freq_dim)
    draw.layer(tensors, "time_embedding.2", dim, dim)
    draw.layer(tensors, "time_projection.1", 6 * dim, dim)
    for index in range(sizes.num_layers):
        block = f"blocks.{index}"
        tensors[f"{block}.modulation"] = draw.normal(1, 6, dim, std=dim**-0.5)
        draw.norm(tensors, f"{block}.norm3.weight", dim)
        tensors[f"{block}.norm3.bias"] = draw.normal(dim, std=0.02)
        for attention in ("self_attn", "cross_attn"):
            for projection in ("q", "k", "v", "o"):
                draw.layer(tensors, f"{block}.{attention}.{projection}", dim, dim)
            for norm in ("norm_q", "norm_k"):
                draw.norm(tensors, f"{block}.{attention}.{norm}.weight", dim)
        draw.layer(tensors, f"{block}.ffn.0", sizes.ffn_dim, dim)
        draw.layer(tensors, f"{block}.ffn.2", dim, sizes.ffn_dim)
    tensors["head.modulation"] = draw.normal(1, 2, dim, std=dim**-0.5)
    draw.layer(tensors, "head.head", 16 * 4, dim)
    if sizes.image_dim:
        _add_image_branch(draw, tensors, sizes)
    return tensors


def _add_image_branch(draw: _Draw, tensors: Tensors, sizes: TinySizes) -> None:
    dim, image_dim = sizes.dim, sizes.image_dim
    for name, width in (("img_emb.proj.0", image_dim), ("img_emb.proj.4", dim)):
        draw.norm(tensors, f"{name}.weight", width)
        tensors[f"{name}.bias"] = draw.normal(width, std=0.02)
    draw.layer(tensors, "img_emb.proj.1", image_dim, image_dim)
    draw.layer(tensors, "img_emb.proj.3", dim, image_dim)
    if sizes.image_positions:
        tensors["img_emb.emb_pos"] = draw.normal(1, sizes.image_positions, image_dim, std=0.5)
    for index in range(sizes.num_layers):
        for projection in ("k_img", "v_img"):
            draw.layer(tensors, f"blocks.{index}.cross_attn.{projection}", dim, dim)
        draw.norm(tensors, f"blocks.{index}.cross_attn.norm_k_img.weight", dim)


def make_text_encoder(sizes: TinySizes = DEFAULT_SIZES, seed: int = 0) -> Tensors:
    """Return a UMT5 encoder under Wan's names, float32."""
    draw, tensors, dim = _Draw(seed + 1), Tensors(), sizes.text_dim
    inner = sizes.text_heads * sizes.text_d_kv
    tensors["token_embedding.weight"] = draw.normal(sizes.vocab_size, dim)
    for index in range(sizes.text_layers):
        block = f"blocks.{index}"
        draw.norm(tensors, f"{block}.norm1.weight", dim)
        # T5 does not scale q.k; a small q keeps the attention soft.
        draw.layer(tensors, f"{block}.attn.q", inner, dim, gain=sizes.text_d_kv**-0.5, bias=False)
        for projection in ("k", "v"):
            draw.layer(tensors, f"{block}.attn.{projection}", inner, dim, bias=False)
        draw.layer(tensors, f"{block}.attn.o", dim, inner, bias=False)
        draw.norm(tensors, f"{block}.norm2.weight", dim)
        draw.layer(tensors, f"{block}.ffn.gate.0", sizes.text_d_ff, dim, bias=False)
        draw.layer(tensors, f"{block}.ffn.fc1", sizes.text_d_ff, dim, bias=False)
        draw.layer(tensors, f"{block}.ffn.fc2", dim, sizes.text_d_ff, bias=False)
        tensors[f"{block}.pos_embedding.embedding.weight"] = draw.normal(32, sizes.text_heads, std=0.5)
    draw.norm(tensors, "norm.weight", dim)
    return tensors


def make_vae(sizes: TinySizes = DEFAULT_SIZES, seed: int = 0) -> Tensors:
    """Return a Wan2.1 VAE (encoder and decoder) under its native names, float32."""
    draw, tensors = _Draw(seed + 2), Tensors()
    widths = [sizes.vae_dim * factor for factor in (1, 1, 2, 4, 4)]
    draw.layer(tensors, "encoder.conv1", widths[0], 3, 3, 3, 3)
    layer = 0
    for stage, (width_in, width_out) in enumerate(itertools.pairwise(widths)):
        for width in (width_in, width_out):
            _add_res_block(draw, tensors, f"encoder.downsamples.{layer}", width, width_out)
            layer += 1
        if stage < 3:
            draw.layer(tensors, f"encoder.downsamples.{layer}.resample.1", width_out, width_out, 3, 3)
            if stage > 0:
                draw.layer(tensors, f"encoder.downsamples.{layer}.time_conv", width_out, width_out, 3, 1, 1)
            layer += 1
    _add_middle(draw, tensors, "encoder.middle", widths[-1])
    draw.norm(tensors, "encoder.head.0.gamma", widths[-1], 1, 1, 1)
    draw.layer(tensors, "encoder.head.2", 32, widths[-1], 3, 3, 3)
    draw.layer(tensors, "conv1", 32, 32, 1, 1, 1)
    draw.layer(tensors, "conv2", 16, 16, 1, 1, 1)

    widths = [sizes.vae_dim * factor for factor in (4, 4, 4, 2, 1)]
    draw.layer(tensors, "decoder.conv1", widths[0], 16, 3, 3, 3)
    _add_middle(draw, tensors, "decoder.middle", widths[0])
    layer = 0
    for stage, (width_in, width_out) in enumerate(itertools.pairwise(widths)):
        first = width_in if stage == 0 else width_in // 2
        for width in (first, width_out, width_out):
            _add_res_block(draw, tensors, f"decoder.upsamples.{layer}", width, width_out)
            layer += 1
        if stage < 3:
            draw.layer(tensors, f"decoder.upsamples.{layer}.resample.1", width_out // 2, width_out, 3, 3)
            if stage < 2:
                draw.layer(tensors, f"decoder.upsamples.{layer}.time_conv", width_out * 2, width_out, 3, 1, 1)
            layer += 1
    draw.norm(tensors, "decoder.head.0.gamma", widths[-1], 1, 1, 1)
    draw.layer(tensors, "decoder.head.2", 3, widths[-1], 3, 3, 3)
    return tensors


def _add_res_block(draw: _Draw, tensors: Tensors, name: str, width_in: int, width_out: int) -> None:
    draw.norm(tensors, f"{name}.residual.0.gamma", width_in, 1, 1, 1)
    draw.layer(tensors, f"{name}.residual.2", width_out, width_in, 3, 3, 3)
    draw.norm(tensors, f"{name}.residual.3.gamma", width_out, 1, 1, 1)
    draw.layer(tensors, f"{name}.residual.6", width_out, width_out, 3, 3, 3)
    if width_in != width_out:
        draw.layer(tensors, f"{name}.shortcut", width_out, width_in, 1, 1, 1)


def _add_middle(draw: _Draw, tensors: Tensors, name: str, width: int) -> None:
    _add_res_block(draw, tensors, f"{name}.0", width, width)
    draw.norm(tensors, f"{name}.1.norm.gamma", width, 1, 1)
    draw.layer(tensors, f"{name}.1.to_qkv", width * 3, width, 1, 1)
    draw.layer(tensors, f"{name}.1.proj", width, width, 1, 1)
    _add_res_block(draw, tensors, f"{name}.2", width, width)


def quantize(weight: torch.Tensor, precision: str, *, per_channel: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an 8-bit weight and its float32 scale ([N, 1], or a scalar): weight = stored * scale."""
    limit = 127.0 if precision == "int8" else torch.finfo(torch.float8_e4m3fn).max
    peak = weight.abs().amax(dim=1, keepdim=True) if per_channel else weight.abs().max()
    scale = peak.clamp(min=1e-5).float() / limit
    scaled = weight / scale
    stored = scaled.round().to(torch.int8) if precision == "int8" else scaled.to(torch.float8_e4m3fn)
    return stored, scale


def is_block_linear(name: str, tensor: torch.Tensor) -> bool:
    """Say whether upstream quantizes this tensor: matrices of the blocks' attention and feed-forward layers."""
    is_layer = any(part in name for part in (".self_attn.", ".cross_attn.", ".attn.", ".ffn."))
    return name.startswith("blocks.") and is_layer and name.endswith(".weight") and tensor.ndim == 2


def quantize_model(tensors: Tensors, precision: str, other_dtype: torch.dtype) -> Tensors:
    """Quantize the blocks' linears per output channel (`.weight_scale` [N, 1]); cast the rest to `other_dtype`.

    Precision bf16 casts everything to bfloat16.
    """
    if precision == "bf16":
        return {name: tensor.bfloat16() for name, tensor in tensors.items()}
    result = Tensors()
    for name, tensor in tensors.items():
        if is_block_linear(name, tensor):
            result[name], result[f"{name}_scale"] = quantize(tensor, precision)
        else:
            result[name] = tensor.to(other_dtype)
    return result


def quantize_for_comfy(tensors: Tensors, is_linear: Callable[[str, torch.Tensor], bool], marker_size: int) -> Tensors:
    """Quantize to ComfyUI's scaled FP8: a scalar `.scale_weight` a linear and a `scaled_fp8` marker tensor."""
    result = Tensors(scaled_fp8=torch.zeros(marker_size, dtype=torch.float8_e4m3fn))
    for name, tensor in tensors.items():
        if is_linear(name, tensor):
            stored, scale = quantize(tensor, "fp8", per_channel=False)
            result[name], result[name.removesuffix("weight") + "scale_weight"] = stored, scale
        else:
            result[name] = tensor.to(torch.float16)
    return result


# Parts of a text encoder's tensor names: Wan's, and those of transformers and of ComfyUI's files.
_HF_PARTS = {
    "token_embedding": "shared",
    "blocks": "encoder.block",
    "norm1": "layer.0.layer_norm",
    "norm2": "layer.1.layer_norm",
    "attn": "layer.0.SelfAttention",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
    "norm": "encoder.final_layer_norm",
}
_WAN_PART = re.compile(rf"\b({'|'.join(map(re.escape, _HF_PARTS))})\b(?=\.)")


def to_hf_names(tensors: Tensors) -> Tensors:
    """Rename a text encoder from Wan's names to those of transformers."""
    return {_WAN_PART.sub(lambda part: _HF_PARTS[part[0]], name): tensor for name, tensor in tensors.items()}


# Sentences the tokenizer learns its pieces from.
_CORPUS = """
Two anthropomorphic cats in comfy boxing gear and bright gloves fight intensely on a spotlighted stage.
A cat walks on the grass, realistic style, soft morning light, shallow depth of field.
A red fox runs through fresh snow at dawn while the camera follows from the side.
A paper boat floats down a rainy street, close-up, cinematic lighting, 4k, highly detailed.
An old fisherman repairs his net on a wooden pier; waves roll in slowly behind him.
Time lapse of clouds over a mountain lake, the sun sets and the first stars appear.
A robot painter mixes blue and yellow colours, then paints a sunflower on the wall.
A woman with a straw hat rides a bicycle along the canal in the evening.
Macro shot: a drop of water falls onto a green leaf and breaks into small beads.
The camera moves forward through a quiet library filled with warm golden light.
A city street at night, neon signs reflect in the puddles, people with umbrellas pass by.
Children fly kites on a windy beach, wide shot, pastel colours, film grain.
""".strip().splitlines()


def train_tokenizer(vocab_size: int) -> bytes:
    """Train a SentencePiece unigram model (pad 0, end 1, unknown 2, then bytes) and return its file's bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_CORPUS),
        model_writer=model,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        model_type="unigram",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        unk_piece="<unk>",
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def write_tokenizer(folder: Path, spiece_model: bytes) -> None:
    """Write spiece.model, tokenizer.json and the two config files that transformers reads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(spiece_model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=spiece_model)
    pieces = [[processor.id_to_piece(i), processor.get_score(i)] for i in range(processor.get_piece_size())]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    normalizers = [  # What SentencePiece's nmt_nfkc does to ordinary text.
        {"type": "NFKC"},
        {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
        {"type": "Strip", "strip_left": True, "strip_right": True},
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": token, **plain} for i, (token, _) in enumerate(pieces[:3])],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": metaspace,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, end],
            "pair": [first, end, second, end],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, metaspace]},
        "model": {"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": True},
    }
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {**names, "tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 512}
    _write_json(folder / "tokenizer.json", tokenizer)
    _write_json(folder / "special_tokens_map.json", names)
    _write_json(folder / "tokenizer_config.json", config)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def write_blocks(folder: Path, tensors: Tensors) -> None:
    """Write block_<i>.safetensors a block and non_block.safetensors for the rest."""
    groups: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        group = f"block_{name.split('.')[1]}" if name.startswith("blocks.") else "non_block"
        groups.setdefault(group, Tensors())[name] = tensor
    for group, members in groups.items():
        _save(members, folder / f"{group}.safetensors")


def write_transformer_folder(folder: Path, tensors: Tensors, precision: str) -> None:
    """Write the transformer as the model repository does in `precision`."""
    if precision == "bf16":
        write_single_file(folder / "distill_model.safetensors", tensors, precision)
    else:
        write_blocks(folder, quantize_model(tensors, precision, torch.float32))


def write_single_file(path: Path, tensors: Tensors, precision: str, *, prefix: str = "") -> Path:
    """Write the transformer as one file with LightX2V's `.weight_scale` [N, 1] where it is 8-bit."""
    stored = quantize_model(tensors, precision, torch.bfloat16)
    return _save({f"{prefix}{name}": tensor for name, tensor in stored.items()}, path)


def write_comfy_transformer(path: Path, tensors: Tensors, *, prefix: str = "", has_marker: bool = True) -> Path:
    """Write the transformer as ComfyUI's scaled FP8, optionally without the `scaled_fp8` marker."""
    stored = quantize_for_comfy(tensors, is_block_linear, marker_size=2)
    if not has_marker:
        del stored["scaled_fp8"]
    return _save({f"{prefix}{name}": tensor for name, tensor in stored.items()}, path)


def write_text_encoder(path: Path, tensors: Tensors, precision: str) -> Path:
    """Write the text encoder under Wan's names, as `.pth` or `.safetensors` by the suffix."""
    return _save(quantize_model(tensors, precision, torch.bfloat16), path)


def write_comfy_text_encoder(path: Path, tensors: Tensors, spiece_model: bytes, *, scaled_fp8: bool = False) -> Path:
    """Write the text encoder as ComfyUI's umt5_xxl_fp16 or umt5_xxl_fp8_e4m3fn_scaled file."""
    if scaled_fp8:
        linears = {id(tensor) for name, tensor in tensors.items() if is_block_linear(name, tensor)}
        stored = quantize_for_comfy(to_hf_names(tensors), lambda _, tensor: id(tensor) in linears, marker_size=0)
    else:
        stored = {name: tensor.half() for name, tensor in to_hf_names(tensors).items()}
    stored["spiece_model"] = torch.frombuffer(bytearray(spiece_model), dtype=torch.uint8)
    return _save(stored, path)


def write_vae(path: Path, tensors: Tensors, dtype: torch.dtype = torch.float32) -> Path:
    """Write the VAE, as `.pth` or `.safetensors` by the suffix."""
    return _save({name: tensor.to(dtype) for name, tensor in tensors.items()}, path)


def _save(tensors: Tensors, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)
    return path


def write_checkpoint(
    folder: Path,
    *,
    sizes: TinySizes = DEFAULT_SIZES,
    seed: int = 0,
    precisions: Iterable[str] = tuple(PRECISION_FOLDERS),
) -> Path:
    """Write the layout of lightx2v/Wan2.1-T2V-14B-StepDistill-CfgDistill-Lightx2v into `folder` and return it."""
    transformer, text_encoder, vae = (make(sizes, seed) for make in (make_transformer, make_text_encoder, make_vae))
    spiece_model = train_tokenizer(sizes.vocab_size)
    for precision in precisions:
        target = folder / PRECISION_FOLDERS[precision]
        write_transformer_folder(target, transformer, precision)
        write_text_encoder(target / TEXT_ENCODER_NAME.format(precision=precision), text_encoder, precision)
        write_vae(target / VAE_NAME, vae)
        write_tokenizer(target / TOKENIZER_FOLDER, spiece_model)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a small random checkpoint in the real layouts.")
    parser.add_argument("folder", type=Path, metavar="OUT", help="folder to write, created if needed")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights (default 0)")
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=tuple(PRECISION_FOLDERS),
        default=tuple(PRECISION_FOLDERS),
        help="which sub-folders to write (default: all)",
    )
    arguments = parser.parse_args()
    write_checkpoint(arguments.folder, seed=arguments.seed, precisions=arguments.precision)
    print(f"Wrote a tiny checkpoint to {arguments.folder}")


if __name__ == "__main__":
    main()
