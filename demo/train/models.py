"""The transformer and the text encoder, small: how they are built, run and stored.

diffusers' WanTransformer3DModel and transformers' UMT5EncoderModel with every feature of the real ones: heads 128
wide, text zero-padded to 512 rows, relative positions in every layer of the text encoder. Only widths, depths and
the vocabulary are smaller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from ...engine.constants import LATENT_CHANNELS, NUM_TRAIN_TIMESTEPS, TEXT_ROWS
from . import captions
from .training import autocast


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the transformer and the text encoder. The defaults fit a repository: 8 MB in bfloat16."""

    dim: int = 256
    ffn_dim: int = 384
    num_layers: int = 5
    text_dim: int = 128
    text_ffn_dim: int = 192
    text_layers: int = 2


@dataclass(frozen=True, kw_only=True)
class Generator:
    """What turns a caption and noise into latents."""

    transformer: Any
    text_encoder: Any

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return text rows [B, MAX_TOKENS, text_dim], zero after the end token, of token ids [B, MAX_TOKENS]."""
        mask = (tokens > 0).long()
        with autocast(self.device):
            rows = self.text_encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        return rows * mask[..., None]

    def predict_flow(
        self, latents: torch.Tensor, sigmas: torch.Tensor, rows: torch.Tensor, given: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Predict noise minus data.

        Args:
            latents: [B, 16, T, h, w] normalized, a share `sigmas` [B] of it noise.
            sigmas: in [0, 1].
            rows: [B, MAX_TOKENS, text_dim].
            given: [B, 20, T, h, w] of image.py, of which a transformer from text alone has no channels.

        Returns:
            [B, 16, T, h, w] float32.
        """
        if given is not None:
            latents = torch.cat([latents, given], dim=1)
        with autocast(self.device):
            return self.transformer(latents, sigmas * NUM_TRAIN_TIMESTEPS, rows, return_dict=False)[0].float()


class FoldedPadding:
    """Attention to zero-padded text that computes its padding once.

    Wan attends to 512 rows of text, nearly all of them equal: the zeros after the caption. 489 equal keys count as
    much as one whose score is higher by log 489. So of MAX_TOKENS rows, the last stands for itself and for all that
    are left out: the same result as with 512 rows, for a third less work.
    """

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, *_: Any
    ) -> torch.Tensor:
        query = attn.norm_q(attn.to_q(hidden_states))
        key = attn.norm_k(attn.to_k(encoder_hidden_states))
        value = attn.to_v(encoder_hidden_states)
        query, key, value = (
            part.unflatten(2, (attn.heads, -1)).transpose(1, 2).to(value.dtype) for part in (query, key, value)
        )
        scores = torch.zeros(key.shape[2], dtype=value.dtype, device=value.device)
        scores[-1:].fill_(math.log(TEXT_ROWS - key.shape[2] + 1))  # an assignment would wait for the GPU
        attended = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=scores.expand(query.shape[2], -1)
        )
        return attn.to_out[0](attended.transpose(1, 2).flatten(2))


def build_generator(sizes: Sizes, device: torch.device, in_channels: int = LATENT_CHANNELS) -> Generator:
    """Return both networks, untrained; the text encoder has room for the vocabulary of captions.py."""
    from diffusers import WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    transformer = WanTransformer3DModel(
        num_attention_heads=max(1, sizes.dim // 128),
        attention_head_dim=min(sizes.dim, 128),
        in_channels=in_channels,
        out_channels=LATENT_CHANNELS,
        text_dim=sizes.text_dim,
        freq_dim=256,
        ffn_dim=sizes.ffn_dim,
        num_layers=sizes.num_layers,
    )
    # An untrained network that predicts 0 is a better start than one that predicts noise.
    torch.nn.init.zeros_(transformer.proj_out.weight)
    torch.nn.init.zeros_(transformer.proj_out.bias)
    for block in transformer.blocks:
        block.attn2.set_processor(FoldedPadding())
    text_encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=captions.VOCAB_SIZE,
            d_model=sizes.text_dim,
            d_kv=sizes.text_dim // 4,
            d_ff=sizes.text_ffn_dim,
            num_layers=sizes.text_layers,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            attn_implementation="eager",
        )
    )
    return Generator(transformer=transformer.to(device), text_encoder=text_encoder.to(device))


def save_modules(path: Path, **modules: torch.nn.Module) -> None:
    """Store the weights of modules in one file, in bfloat16: what the checkpoint will hold."""
    tensors = {
        f"{name}/{key}": tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
        if not (name == "text_encoder" and key == "encoder.embed_tokens.weight")  # the same as shared.weight
    }
    save_tensors(path, tensors)


def save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file that is whole whenever it is read or left behind; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished)
    unfinished.replace(path)


def load_modules(path: Path, **modules: torch.nn.Module) -> None:
    """Read weights that `save_modules` stored.

    Raises:
        ValueError: the file has other tensors than the modules.
    """
    tensors = load_file(path)
    for name, module in modules.items():
        state = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
        missing, unexpected = module.load_state_dict(state, strict=False)
        missing = [key for key in missing if key != "encoder.embed_tokens.weight"]
        if missing or unexpected:
            raise ValueError(f"{path} does not fit {name}: missing {missing[:3]}, unexpected {unexpected[:3]}.")
