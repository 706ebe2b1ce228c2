"""The text encoder: UMT5's encoder on memory-mapped weights in the precision of the file.

Computes on the CPU, or on the GPU with every weight moved there only for its own multiplication. The prompt's
length, padding and truncation are stages/encode.py.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from .. import system
from ..checkpoints.checks import find_unscaled, scale_of
from ..checkpoints.companions import TextEncoderFiles
from ..checkpoints.content import ContentCheck, damaged
from ..checkpoints.formats import TextEncoderFormat
from ..checkpoints.weights import Weights, open_weights
from ..errors import CheckpointError, UnsupportedHardwareError
from ..interfaces import Hooks
from ..sentences.checkpoints import Reading
from ..sentences.text import Text
from .linear import StoredLinear
from .model import TextModel
from .tokenizer import END_TOKEN, Tokenizer, clean_text, open_spiece, open_tokenizer

# Threads that read a file: a drive is faster with several.
_NUM_READERS = 8
_PAGE_BYTES = 4096

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


class Umt5Encoder:
    """A loaded or loadable text encoder with its tokenizer."""

    def __init__(self, files: TextEncoderFiles) -> None:
        self._files = files
        self._tokenizer = _open_tokenizer(files)
        self._device, self._dtype = torch.device("cpu"), torch.bfloat16
        self._embedding = torch.empty(0)
        self._model: TextModel | None = None

    def load(self, device: str, hooks: Hooks) -> None:
        """Build the model on mapped weights, and read them; does nothing when it is there on that device already.

        Raises:
            UnsupportedHardwareError: `device` is "gpu" and there is no CUDA device.
        """
        self._device = _torch_device(device)
        self._dtype = _compute_dtype(self._device)
        if self._model is None:
            hooks.check_interrupt()
            weights = open_weights([self._files.path], self._files.format.prefix)
            self._embedding = weights[_file_name("shared.weight", self._files.format.naming)]
            content = ContentCheck(unscaled=find_unscaled(weights.header))
            self._model, linears = _build_model(self._files.format, weights, content)
            _read_ahead(self._files.path, linears, content, hooks)
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
                Text.UNKNOWN_TOKEN(token_id=max(token_ids), path=self._files.path, num_tokens=len(self._embedding))
            )
        num_blocks = len(self._model.blocks)

        def report(index: int) -> None:
            hooks.check_interrupt()
            hooks.on_progress(index, num_blocks, Text.ENCODING())

        with torch.no_grad():
            rows = self._embedding[torch.tensor([*token_ids, *[0] * num_padding])]
            _check_rows(self._files.path, token_ids, rows)
            rows = rows.to(self._device, self._dtype)
            hidden: torch.Tensor = self._model(rows, len(token_ids), report)
        hooks.on_progress(num_blocks, num_blocks, Text.ENCODING())
        return hidden[: len(token_ids)].float().cpu()

    def describe(self) -> dict[str, Any]:
        return {
            "engine": "portable",
            "text_encoder": self._files.path.name,
            "scheme": self._files.format.precision,
            "dtype": str(self._dtype).removeprefix("torch."),
            "device": str(self._device),
        }


def _open_tokenizer(files: TextEncoderFiles) -> Tokenizer:
    if files.tokenizer is not None:
        return open_tokenizer(files.tokenizer)
    weights = open_weights([files.path])
    model = weights[files.format.spiece or "spiece_model"].numpy().tobytes()
    weights.close()
    return open_spiece(model, f"{files.path} (spiece_model)")


def _torch_device(device: str) -> torch.device:
    if device == "cpu":
        return torch.device("cpu")
    found = system.compute_device()
    if found.type == "cpu":
        raise UnsupportedHardwareError(Text.NO_GPU())
    return found


def _compute_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16, or float32 on a CPU that has no fast bfloat16 matmul (half the speed or worse there)."""
    if device.type != "cpu":
        return torch.bfloat16
    has_mkldnn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    has_bfloat16 = has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if has_bfloat16 else torch.float32


def _build_model(
    text_format: TextEncoderFormat, weights: Weights, content: ContentCheck
) -> tuple[TextModel, dict[str, torch.Tensor]]:
    """Return the encoder on the tensors of the file, no second copy, and those of its linear layers by name.

    It has no embedding: of the largest tensor only the rows of a prompt are ever needed, so they are looked up on
    the CPU and given to the model.
    """

    linears: dict[str, torch.Tensor] = {}

    def read(stored: str) -> torch.Tensor:
        tensor = weights[stored]
        content.look(stored, weights.path_of(stored), tensor, tensor.dtype)
        return tensor

    def get(name: str) -> torch.Tensor:
        return read(_file_name(name, text_format.naming))

    def get_linear(name: str) -> StoredLinear:
        stored, scale = _file_name(name, text_format.naming), None
        if text_format.scale_suffix:
            scale_name = scale_of(weights.header, stored)
            scale = None if scale_name is None else read(scale_name)
        # Looked at where it is read: a page here and there of a drive would take longer than all of it.
        linears[stored] = weights[stored]
        return StoredLinear(linears[stored], scale)

    return TextModel(text_format, get, get_linear), linears


def _read_ahead(path: Path, linears: dict[str, torch.Tensor], content: ContentCheck, hooks: Hooks) -> None:
    """Touch the pages of mapped tensors, if there is RAM for all: reading is loading, and faster on several threads.

    Takes a few hundredths of a second where the system still has the file in memory.

    Raises:
        CheckpointError: what was read is damaged.
    """
    if system.free_ram_bytes() < sum(tensor.nbytes for tensor in linears.values()):
        return
    readers = ThreadPoolExecutor(_NUM_READERS, "lightx2v-text-reader")

    def read(name: str, stored: torch.Tensor) -> None:
        _touch(stored)
        content.look(name, path, stored, stored.dtype)

    try:
        for index, done in enumerate([readers.submit(read, *item) for item in linears.items()]):
            hooks.check_interrupt()
            hooks.on_progress(index, len(linears), Text.LOADING())
            done.result()
    finally:
        readers.shutdown(cancel_futures=True)


def _touch(tensor: torch.Tensor) -> None:
    tensor.view(torch.uint8).flatten()[::_PAGE_BYTES].amax()


def _check_rows(path: Path, token_ids: list[int], rows: torch.Tensor) -> None:
    """Raise where the embedding has no numbers for a prompt's tokens; only their rows of it are ever read."""
    used = rows[: len(token_ids)].float()
    if not bool(used.isfinite().all()):
        raise damaged(path, Text.EMBEDDING(), Reading.NO_NUMBERS())
    if not bool(used.any(dim=1).all()):
        raise damaged(path, Text.EMBEDDING(), Text.ZERO_ROWS())


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
