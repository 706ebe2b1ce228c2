"""LightX2V driven directly: its own configuration file, loader, offload and scheduler, nothing of this pack's engines.

Found through LIGHTX2V_DIR or as an installed package. What its configuration asks for and is not installed (kernels of
sgl-kernel, flash-attention, flashinfer) is replaced by what is; the row says which. Options: attention, offload,
compile, scheme (quantised matmul).
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import torch

from ...engine.adapters.lightx2v import bootstrap
from ...engine.checkpoints.files import resolve_transformer
from .full_size import ensure_weights
from .peer_clock import Clock, Peer, Task

# The recipe for this model in LightX2V's repository.
CONFIG = Path("configs") / "distill" / "wan21" / "wan_t2v_distill_fp8_4step_cfg.json"
# Used where there is only the package, without its repository.
RECIPE = {
    "infer_steps": 4,
    "text_len": 512,
    "sample_shift": 5,
    "enable_cfg": False,
    "denoising_step_list": [1000, 750, 500, 250],
    "self_attn_1_type": "flash_attn3",
    "cross_attn_1_type": "flash_attn3",
    "dit_quantized": True,
    "dit_quant_scheme": "fp8-sgl",
}


def prepare(peer: Peer, task: Task) -> None:
    """Import LightX2V's Wan components."""
    bootstrap.import_lightx2v()


@torch.inference_mode()
def run(peer: Peer, task: Task, clock: Clock) -> torch.Tensor:
    """Load and sample; return the normalised latents [16, T, h, w]."""
    from lightx2v.models.networks.wan.distill_model import WanDistillModel
    from lightx2v.models.schedulers.wan.step_distill.scheduler import WanStepDistillScheduler

    weights = ensure_weights(task.folder, task.arguments, peer.precision, task.device)
    config = configure(peer, task, weights)
    clock.loading()
    home = torch.device("cpu") if config.get("cpu_offload") else task.device
    model = WanDistillModel(str(weights), config, home)
    scheduler = WanStepDistillScheduler(config)
    model.set_scheduler(scheduler)
    if hasattr(model.transformer_infer, "offload_manager"):
        # As shipped it computes on a stream of its own and SageAttention on the default one: latents of NaN.
        model.transformer_infer.offload_manager.compute_stream = torch.cuda.default_stream(task.device)
    scheduler.prepare(0, list(task.shape))
    scheduler.latents = task.noise().to(task.device)
    context = task.context().bfloat16().to(task.device)[None]
    clock.loaded()
    for index in range(task.steps):
        scheduler.step_pre(index)
        model.infer({"text_encoder_output": {"context": context}, "image_encoder_output": None})
        scheduler.step_post()
        clock.step()
    clock.write(attention=config["self_attn_1_type"], compute=config.get("dit_quant_scheme", "bf16"))
    latents: torch.Tensor = scheduler.latents.float()
    return latents.cpu()


def configure(peer: Peer, task: Task, weights: Path) -> dict[str, Any]:
    """Return LightX2V's configuration: its defaults, its recipe, the model's sizes, then the peer's choices."""
    from lightx2v.utils.set_config import get_default_config

    root = os.environ.get("LIGHTX2V_DIR")
    file = Path(root) / CONFIG if root else None
    recipe = json.loads(file.read_text()) if file and file.exists() else dict(RECIPE)
    recipe.pop("dit_quantized_ckpt", None)
    sizes = resolve_transformer(weights).format.architecture
    attention = peer.options.get("attention", "flash_attn3" if has("flash_attn_interface") else "torch_sdpa")
    config = {
        **get_default_config(),
        **recipe,
        "task": "t2v",
        "model_cls": "wan2.1_distill",
        **{name: getattr(sizes, name) for name in ("dim", "num_heads", "num_layers", "in_dim", "out_dim", "freq_dim")},
        "use_image_encoder": False,
        "infer_steps": task.steps,
        "denoising_step_list": [1000 * (task.steps - index) // task.steps for index in range(task.steps)],
        "sample_guide_scale": 1.0,
        "target_video_length": task.arguments.frames,
        "self_attn_1_type": attention,
        "cross_attn_1_type": attention,
    }
    if not has("flashinfer"):
        config["rope_type"] = "torch_real_rope" if peer.options.get("compile") else "torch_complex_rope"
    if not has("sgl_kernel"):
        config["dit_quant_scheme"] = peer.options.get("scheme", "fp8-triton")
        config["rms_norm_type"] = "torch_native"
    if peer.precision == "bf16":
        del config["dit_quantized"], config["dit_quant_scheme"]
    if peer.options.get("compile"):
        config["use_compile"] = True
    if peer.options.get("offload"):
        config |= {"cpu_offload": True, "offload_granularity": peer.options["offload"]}
    return config


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
