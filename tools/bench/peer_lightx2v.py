"""LightX2V driven directly: its own configuration file, loader, offload and scheduler, nothing of this pack's engines.

Found through LIGHTX2V_DIR. What its configuration asks for and is not installed (kernels of
sgl-kernel, flash-attention, flashinfer) is replaced by what is; the row says which. Options: attention, offload,
compile, as_shipped (its offload without the mend below).
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import torch

from . import pack
from .harness import Bench, commit_of
from .peer import Clock, Peer, make_image, make_noise, make_text

_RECIPES = Path("configs") / "distill"
# The recipe for a kind of model in LightX2V's repository, and the class of models that its runner is registered for.
RECIPES = {
    "t2v": (_RECIPES / "wan21" / "wan_t2v_distill_fp8_4step_cfg.json", "wan2.1_distill"),
    "i2v": (_RECIPES / "wan21" / "wan_i2v_distill_fp8_4step_cfg.json", "wan2.1_distill"),
    "i2v-a14b": (_RECIPES / "wan22" / "wan_moe_i2v_distill_quant.json", "wan2.2_moe_distill"),
}


def prepare(peer: Peer, bench: Bench) -> None:
    """Import LightX2V's Wan components."""
    pack.bootstrap.import_lightx2v()


@torch.inference_mode()
def run(peer: Peer, bench: Bench, clock: Clock) -> torch.Tensor:
    """Load and sample; return the normalized latents [16, T, h, w]."""
    from lightx2v.models.networks.wan.distill_model import WanDistillModel
    from lightx2v.models.schedulers.wan.step_distill.scheduler import Wan22StepDistillScheduler, WanStepDistillScheduler

    weights = bench.weights(peer.precision, peer.kind)
    config = configure(peer, bench, weights)
    clock.loading()
    home = torch.device("cpu") if config.get("cpu_offload") else bench.device
    model = WanDistillModel(str(weights), config, home)
    scheduler = (Wan22StepDistillScheduler if "boundary_step_index" in config else WanStepDistillScheduler)(config)
    model.set_scheduler(scheduler)
    if hasattr(model.transformer_infer, "offload_manager") and not peer.options.get("as_shipped"):
        # As shipped it computes on a stream of its own and SageAttention on the default one: latents of NaN.
        model.transformer_infer.offload_manager.compute_stream = torch.cuda.default_stream(bench.device)
    scheduler.prepare(0, list(bench.shape))
    scheduler.latents = make_noise(bench).to(bench.device)
    inputs = make_inputs(peer, bench)
    clock.loaded()
    for index in range(bench.options.steps):
        scheduler.step_pre(index)
        model.infer(inputs)
        scheduler.step_post()
        clock.step()
    version = commit_of(Path(os.environ["LIGHTX2V_DIR"]), "LIGHTX2V_COMMIT")
    clock.write(attention=config["self_attn_1_type"], compute=config["dit_quant_scheme"], version=version)
    latents: torch.Tensor = scheduler.latents.float()
    return latents.cpu()


def make_inputs(peer: Peer, bench: Bench) -> dict[str, Any]:
    """Return text and image as its runner hands them to the model."""
    image, encoded = make_image(bench, peer.kind), None
    if image is not None:
        rows = None if image.rows is None else image.rows.bfloat16().to(bench.device)
        encoded = {"clip_encoder_out": rows, "vae_encoder_out": image.channels.bfloat16().to(bench.device)}
    context = make_text().bfloat16().to(bench.device)[None]
    return {"text_encoder_output": {"context": context}, "image_encoder_output": encoded}


def configure(peer: Peer, bench: Bench, weights: Path) -> dict[str, Any]:
    """Return LightX2V's configuration: its defaults, its recipe, the model's sizes, then the peer's choices."""
    from lightx2v.utils.set_config import get_default_config

    file, model_class = RECIPES[peer.kind]
    recipe = json.loads((Path(os.environ["LIGHTX2V_DIR"]) / file).read_text())
    recipe = {name: value for name, value in recipe.items() if not name.endswith("quantized_ckpt")}
    sizes = pack.resolve_transformer(weights).format.architecture
    steps = bench.options.steps
    attention = peer.options.get("attention", "flash_attn3" if has("flash_attn_interface") else "torch_sdpa")
    config = {
        **get_default_config(),
        **recipe,
        "task": "i2v" if sizes.takes_image else "t2v",
        "model_cls": model_class,
        **{name: getattr(sizes, name) for name in ("dim", "num_heads", "num_layers", "in_dim", "out_dim", "freq_dim")},
        "use_image_encoder": bool(sizes.image_dim),
        "infer_steps": steps,
        "denoising_step_list": [1000 * (steps - index) // steps for index in range(steps)],
        "sample_guide_scale": 1.0,
        "target_video_length": bench.options.frames,
        "self_attn_1_type": attention,
        "cross_attn_1_type": attention,
        "cross_attn_2_type": attention,
    }
    if not has("flashinfer"):
        config["rope_type"] = "torch_real_rope" if peer.options.get("compile") else "torch_complex_rope"
    if not has("sgl_kernel"):
        config["dit_quant_scheme"] = "fp8-triton"
        config["rms_norm_type"] = "torch_native"
    if peer.precision == "bf16":
        config |= {"dit_quantized": False, "dit_quant_scheme": "Default"}
    if bench.device.type == "cpu":
        # Its Triton kernels are for GPUs; LightX2V itself has no CPU, so that this is for tests.
        config |= {"modulate_type": "torch", "layer_norm_type": "torch"}
    if peer.options.get("compile"):
        config["use_compile"] = True
    if peer.options.get("offload"):
        config |= {"cpu_offload": True, "offload_granularity": peer.options["offload"]}
    return config


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
