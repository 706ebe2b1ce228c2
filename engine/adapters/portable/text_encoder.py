"""The text encoder: transformers' UMT5 encoder on memory-mapped weights in the precision of the file.

Computes on the CPU, or on the GPU with every weight moved there only for its own multiplication. The prompt's
length, padding and truncation are stages/encode.py.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ...errors import CheckpointError, UnsupportedHardwareError
from ...interfaces import Hooks
from ...logic.checkpoint_formats import TextEncoderFormat, detect_text_encoder
from .. import system
from ..weights import Weights, open_weights
from .text_linear import StoredLinear
from .tokenizer import END_TOKEN, TOKENIZER_FILES, Tokenizer, clean_text, open_spiece, open_tokenizer

logger = logging.getLogger(__name__)

# Modules of transformers' encoder and of Wan's; those with `layer` are within a block.
_MODULES = {
    "shared": "token_embedding",
    "encoder.final_layer_norm": "norm",
    "layer.0.layer_norm": "norm1",
    "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
    "layer.0.SelfAttention": "attn",
    "layer.1.layer_norm": "norm2",
    "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
    "layer.1.DenseReluDense.wi_1": "ffn.fc1",
    "layer.1.DenseReluDense.wo": "ffn.fc2",
}


class PortableTextEncoder:
    """Implements interfaces.TextEncoder.

    Args:
        file: models_t5_umt5-xxl-enc-*.pth, the same as safetensors, or ComfyUI's umt5_xxl_*.safetensors.
        tokenizer: a google/umt5-xxl folder or one of its files; None takes the tokenizer inside `file`.

    Raises:
        CheckpointError: the file is damaged or is not a UMT5 encoder, or there is no tokenizer.
    """

    def __init__(self, file: Path, tokenizer: Path | None = None) -> None:
        weights = open_weights([file])
        self._file = file
        self._format = detect_text_encoder(weights.header, str(file))
        self._tokenizer = _open_tokenizer(file, weights, tokenizer)
        self._device, self._dtype = torch.device("cpu"), torch.bfloat16
        self._embedding = torch.empty(0)
        self._model: Any = None

    def load(self, device: str, hooks: Hooks) -> None:
        """Build the model on mapped weights; does nothing when it is there on that device already.

        Raises:
            UnsupportedHardwareError: `device` is "gpu" and there is no CUDA device.
        """
        self._device = _torch_device(device)
        self._dtype = _compute_dtype(self._device)
        if self._model is None:
            hooks.check_interrupt()
            for note in self._format.notes:
                logger.info("LightX2V: %s", note)
            weights = open_weights([self._file], self._format.prefix)
            self._embedding = weights[_file_name("shared.weight", self._format.naming)]
            self._model = _build_model(self._format, weights)
        self._model.to(self._device, self._dtype)

    def unload(self) -> None:
        self._model = None
        self._embedding = torch.empty(0)

    def tokenize(self, text: str) -> list[int]:
        return [*self._tokenizer(clean_text(text)), END_TOKEN]

    def encode_tokens(self, token_ids: list[int], hooks: Hooks, *, num_padding: int = 0) -> torch.Tensor:
        """Encode tokens to rows [len(token_ids), d_model], float32 on the CPU.

        Args:
            token_ids: ids below the number of rows of the embedding.
            hooks: progress counts layers; `check_interrupt` is called before every layer.
            num_padding: masked tokens to append, which change the cost but not the rows. Wan pads to 512.

        Raises:
            CheckpointError: an id is outside the embedding.
        """
        assert self._model is not None, "encode_tokens before load"
        if max(token_ids) >= len(self._embedding):
            raise CheckpointError(
                f"The tokenizer gives the token id {max(token_ids)}, but {self._file} has only {len(self._embedding)} "
                "tokens: they belong to different models. Choose the google/umt5-xxl tokenizer."
            )
        padded = torch.tensor([[*token_ids, *[0] * num_padding]])
        mask = torch.arange(padded.shape[1], device=self._device)[None] < len(token_ids)
        with torch.no_grad(), _reporting(self._model.encoder.block, hooks):
            rows = self._embedding[padded].to(self._device, self._dtype)
            hidden: torch.Tensor = self._model(inputs_embeds=rows, attention_mask=mask.long()).last_hidden_state
        return hidden[0, : len(token_ids)].float().cpu()

    def describe(self) -> dict[str, Any]:
        return {
            "engine": "portable",
            "text_encoder": self._file.name,
            "scheme": self._format.scheme,
            "dtype": str(self._dtype).removeprefix("torch."),
            "device": str(self._device),
        }


def _open_tokenizer(file: Path, weights: Weights, tokenizer: Path | None) -> Tokenizer:
    if tokenizer is not None:
        return open_tokenizer(tokenizer)
    if "spiece_model" in weights:
        return open_spiece(weights["spiece_model"].numpy().tobytes(), f"{file} (spiece_model)")
    raise CheckpointError(
        f"There is no tokenizer for {file}: it holds no spiece_model, and no google/umt5-xxl folder with "
        f"{' or '.join(TOKENIZER_FILES)} was found near it. Download that folder from the model page and put it beside "
        "the file, or choose a tokenizer in the loader."
    )


def _torch_device(device: str) -> torch.device:
    if device == "cpu":
        return torch.device("cpu")
    found = system.compute_device()
    if found.type == "cpu":
        raise UnsupportedHardwareError(
            "The text encoder's device is 'gpu', but no CUDA device was found. Set device to 'cpu'."
        )
    return found


def _compute_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16, or float32 on a CPU that has no fast bfloat16 matmul (half the speed or worse there)."""
    if device.type != "cpu":
        return torch.bfloat16
    has_mkldnn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    has_bfloat16 = has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if has_bfloat16 else torch.float32


