"""A stack of LoRAs as tensors to compute with: low-rank branches beside linear layers, and small tensors changed.

    y = x W^T + (x down^T) up^T

`down` holds the rows of all LoRAs one below the other, `up` their columns side by side, times strength and alpha/rank.
Rows of `down` are quantized as the layer's input is, so that they are multiplied with what is there already; `up` is
BF16. Nothing is added to quantized weights. Everything that is no pair of a linear layer (biases, norms, modulation,
the patch embedding) is small and not quantized: it is added in fp32 to the checkpoint's value, and the sum comes under
the checkpoint's name in place of the original, which stays as it is.

Names of a branch, beside those of its layer:

    <layer>.lora_up                         [N, r]
    <layer>.lora_balance                    fp32 [r], in FP8 blocks; see kernels/joined.py
    <input>.lora_down, .lora_down_scale     [R, K] and, in 8 bits, fp32 [R, 1]; <input> is the layer, or what q, k and v
    <input>.lora_bias                       share (self_attn.qkv); R is the sum of their r. Zeros, for the kernels
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..checkpoints.weights import FileRange, TensorSpec
from ..kernels.joined import balance_of
from ..kernels.quantize import quantize
from ..memory.activations import branch_room
from ..offload import Source
from .changes import Change, Lora, Stack

_ALL, _SOME = slice(None), slice(None, None, 16)
# Every kernel takes columns in multiples of this; a branch's rank is filled up with zeros.
RANK_MULTIPLE = 16
_DTYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8, "bf16": torch.bfloat16}
_SHARED = {f"self_attn.{part}": "self_attn.qkv" for part in "qkv"}


def input_of(layer: str) -> str:
    """Return the name that a block's layers of one input share."""
    return _SHARED.get(layer, layer)


@dataclass(frozen=True)
class _Part:
    """One change of one LoRA."""

    lora: Lora
    change: Change
    strength: float

    @property
    def factor(self) -> float:
        return 1.0 if self.change.replaces else self.change.factor * self.strength

    @property
    def order(self) -> tuple[bytes, float]:
        return self.lora.digest(self.change), self.factor


