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


def reference_flow(weights, latents, timestep, context, image=None):
    """Return the flow of latents [channels, T, h, w] at a model time, for context [rows, text_dim].

    Args: image: [tokens, image_dim], for weights with an image branch.
    """
    from diffusers import WanTransformer3DModel
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    dim, text_dim = weights["text_embedding.0.weight"].shape
    image_dim = len(weights["img_emb.proj.0.weight"]) if "img_emb.proj.0.weight" in weights else None
    positions = weights.get("img_emb.emb_pos")
    model = WanTransformer3DModel(
        num_attention_heads=dim // 128,
        attention_head_dim=128,
        text_dim=text_dim,
        freq_dim=weights["time_embedding.0.weight"].shape[1],
        ffn_dim=len(weights["blocks.0.ffn.0.weight"]),
        num_layers=sum(name.endswith(".norm3.weight") for name in weights),
        in_channels=weights["patch_embedding.weight"].shape[1],
        out_channels=16,
        image_dim=image_dim,
        added_kv_proj_dim=dim if image_dim else None,
        pos_embed_seq_len=None if positions is None else positions.shape[1],
    )
    renamed = convert_wan_transformer_to_diffusers({name: t for name, t in weights.items() if t is not positions})
    if positions is not None:  # the conversion does not know it
        renamed["condition_embedder.image_embedder.pos_embed"] = positions
    model.load_state_dict(renamed)
    with torch.no_grad():
        inputs = (latents[None].float(), torch.tensor([timestep]), context[None].float())
        if image is not None:  # first and last frame are a batch of two until they have their positions
            image = image.float().view(1 if positions is None else 2, -1, image.shape[-1])
        return model(*inputs, encoder_hidden_states_image=image, return_dict=False)[0][0]