def _build_model(text_format: TextEncoderFormat, weights: Weights) -> Any:
    """Return transformers' encoder on the tensors of the file: no second copy.

    It has no embedding: of the largest tensor only the rows of a prompt are ever needed, so they are looked up on
    the CPU and given to the model.
    """
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=text_format.vocab_size,
        d_model=text_format.d_model,
        d_kv=text_format.d_kv,
        d_ff=text_format.d_ff,
        num_layers=text_format.num_layers,
        num_heads=text_format.num_heads,
        relative_attention_num_buckets=text_format.num_buckets,
        feed_forward_proj="gated-gelu_pytorch_tanh",
        dropout_rate=0.0,
        attn_implementation="eager",
    )
    with torch.device("meta"):
        model: Any = UMT5EncoderModel(config)
    model.set_input_embeddings(None)
    for path, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear):
            name = _file_name(f"{path}.weight", text_format.naming)
            scale = name.removesuffix("weight") + (text_format.scale_suffix or "")
            parent, _, child = path.rpartition(".")
            linear = StoredLinear(weights[name], weights[scale] if text_format.scale_suffix else None)
            setattr(model.get_submodule(parent), child, linear)
    norms_and_biases = {name: weights[_file_name(name, text_format.naming)] for name in model.state_dict()}
    model.load_state_dict(norms_and_biases, assign=True)
    return model.requires_grad_(False).eval()


def _file_name(name: str, naming: str) -> str:
    """Return what the file calls a tensor of transformers' encoder."""
    if naming == "hf":
        return name
    block = ""
    if name.startswith("encoder.block."):
        _, _, index, name = name.split(".", 3)
        block = f"blocks.{index}."
    module = next(module for module in _MODULES if name.startswith(f"{module}."))
    return block + _MODULES[module] + name.removeprefix(module)


@contextmanager
def _reporting(blocks: Any, hooks: Hooks) -> Iterator[None]:
    """Check for an interrupt and report progress before each of the blocks while the context is open."""

    def report(index: int) -> None:
        hooks.check_interrupt()
        hooks.on_progress(index, len(blocks), "encoding text")

    handles = [
        block.register_forward_pre_hook(lambda *_, index=index: report(index)) for index, block in enumerate(blocks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    hooks.on_progress(len(blocks), len(blocks), "encoding text")
