"""Wan2.1's transformer by diffusers in float32, filled through diffusers' own conversion of Wan files."""

from pathlib import Path

import torch
from safetensors.torch import load_file


def dequantized(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a folder or file in float32, scales applied, under native names."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    stored = {name: tensor for file in files for name, tensor in load_file(file).items()}
    scales = {name: tensor.float() for name, tensor in stored.items() if name.endswith("weight_scale")}
    plain = {name: tensor.float() for name, tensor in stored.items() if name not in scales}
    for name, scale in scales.items():
        plain[name.removesuffix("_scale")] *= scale
    return plain


def reference_flow(weights, latents, timestep, context):
    """Return the flow of latents [16, T, h, w] at a model time, for context [rows, text_dim]."""
    from diffusers import WanTransformer3DModel
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    dim, text_dim = weights["text_embedding.0.weight"].shape
    model = WanTransformer3DModel(
        num_attention_heads=dim // 128,
        attention_head_dim=128,
        text_dim=text_dim,
        freq_dim=weights["time_embedding.0.weight"].shape[1],
        ffn_dim=len(weights["blocks.0.ffn.0.weight"]),
        num_layers=sum(name.endswith(".norm3.weight") for name in weights),
    )
    model.load_state_dict(convert_wan_transformer_to_diffusers(dict(weights)))
    with torch.no_grad():
        return model(latents[None].float(), torch.tensor([timestep]), context[None].float(), return_dict=False)[0][0]