class Composition:
    """A stack's tensors for one checkpoint; see offload/units.py Source."""

    def __init__(self, stack: Stack, base: Iterable[TensorSpec], inputs: str) -> None:
        """Args:
        base: all parameters of the checkpoint.
        inputs: fp8 | int8 | bf16: what the inputs of the blocks' layers are quantized to.
        """
        self._base = {spec.name: spec for spec in base}
        self._source: Source | None = None
        self._dtype = _DTYPES[inputs]
        self._branches: dict[str, list[_Part]] = defaultdict(list)
        self._merged: dict[str, list[_Part]] = defaultdict(list)
        self._inputs: dict[str, list[str]] = defaultdict(list)
        # The last tensor that was made on each thread: its pieces are asked for one after the other.
        self._last = threading.local()
        self._reaches: dict[tuple[int, tuple[str, ...]], float] = {}
        self._loras = [lora for lora, _ in stack.entries]
        for lora, strength in stack.entries:
            for change in lora.changes:
                parts = self._branches if self._is_branch(change) else self._merged
                parts[change.target].append(_Part(lora, change, strength))
        for target in sorted(self._branches, key=_position):
            self._inputs[_input_path(target)].append(target)
        self.specs = tuple(self._make_specs())

    def read_from(self, source: Source) -> Composition:
        """Say where the checkpoint's own tensors come from; returns the composition."""
        self._source = source
        return self

    @property
    def num_columns(self) -> int:
        """Columns of the widest product with `down` in a block."""
        widths = [spec.shape[0] for spec in self.specs if spec.name.endswith(".lora_down") and _is_in_block(spec.name)]
        return max(widths, default=0)

    @property
    def rank(self) -> int:
        """The highest of a layer's branch in a block."""
        return max((self._total_rank(target) for target in self._branches if _is_in_block(target)), default=0)

    def read(self, spec: TensorSpec, elements: slice | None = None) -> torch.Tensor:
        """Return one of `specs`; see Source."""
        if elements is None:
            return self._make(spec)
        if getattr(self._last, "spec", None) != spec:
            self._last.spec, self._last.flat = spec, self._make(spec).flatten()
        flat: torch.Tensor = self._last.flat
        return flat[elements]

    def location(self, spec: TensorSpec) -> FileRange | None:
        """Nothing lies in a file as it is needed."""
        return None

    def close(self) -> None:
        """Drop the mappings of the checkpoint's files and of the LoRAs'."""
        if self._source is not None:
            self._source.close()
        for lora in self._loras:
            lora.close()

    def _is_branch(self, change: Change) -> bool:
        is_linear = len(self._base[change.target].shape) == 2
        return is_linear and (change.rank > 0 or _is_in_block(change.target))

    def _rank(self, part: _Part) -> int:
        """A full difference is a branch of full rank: itself beside the identity."""
        return part.change.rank or min(self._base[part.change.target].shape)

    def _total_rank(self, target: str) -> int:
        rank = sum(self._rank(part) for part in self._branches[target])
        return -(-rank // RANK_MULTIPLE) * RANK_MULTIPLE

    def _make_specs(self) -> Iterable[TensorSpec]:
        joins = self._dtype == torch.float8_e4m3fn and branch_room(self.rank, joins_loras=True) > 0
        for path, targets in self._inputs.items():
            in_block, (_, columns) = _is_in_block(path), self._base[targets[0]].shape
            rows = sum(map(self._total_rank, targets))
            dtype = self._dtype if in_block else self._base[targets[0]].dtype
            yield TensorSpec(f"{path}.lora_down", dtype, torch.Size((rows, columns)))
            if in_block and dtype.itemsize == 1:
                yield TensorSpec(f"{path}.lora_down_scale", torch.float32, torch.Size((rows, 1)))
            if in_block:
                yield TensorSpec(f"{path}.lora_bias", torch.bfloat16, torch.Size((rows,)))
            for target in targets:
                shape = torch.Size((self._base[target].shape[0], self._total_rank(target)))
                kept = torch.bfloat16 if in_block else dtype
                layer = target.removesuffix(".weight")
                yield TensorSpec(f"{layer}.lora_up", kept, shape)
                if in_block and joins and f"{target}_scale" in self._base:
                    yield TensorSpec(f"{layer}.lora_balance", torch.float32, shape[1:])
        for target in self._merged:
            yield self._base[target]

    def _make(self, spec: TensorSpec) -> torch.Tensor:
        path, _, leaf = spec.name.rpartition(".")
        if leaf == "lora_up":
            return self._up(f"{path}.weight").to(spec.dtype)
        if leaf == "lora_balance":
            return self._balance(f"{path}.weight")
        if leaf == "lora_bias":
            return torch.zeros(spec.shape, dtype=spec.dtype)
        if leaf not in ("lora_down", "lora_down_scale"):
            return self._merge(spec)
        if self._dtype.itemsize > 1 or not _is_in_block(path):
            return self._down(self._inputs[path]).to(spec.dtype)
        codes, scale = self._quantized_down(path)
        return codes if leaf == "lora_down" else scale

    def _quantized_down(self, path: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `down` is in 8 bits, and its scale; they are read one after the other on a thread."""
        if getattr(self._last, "path", None) != path:
            down = self._down(self._inputs[path])
            codes, scale = torch.empty_like(down, dtype=self._dtype), down.new_empty(len(down), 1)
            quantize(down, codes, scale)
            self._last.path, self._last.quantized = path, (codes, scale)
        quantized: tuple[torch.Tensor, torch.Tensor] = self._last.quantized
        return quantized

    def _balance(self, target: str) -> torch.Tensor:
        """Return fp32 [r] of an FP8 layer."""
        assert self._source is not None, "read before read_from"
        up, down = self._up(target, _SOME), self._down([target], _SOME)
        scale = self._source.read(self._base[f"{target}_scale"])
        return balance_of(up, scale[_SOME], down, self._base[target].shape[1])

    def _down(self, targets: Sequence[str], some: slice = _ALL) -> torch.Tensor:
        """Return [R, K] in fp32 of all parts of layers of one input, each layer's filled up with zeros.

        Args: some: of the columns.
        """
        columns = self._base[targets[0]].shape[1]
        filled = torch.zeros(sum(map(self._total_rank, targets)), len(range(columns)[some]))
        first = 0
        for target in targets:
            rows, start = self._base[target].shape[0], first
            for part in _ordered(self._branches[target]):
                if part.change.rank:
                    values = part.lora.read(part.change.names[0], (_ALL, some)).flatten(1)
                    if some == _ALL:
                        self._note_reach(part, values)
                else:
                    values = (self._full(part) if rows < columns else torch.eye(columns))[:, some]
                filled[start : start + self._rank(part)] = values
                start += self._rank(part)
            first += self._total_rank(target)
        return filled

    def _up(self, target: str, some: slice = _ALL) -> torch.Tensor:
        """Return [N, r] in fp32 of all parts of a layer, times their factors.

        Args: some: of the rows.
        """
        rows, columns = self._base[target].shape
        filled = torch.zeros(len(range(rows)[some]), self._total_rank(target))
        start = 0
        for part in _ordered(self._branches[target]):
            if part.change.rank:
                values = part.lora.read(part.change.names[1], (some,)).flatten(1)
            else:
                values = (torch.eye(rows) if rows < columns else self._full(part))[some]
            made = filled[:, start : start + self._rank(part)]
            torch.mul(values, part.factor, out=made)
            part.lora.check_effect(made, part.change, part.strength)
            if part.change.rank and some == _ALL:
                # Of no element of the product more: each is one of a row of `up` and a column of `down`.
                rows_of_up = torch.linalg.vector_norm(made, dim=1)
                part.lora.check_effect(rows_of_up, part.change, part.strength, self._reach(part))
            start += self._rank(part)
        return filled

    def _reach(self, part: _Part) -> float:
        """Return the norm of the longest column of a pair's `down`."""
        key = (id(part.lora), part.change.names)
        if key not in self._reaches:
            self._note_reach(part, part.lora.read(part.change.names[0]).flatten(1))
        return self._reaches[key]

    def _note_reach(self, part: _Part, down: torch.Tensor) -> None:
        self._reaches[id(part.lora), part.change.names] = float(torch.linalg.vector_norm(down, dim=0).max())

    def _full(self, part: _Part) -> torch.Tensor:
        """Return a full difference of a layer [N, K] in fp32."""
        values = part.lora.read(part.change.names[0]).view(self._base[part.change.target].shape)
        return values - self._original(part.change.target) if part.change.replaces else values

    def _original(self, target: str) -> torch.Tensor:
        """Return a copy of the checkpoint's tensor in fp32, dequantized."""
        assert self._source is not None, "read before read_from"
        spec = self._base[target]
        stored = self._source.read(spec, slice(0, spec.shape.numel()))
        values = stored.to(torch.float32, copy=True).view(spec.shape)
        scale = self._base.get(f"{target}_scale")
        return values if scale is None else values * self._source.read(scale)

    def _merge(self, spec: TensorSpec) -> torch.Tensor:
        value = self._original(spec.name)
        for part in _ordered(self._merged[spec.name]):
            change, lora = part.change, part.lora
            if change.replaces:
                value = lora.read(change.names[0]).view(spec.shape).clone()
                continue
            added = lora.read(change.names[-1])
            if change.rank:
                added = added.flatten(1) @ lora.read(change.names[0]).flatten(1)
            added = part.factor * added.view(spec.shape)
            lora.check_effect(added, change, part.strength)
            value += added
        return value.to(spec.dtype)


def split(specs: Iterable[TensorSpec]) -> Mapping[bool, list[TensorSpec]]:
    """Return the specs that are in a block (True) and the others (False)."""
    found: dict[bool, list[TensorSpec]] = {True: [], False: []}
    for spec in specs:
        found[_is_in_block(spec.name)].append(spec)
    return found


def _ordered(parts: list[_Part]) -> list[_Part]:
    """Return the changes of a tensor in the order of their content, whatever the order in which LoRAs were added."""
    return sorted(parts, key=lambda part: part.order) if len(parts) > 1 else parts


def _position(target: str) -> tuple[int, str]:
    """Return a sort key that keeps q, k and v in this order."""
    layer = ".".join(target.removesuffix(".weight").split(".")[2:])
    return (list(_SHARED).index(layer) if layer in _SHARED else 0, target)


def _is_in_block(name: str) -> bool:
    return name.startswith("blocks.")


def _input_path(target: str) -> str:
    """Return the path under which the branch of a layer's weight has its `lora_down`."""
    layer = target.removesuffix(".weight")
    if not _is_in_block(layer):
        return layer
    folder, index, inner = layer.split(".", 2)
    return f"{folder}.{index}.{input_of(inner)}"
