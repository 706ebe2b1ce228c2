"""Tiny LoRAs for the tiny checkpoints: drawn once as pairs and differences, written as every tool of the field does."""

import json
from dataclasses import dataclass, field, replace

import torch
from safetensors.torch import save_file

from .tensors import normal

# Native name -> diffusers' name, written out by hand, of block 0 and of what is in no block.
DIFFUSERS = {
    "blocks.0.self_attn.q": "blocks.0.attn1.to_q",
    "blocks.0.self_attn.k": "blocks.0.attn1.to_k",
    "blocks.0.self_attn.v": "blocks.0.attn1.to_v",
    "blocks.0.self_attn.o": "blocks.0.attn1.to_out.0",
    "blocks.0.cross_attn.q": "blocks.0.attn2.to_q",
    "blocks.0.cross_attn.k": "blocks.0.attn2.to_k",
    "blocks.0.cross_attn.v": "blocks.0.attn2.to_v",
    "blocks.0.cross_attn.o": "blocks.0.attn2.to_out.0",
    "blocks.0.ffn.0": "blocks.0.ffn.net.0.proj",
    "blocks.0.ffn.2": "blocks.0.ffn.net.2",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
}
OUTSIDE = [name for name in DIFFUSERS if not name.startswith("blocks.")]
LAYERS = [name.removeprefix("blocks.0.") for name in DIFFUSERS if name.startswith("blocks.")]


@dataclass(frozen=True)
class Drawn:
    """What is to be added to a checkpoint's tensors."""

    pairs: dict = field(default_factory=dict)
    """Module -> (down [r, K], up [N, r])."""
    alpha: float | None = None
    full: dict = field(default_factory=dict)
    """Tensor -> what is added to it."""

    def deltas(self):
        """Return what is added to each tensor in float32."""
        found = dict(self.full)
        for module, (down, up) in self.pairs.items():
            scale = 1.0 if self.alpha is None else self.alpha / len(down)
            delta = scale * up.flatten(1).float() @ down.flatten(1).float()
            found[f"{module}.weight"] = found.get(f"{module}.weight", 0) + delta
        return found

    def only(self, start):
        """Return the pairs of modules that begin so."""
        return replace(self, pairs={name: pair for name, pair in self.pairs.items() if name.startswith(start)}, full={})


def draw(weights, rank=4, seed=0, size=0.3, alpha=None, modules=None, full=()):
    """Return pairs for the modules, each as large as `size` of its weight, and full differences of tensors.

    Args: modules: None is every linear layer, in blocks and outside.
    """
    if modules is None:
        modules = [name.removesuffix(".weight") for name, each in weights.items() if each.ndim == 2]
    pairs = {}
    for number, module in enumerate(modules):
        weight = weights[f"{module}.weight"]
        rows, columns = weight.flatten(1).shape
        down, up = (
            normal(*shape, seed=seed + 2 * number + k) for k, shape in enumerate(((rank, columns), (rows, rank)))
        )
        scale = 1.0 if alpha is None else alpha / rank
        up = up * (size * weight.norm() / (scale * up @ down).norm())
        pairs[module] = (down.bfloat16(), up.bfloat16())
    added = {}
    for number, name in enumerate(full):
        values = normal(*weights[name].shape, seed=seed + 999 + number)
        added[name] = (size * values * weights[name].norm() / values.norm()).bfloat16().float()
    return Drawn(pairs, alpha, added)


def merged(weights, *loras):
    """Return weights plus LoRAs in float32. Args: loras: (Drawn, strength)."""
    found = {name: tensor.clone().float() for name, tensor in weights.items()}
    for drawn, strength in loras:
        for name, delta in drawn.deltas().items():
            found[name] += strength * delta.view(found[name].shape)
    return found


def to_diffusers(module):
    folder, _, rest = module.partition(".")
    if folder != "blocks":
        return DIFFUSERS[module]
    index, _, inner = rest.partition(".")
    return DIFFUSERS[f"blocks.0.{inner}"].replace("blocks.0.", f"blocks.{index}.")


def native(module):
    return module


def folded(module):
    return module.replace(".", "_")


def half_folded(module):
    folder, index, inner = module.split(".", 2)
    return f"{folder}_{index}.{inner}"


# Tool -> prefix, how it spells a module, ends of the names of down and up.
CONVENTIONS = {
    "lightx2v": ("diffusion_model.", native, ".lora_down.weight", ".lora_up.weight"),
    "lightning": ("", native, ".lora_down.weight", ".lora_up.weight"),
    "kohya, musubi": ("lora_unet_", folded, ".lora_down.weight", ".lora_up.weight"),
    "videox-fun": ("lora_unet__", folded, ".lora_down.weight", ".lora_up.weight"),
    "underscores and dots": ("lora_unet_", half_folded, ".lora_down.weight", ".lora_up.weight"),
    "musubi converted, ai-toolkit, diffusion-pipe": ("diffusion_model.", native, ".lora_A.weight", ".lora_B.weight"),
    "diffusers": ("transformer.", to_diffusers, ".lora_A.weight", ".lora_B.weight"),
    "peft": ("base_model.model.", native, ".lora_A.default.weight", ".lora_B.default.weight"),
    "peft of diffusers": ("base_model.model.", to_diffusers, ".lora_A.weight", ".lora_B.weight"),
    "diffsynth": ("", native, ".lora_A.default.weight", ".lora_B.default.weight"),
    "diffsynth pipe": ("pipe.dit.", native, ".lora_A.default.weight", ".lora_B.default.weight"),
    "mochi": ("diffusion_model.", native, ".lora_A", ".lora_B"),
    "old diffusers": ("unet.", native, "_lora.down.weight", "_lora.up.weight"),
    "diffusers lora": ("transformer.", to_diffusers, ".lora.down.weight", ".lora.up.weight"),
    "transformers": (
        "model.diffusion_model.",
        native,
        ".lora_linear_layer.down.weight",
        ".lora_linear_layer.up.weight",
    ),
    "lycoris": ("lycoris_", lambda module: folded(to_diffusers(module)), ".lora_down.weight", ".lora_up.weight"),
}


def names_of(drawn, convention="lightx2v"):
    """Return the tensors of a file as a tool of the field would name them."""
    prefix, spell, down_end, up_end = CONVENTIONS[convention]
    tensors = {}
    for module, (down, up) in drawn.pairs.items():
        stem = prefix + spell(module)
        tensors[stem + down_end], tensors[stem + up_end] = down.contiguous(), up.contiguous()
        if drawn.alpha is not None:
            tensors[f"{stem}.alpha"] = torch.tensor(drawn.alpha)
    ends = {"weight": "diff", "bias": "diff_b", "modulation": "diff_m"}
    for name, delta in drawn.full.items():
        module, _, leaf = name.rpartition(".")
        tensors[f"{prefix}{module}.{ends[leaf]}"] = delta.contiguous()
    return tensors


def write(path, drawn, convention="lightx2v", metadata=None, dtype=None):
    """Write a LoRA file; returns its path."""
    tensors = {name: each if dtype is None else each.to(dtype) for name, each in names_of(drawn, convention).items()}
    save_file(tensors, path, metadata)
    return path


def write_peft_config(folder, **settings):
    """Write the settings that PEFT puts beside its file."""
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **settings}), encoding="utf-8")
