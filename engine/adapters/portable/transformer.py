"""Wan2.1's transformer on diffusers: any checkpoint layout, any device, weights in their stored precision.

diffusers' WanTransformer3DModel is built on the meta device from the sizes that the checkpoint's shapes give
and filled from the files under their native Wan names. Activations are BF16; norms, modulation and the time
embedding are computed in fp32 as in native Wan.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...constants import PATCH_SIZE
from ...errors import MissingDependencyError
from ...interfaces import Hooks
from ...logic.checkpoint_files import TransformerFiles
from ...logic.checkpoint_formats import WanArchitecture
from ...logic.safetensors_header import Header
from ...settings import EngineSettings
from ..kernels.attention import Attention, sdpa, select_attention
from ..kernels.matmul import select_matmul
from ..streaming import Conveyor, TensorSpec
from ..system import compute_device
from ..weights import Weights, open_weights
from .linear import QuantLinear, full_scale
from .streaming import settle

# diffusers' names and Wan's, outside and inside a block.
# Source: Wan2.1 wan/modules/model.py; diffusers models/transformers/transformer_wan.py.
_NAMES = {
    "patch_embedding": "patch_embedding",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "scale_shift_table": "head.modulation",
    "proj_out": "head.head",
}
_ATTENTION_NAMES = {
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
}
_BLOCK_NAMES = {
    "scale_shift_table": "modulation",
    # Wan counts the norms in order of creation, diffusers in order of use; the other two have no weights.
    "norm2": "norm3",
    **{f"attn1.{ours}": f"self_attn.{wan}" for ours, wan in _ATTENTION_NAMES.items()},
    **{f"attn2.{ours}": f"cross_attn.{wan}" for ours, wan in _ATTENTION_NAMES.items()},
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
# Parts of a name that say that the tensor is used in fp32.
_FLOAT32_PARTS = frozenset({"time_embedder", "scale_shift_table", "norm2"})
_EIGHT_BIT = {"F8_E4M3": torch.float8_e4m3fn, "I8": torch.int8}
# Positions that the RoPE table covers along each axis. Source: Wan2.1 wan/modules/model.py (rope_params).
_ROPE_LENGTH = 1024
_PHASES = ("attn1", "attn2", "ffn")


@dataclass(frozen=True)
class _Loaded:
    """Everything that takes memory."""

    model: nn.Module
    conveyor: Conveyor
    facts: dict[str, Any]


class PortableTransformer:
    """The denoiser of the portable engine; see interfaces.Transformer.

    Computes on the current CUDA stream, which must be the default one where SageAttention is used.
    """

    def __init__(
        self,
        files: TransformerFiles,
        settings: EngineSettings,
        mode: str,
        *,
        device: torch.device | None = None,
        pinned_limit_bytes: int | None = None,
    ) -> None:
        """Args: mode: none | block | phase | disk; pinned_limit_bytes: None is no limit of our own."""
        self._files = files
        self._settings = settings
        self._mode = mode
        self._device = device or compute_device()
        self._pinned_limit_bytes = pinned_limit_bytes
        self._loaded: _Loaded | None = None

    @property
    def euler_dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def device(self) -> torch.device:
        return self._device

    def load(self, latent_shape: tuple[int, int, int, int], hooks: Hooks) -> None:
        """Make the weights ready.

        Raises:
            MissingDependencyError, UnsupportedHardwareError: the settings name an attention back end that
                cannot run here, or compile is on and there is no compiler.
        """
        if self._loaded is None:
            # Inside ComfyUI inference mode is on; weights made under it could not be used outside of it.
            with torch.inference_mode(False), torch.no_grad():
                self._loaded = self._load(hooks)

    def unload(self) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        loaded.conveyor.residence.close()
        del loaded
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def predict_flow(self, latents: torch.Tensor, timestep: float, context: torch.Tensor, hooks: Hooks) -> torch.Tensor:
        assert self._loaded is not None, "predict_flow before load"
        self._loaded.conveyor.check_interrupt = hooks.check_interrupt
        (flow,) = self._loaded.model(
            hidden_states=latents[None].to(self._device, torch.bfloat16),
            timestep=torch.tensor([timestep], dtype=torch.float32, device=self._device),
            encoder_hidden_states=context[None].to(self._device, torch.bfloat16),
            return_dict=False,
        )
        result: torch.Tensor = flow[0].to(latents.device, torch.float32)
        return result

    def describe(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "engine": "portable",
            "precision": self._files.format.scheme,
            "attention": self._settings.attention,
            "compile": self._settings.compile,
            "offload": self._mode,
            "weight_bytes": self._files.num_bytes,
            "moved_bytes": 0,
            "device": str(self._device),
        }
        if self._loaded:
            facts |= self._loaded.facts
            facts["moved_bytes"] += self._loaded.conveyor.residence.moved_bytes
        return facts

    def _load(self, hooks: Hooks) -> _Loaded:
        layout = self._files.format
        is_compiled = _use_compile(self._settings.compile, self._device)
        matmul = "bf16" if layout.scheme == "bf16" else select_matmul(layout.scheme, self._device)
        attention_name, attention = select_attention(self._settings.attention, self._device)
        source = _Source(open_weights(self._files.files, layout.prefix), layout.scale_suffix)
        model = _build_model(layout.architecture, self._device)
        _quantise_linears(model, source.weights.header, matmul)
        _set_attention(model, attention)
        specs = [
            TensorSpec(name, _compute_dtype(name, parameter), parameter.shape)
            for name, parameter in model.named_parameters()
        ]
        unit_paths = _unit_paths(layout.architecture.num_layers, self._mode)
        if is_compiled:
            for path in unit_paths:
                model.get_submodule(path).compile(dynamic=False)
        conveyor = settle(
            model,
            specs,
            unit_paths,
            mode=self._mode,
            device=self._device,
            source=source,
            pinned_limit_bytes=self._pinned_limit_bytes,
            hooks=hooks,
        )
        facts = {
            "attention": attention_name,
            "matmul": matmul,
            "compile": is_compiled,
            "weight_bytes": sum(spec.num_bytes for spec in specs),
            "moved_bytes": _resident_bytes(specs, self._mode) if self._device.type == "cuda" else 0,
        }
        return _Loaded(model=model, conveyor=conveyor, facts=facts)


class _Source:
    """The checkpoint's tensors by diffusers' names; see adapters/streaming.py Source."""

    def __init__(self, weights: Weights, scale_suffix: str | None) -> None:
        self.weights = weights
        self._scale_suffix = scale_suffix

    def read(self, spec: TensorSpec) -> torch.Tensor:
        stored = self.weights[native_name(spec.name, self._scale_suffix)]
        if spec.name.endswith(".weight_scale"):
            return full_scale(stored, spec.shape[0])
        return stored.to(spec.dtype)

    def close(self) -> None:
        self.weights.close()


class _AttentionProcessor:
    """diffusers' hook for attention layers, with an attention function of kernels/attention.py."""

    def __init__(self, attention: Attention) -> None:
        self._attention = attention

    def __call__(
        self,
        layer: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Attend from hidden_states [B, S, dim] to itself, or to encoder_hidden_states [B, 512, dim]."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        heads = (layer.heads, -1)
        q = layer.norm_q(layer.to_q(hidden_states)).unflatten(2, heads)
        k = layer.norm_k(layer.to_k(context)).unflatten(2, heads)
        v = layer.to_v(context).unflatten(2, heads)
        if rotary_emb is not None:
            q, k = _rotate(q, *rotary_emb), _rotate(k, *rotary_emb)
        out: torch.Tensor = layer.to_out[0](self._attention(q, k, v).flatten(2))
        return out


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate neighbouring pairs of x [B, S, H, D] by angles given as cos, sin [1, S, 1, D] fp32, each twice."""
    first, second = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[..., 0::2], sin[..., 0::2]
    out = torch.empty_like(x)
    out[..., 0::2] = first * cos - second * sin
    out[..., 1::2] = first * sin + second * cos
    return out


def native_name(name: str, scale_suffix: str | None = None) -> str:
    """Return Wan's name of a diffusers parameter, e.g. blocks.3.attn1.to_q.weight -> blocks.3.self_attn.q.weight."""
    start, table = "", _NAMES
    if name.startswith("blocks."):
        start, table = ".".join(name.split(".")[:2]) + ".", _BLOCK_NAMES
    inner = name.removeprefix(start)
    ours = next(key for key in table if inner == key or inner.startswith(f"{key}."))
    wan = start + table[ours] + inner.removeprefix(ours)
    return f"{wan.removesuffix('weight_scale')}{scale_suffix}" if wan.endswith(".weight_scale") else wan


def _build_model(sizes: WanArchitecture, device: torch.device) -> nn.Module:
    """Return diffusers' model without weights: all parameters on the meta device, only the RoPE table is real."""
    from diffusers import WanTransformer3DModel

    head_dim = sizes.dim // sizes.num_heads
    with torch.device("meta"):
        model: Any = WanTransformer3DModel(
            patch_size=PATCH_SIZE,
            num_attention_heads=sizes.num_heads,
            attention_head_dim=head_dim,
            in_channels=sizes.in_dim,
            out_channels=sizes.out_dim,
            text_dim=sizes.text_dim,
            freq_dim=sizes.freq_dim,
            ffn_dim=sizes.ffn_dim,
            num_layers=sizes.num_layers,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            eps=1e-6,
        )
    model.rope = type(model.rope)(head_dim, PATCH_SIZE, _ROPE_LENGTH).to(device)
    without_weights: nn.Module = model.requires_grad_(False).eval()
    return without_weights


def _quantise_linears(model: nn.Module, header: Header, matmul: str) -> None:
    """Replace every linear layer whose stored weight is 8-bit."""
    for path, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear):
            continue
        dtype = _EIGHT_BIT.get(header[native_name(f"{path}.weight")].dtype)
        if dtype is not None:
            parent, _, name = path.rpartition(".")
            layer = QuantLinear(module.in_features, module.out_features, dtype, matmul)
            setattr(model.get_submodule(parent), name, layer)


