"""diffusers' Wan transformer in BF16 with its default attention. Options: compile."""

from __future__ import annotations

import importlib

import torch

from .harness import Bench
from .peer import Clock, Peer, make_image, make_noise, make_schedule, make_text
from .weights import KINDS, TEXT_DIM, full_model, load_template


def prepare(peer: Peer, bench: Bench) -> None:
    """Import diffusers."""
    importlib.import_module("diffusers.loaders.single_file_utils")
    importlib.import_module("diffusers.models.transformers.transformer_wan")


@torch.inference_mode()
def run(peer: Peer, bench: Bench, clock: Clock) -> torch.Tensor:
    """Load and sample; return the normalized latents [16, T, h, w]."""
    model = load(peer, bench)
    if peer.options.get("compile"):
        model.compile_repeated_blocks()
    schedule = make_schedule(bench)
    context = make_text().bfloat16().to(bench.device)[None]
    latents = make_noise(bench).to(bench.device)
    image = make_image(bench, peer.kind)
    channels = [] if image is None else [image.channels.to(bench.device)]
    rows = None if image is None or image.rows is None else image.rows.bfloat16().to(bench.device)[None]
    clock.loaded()
    for index, timestep in enumerate(schedule.timesteps):
        flow = model(
            hidden_states=torch.cat([latents, *channels]).bfloat16()[None],
            timestep=torch.tensor([timestep], device=bench.device),
            encoder_hidden_states=context,
            encoder_hidden_states_image=rows,
            return_dict=False,
        )[0][0]
        latents = latents + (schedule.sigmas[index + 1] - schedule.sigmas[index]) * flow.float()
        clock.step()
    clock.write(attention="sdpa", compute="bf16", version=importlib.import_module("diffusers").__version__)
    return latents.cpu()


def load(peer: Peer, bench: Bench) -> torch.nn.Module:
    """Return the model with the full-size weights, bfloat16 but for what diffusers keeps in float32."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    arguments, sizes = bench.options, KINDS[peer.kind]
    with torch.device("meta"):
        model = WanTransformer3DModel(
            num_attention_heads=max(1, arguments.dim // 128),
            ffn_dim=arguments.ffn_dim,
            num_layers=arguments.layers,
            text_dim=TEXT_DIM,
            in_channels=sizes.get("in_dim", 16),
            image_dim=sizes.get("image_dim"),
            added_kv_proj_dim=arguments.dim if "image_dim" in sizes else None,
        )
    template = load_template(bench.folder, arguments, peer.kind)
    template = {name: tensor.to(bench.device) for name, tensor in template.items()}
    tensors = convert_wan_transformer_to_diffusers(dict(full_model(template, arguments.layers)))
    exact = tuple(WanTransformer3DModel._keep_in_fp32_modules)
    tensors = {
        name: tensor.float() if any(part in name.split(".") for part in exact) else tensor
        for name, tensor in tensors.items()
    }
    model.load_state_dict(tensors, assign=True)
    # The rotary tables are buffers that no file holds.
    model.rope = type(model.rope)(128, model.config.patch_size, model.config.rope_max_seq_len).to(bench.device)
    return model.eval().requires_grad_(False)
