"""Native names, and the files of a checkpoint: what training made, as the real model repository stores it.

The writers of tools/make_tiny_checkpoint.py make the files; here the networks' tensors get Wan's names, and a finished
checkpoint becomes networks again that can be trained further.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ...tools import make_tiny_checkpoint as files
from .models import Generator

EXPERTS = ("high", "low")

# diffusers' or transformers' name -> Wan's, the first that fits; within blocks the rest of the name is replaced too.
_TRANSFORMER_NAMES = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "proj_out": "head.head",
}
_BLOCK_NAMES = {
    "scale_shift_table": "modulation",
    "attn1.": "self_attn.",
    "attn2.": "cross_attn.",
    "to_out.0": "o",
    "to_": "",
    "norm2": "norm3",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
_TEXT_NAMES = {
    "shared": "token_embedding",
    "encoder.final_layer_norm": "norm",
    "encoder.block.": "blocks.",
    "layer.0.layer_norm": "norm1",
    "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
    "layer.0.SelfAttention": "attn",
    "layer.1.layer_norm": "norm2",
    "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
    "layer.1.DenseReluDense.wi_1": "ffn.fc1",
    "layer.1.DenseReluDense.wo": "ffn.fc2",
}
_VAE_NAMES = {
    "post_quant_conv.": "conv2.",
    "quant_conv.": "conv1.",
    "conv_in.": "conv1.",
    "mid_block.resnets.0.": "middle.0.",
    "mid_block.attentions.0.": "middle.1.",
    "mid_block.resnets.1.": "middle.2.",
    "norm_out.": "head.0.",
    "conv_out.": "head.2.",
    "down_blocks.": "downsamples.",
}
_RESIDUAL_NAMES = {
    "norm1.": "residual.0.",
    "conv1.": "residual.2.",
    "norm2.": "residual.3.",
    "conv2.": "residual.6.",
    "conv_shortcut.": "shortcut.",
}
# Layers of a decoder stage: three residual blocks and, but for the last stage, the one that doubles the size.
_LAYERS_PER_STAGE = 4


def export_checkpoint(folder: Path, generator: Generator, vae: Any, spiece_model: bytes) -> Path:
    """Write a checkpoint: distill_fp8/ (a file a block) and distill_models/ (one BF16 file).

    Text encoder, VAE and tokenizer, which the real repository has in every folder, are in distill_models/ only.
    """
    transformer = name_transformer(generator.transformer)
    for precision in ("fp8", "bf16"):
        files.write_transformer_folder(folder / files.PRECISION_FOLDERS[precision], transformer, precision)
    home = folder / files.PRECISION_FOLDERS["bf16"]
    text_encoder = name_text_encoder(generator.text_encoder)
    files.write_text_encoder(home / files.TEXT_ENCODER_NAME.format(precision="bf16"), text_encoder, "bf16")
    files.write_vae(home / files.VAE_NAME, name_vae(vae), torch.bfloat16)
    files.write_tokenizer(home / files.TOKENIZER_FOLDER, spiece_model)
    return folder


def export_experts(folder: Path, experts: Sequence[Generator]) -> Path:
    """Write the experts of image to video in FP8, in the folders of Wan2.2's distilled repositories, high noise first.

    Text encoder, VAE and tokenizer are those of the text-to-video checkpoint and are not written again.
    """
    for name, expert in zip(EXPERTS, experts, strict=True):
        home = folder / files.PRECISION_FOLDERS["fp8"] / f"{name}_noise_model"
        files.write_transformer_folder(home, name_transformer(expert.transformer), "fp8")
    return folder


def write_precision(folder: Path, precision: str) -> None:
    """Add the transformer in another precision to a checkpoint, from its BF16 file."""
    tensors = load_file(folder / files.PRECISION_FOLDERS["bf16"] / "distill_model.safetensors")
    floats = {name: tensor.float() for name, tensor in tensors.items()}
    files.write_transformer_folder(folder / files.PRECISION_FOLDERS[precision], floats, precision)


def load_checkpoint(folder: Path, generator: Generator, vae: Any) -> bytes:
    """Load what `export_checkpoint` wrote, of its BF16 part, into networks; returns the tokenizer's file."""
    home = folder / files.PRECISION_FOLDERS["bf16"]
    text_encoder = torch.load(home / files.TEXT_ENCODER_NAME.format(precision="bf16"), weights_only=True)
    _load(generator.transformer, load_file(home / "distill_model.safetensors"), transformer_name)
    _load(generator.text_encoder, text_encoder, text_encoder_name)
    _load(vae, torch.load(home / files.VAE_NAME, weights_only=True), vae_name)
    return (home / files.TOKENIZER_FOLDER / "spiece.model").read_bytes()


def name_transformer(transformer: Any) -> files.Tensors:
    """Return the tensors of diffusers' transformer under Wan's names, float32."""
    return _named(transformer, transformer_name)


def name_text_encoder(text_encoder: Any) -> files.Tensors:
    """Return the tensors of transformers' UMT5 encoder under Wan's names, float32."""
    return _named(text_encoder, text_encoder_name)


def name_vae(vae: Any) -> files.Tensors:
    """Return the tensors of diffusers' autoencoder under Wan2.1's names, float32."""
    return _named(vae, vae_name)


def transformer_name(name: str) -> str:
    """Return Wan's name of a tensor or a layer of diffusers' transformer."""
    if name.startswith("blocks."):
        _, index, rest = name.split(".", 2)
        return f"blocks.{index}.{_replace(rest, _BLOCK_NAMES)}"
    if name == "scale_shift_table":
        return "head.modulation"
    return _replace(name, _TRANSFORMER_NAMES)


def text_encoder_name(name: str) -> str:
    """Return Wan's name of a tensor of transformers' UMT5 encoder."""
    return _replace(name.replace("encoder.embed_tokens", "shared"), _TEXT_NAMES)  # one tensor with two names


def vae_name(name: str) -> str:
    """Return Wan2.1's name of a tensor of diffusers' autoencoder."""
    part, _, rest = name.partition(".")
    if part not in ("encoder", "decoder"):
        return _replace(name, _VAE_NAMES)
    if rest.startswith("up_blocks."):
        _, stage, kind, index, rest = rest.split(".", 4)
        layer = int(stage) * _LAYERS_PER_STAGE + (int(index) if kind == "resnets" else _LAYERS_PER_STAGE - 1)
        rest = f"upsamples.{layer}.{rest}"
    is_block = rest.startswith(("upsamples.", "down_blocks.", "mid_block.resnets."))
    rest = _replace(rest, _VAE_NAMES)
    return f"{part}.{_replace(rest, _RESIDUAL_NAMES) if is_block else rest}"


def _named(module: torch.nn.Module, rename: Callable[[str], str]) -> files.Tensors:
    """Return the weights as the checkpoint will hold them: bfloat16 values, in float32 for the writers."""
    state = module.state_dict()
    return {rename(name): tensor.detach().cpu().bfloat16().float() for name, tensor in state.items()}


def _load(module: torch.nn.Module, stored: Mapping[str, torch.Tensor], rename: Callable[[str], str]) -> None:
    state = {name: stored[rename(name)] for name in module.state_dict()}
    if len(set(map(rename, state))) != len(stored):
        raise ValueError(
            f"The checkpoint has {len(stored)} tensors for {type(module).__name__}; expected {len(state)}."
        )
    module.load_state_dict(state)


def _replace(name: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        name = name.replace(old, new)
    return name