def _set_attention(model: Any, attention: Attention) -> None:
    """Use `attention` between tokens; the 512 text rows are too few keys for anything but SDPA to pay."""
    own, cross = _AttentionProcessor(attention), _AttentionProcessor(sdpa)
    for block in model.blocks:
        block.attn1.set_processor(own)
        block.attn2.set_processor(cross)


def _compute_dtype(name: str, parameter: torch.Tensor) -> torch.dtype:
    path, _, leaf = name.rpartition(".")
    if parameter.dtype in _EIGHT_BIT.values():
        return parameter.dtype
    is_float32 = leaf == "weight_scale" or not _FLOAT32_PARTS.isdisjoint([*path.split("."), leaf])
    return torch.float32 if is_float32 else torch.bfloat16


def _unit_paths(num_layers: int, mode: str) -> Sequence[str]:
    blocks = [f"blocks.{index}" for index in range(num_layers)]
    return [f"{block}.{phase}" for block in blocks for phase in _PHASES] if mode == "phase" else blocks


def _resident_bytes(specs: Sequence[TensorSpec], mode: str) -> int:
    """Return the bytes of what stays on the device: everything, or with streamed blocks the rest."""
    return sum(spec.num_bytes for spec in specs if mode == "none" or not spec.name.startswith("blocks."))


def _use_compile(setting: str, device: torch.device) -> bool:
    """Decide whether blocks are compiled; "auto" is off, as one clip does not earn back the compile time."""
    if setting != "on":
        return False
    compilers = (os.environ.get("CXX"), "g++", "clang++", "c++", "cl")
    problem = ""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        problem = "Triton is not installed. Install it (`pip install triton`, on Windows `pip install triton-windows`)"
    elif device.type == "cpu" and not any(shutil.which(name) for name in compilers if name):
        problem = "no C++ compiler is on the PATH. Install one (g++, clang++ or Visual Studio's cl)"
    if problem:
        raise MissingDependencyError(f"compile is 'on', but {problem}, or set compile to 'auto'.")
    return True
