"""The blocks of Wan2.1's transformer, for both engines: three phases each, computed in one workspace.

    x += gate0 * self_attention(norm(x) * (1 + scale0) + shift0)
    x += cross_attention(norm(x) * weight + bias)
    x += gate1 * feed_forward(norm(x) * (1 + scale1) + shift1)

The six vectors are the block's `modulation` plus the projected time. A phase leaves the output of its last linear in
the workspace, and the next one adds it to x in the same pass that normalises x. Weights come under their native names.
Source: Wan2.1 wan/modules/model.py (WanAttentionBlock).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ...logic.checkpoint_formats import WanArchitecture
from ..streaming import Conveyor, Unit
from .kernels import Inputs, Kernels, Weights
from .ops import Rotary
from .workspace import Workspace, release_memory

EPS = 1e-6
# Keys and values of a prompt of so many rows at most are kept for all blocks: 105 MiB at 40 blocks of width 5120.
MAX_KEPT_ROWS = 129


class Text:
    """The text rows of a prompt, and each block's keys and values of them, computed once.

    Rows after the last that is not zero are padding and all alike, so that one of them stands for the others.
    """

    def __init__(self, context: torch.Tensor, embed: Callable[[torch.Tensor], torch.Tensor], kernels: Kernels) -> None:
        """Args: context: [rows, text_dim]; embed: turns its first rows into [rows, D] BF16 on the compute device."""
        self.context = context
        used = context.ne(0).any(dim=1).nonzero()
        last = int(used[-1]) if len(used) else -1
        # Text rows, then the one that counts `repeats` times: padding, or the last text row itself.
        num_rows = min(last + 2, len(context))
        self.repeats = len(context) - num_rows + 1
        rows, dtype = embed(context[:num_rows]), kernels.quantised
        self.inputs: Inputs = (rows, None)
        if dtype is not None:
            scales = rows.new_empty(num_rows, 1, dtype=torch.float32)
            self.inputs = kernels.quantise(rows, rows.new_empty(rows.shape, dtype=dtype), scales)
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = {} if num_rows <= MAX_KEPT_ROWS else None


@dataclass
class Pass:
    """One forward pass: what its blocks share."""

    kernels: Kernels
    workspace: Workspace
    num_heads: int
    rotary: Rotary
    time: torch.Tensor
    """[6, D] fp32, with 1 added to the rows that scale."""
    text: Text
    modulation: torch.Tensor
    """[6, D] fp32 of the current block."""

    def split_heads(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows [N, D] as [N, heads, head_dim]."""
        return rows.view(len(rows), self.num_heads, -1)


def self_attention(block: int, weights: Weights, run: Pass) -> None:
    """Compute the first phase; leaves its output in the workspace's first part."""
    kernels, work = run.kernels, run.workspace
    run.modulation = (weights["modulation"] + run.time).view(6, -1)
    shift, scale = run.modulation[0], run.modulation[1]
    kernels.ops.norm(work.hidden, scale, shift, EPS, work.inputs, work.scales)
    heads = []
    for name, part in zip(("q", "k", "v"), work.parts, strict=True):
        kernels.linear((work.inputs, work.scales), weights, f"self_attn.{name}", part)
        if name != "v":
            norm = weights[f"self_attn.norm_{name}.weight"]
            kernels.ops.rms_rotary(part, norm, EPS, run.num_heads, run.rotary)
        heads.append(run.split_heads(part)[None])
    out = kernels.attention(*heads)[0].flatten(1)
    kernels.linear(kernels.quantise(out, work.inputs, work.scales), weights, "self_attn.o", work.parts[0])


def cross_attention(block: int, weights: Weights, run: Pass) -> None:
    """Compute the second phase; leaves its output in the workspace's first part."""
    kernels, work = run.kernels, run.workspace
    change, q, out = work.parts
    norm = (weights["norm3.weight"].float(), weights["norm3.bias"].float())
    kernels.ops.residual_norm(work.hidden, change, run.modulation[2], *norm, EPS, work.inputs, work.scales)
    kernels.linear((work.inputs, work.scales), weights, "cross_attn.q", q)
    kernels.ops.rms_rotary(q, weights["cross_attn.norm_q.weight"], EPS, run.num_heads, None)
    k, v = _keys_values(block, weights, run)
    heads = [run.split_heads(part) for part in (q, k, v, out)]
    kernels.ops.cross_attention(heads[0], heads[1], heads[2], run.text.repeats, heads[3])
    kernels.linear(kernels.quantise(out, work.inputs, work.scales), weights, "cross_attn.o", change)


def feed_forward(block: int, weights: Weights, run: Pass) -> None:
    """Compute the third phase, in row chunks; x is then whole."""
    kernels, work = run.kernels, run.workspace
    shift, scale, gate = run.modulation[3], run.modulation[4], run.modulation[5]
    kernels.ops.residual_norm(work.hidden, work.parts[0], None, scale, shift, EPS, work.inputs, work.scales)
    for chunk in work.chunks:
        scales = None if work.scales is None else work.scales[chunk.rows]
        kernels.linear((work.inputs[chunk.rows], scales), weights, "ffn.0", chunk.wide)
        kernels.ops.gelu(chunk.wide, chunk.inputs, chunk.scales)
        kernels.linear((chunk.inputs, chunk.scales), weights, "ffn.2", chunk.out)
        kernels.ops.residual(work.hidden[chunk.rows], chunk.out, gate)


_PHASES = (self_attention, cross_attention, feed_forward)


class Blocks:
    """The blocks of a loaded transformer; owns their workspace and what is kept of the text."""

    def __init__(
        self, units: Sequence[Unit], conveyor: Conveyor, sizes: WanArchitecture, kernels: Kernels, device: torch.device
    ) -> None:
        """Args: units: in the order of compute, as `conveyor` has them."""
        self.conveyor = conveyor
        self.kernels = kernels
        self._units = units
        self._sizes = sizes
        self._device = device
        self._workspace: Workspace | None = None
        self._text: Text | None = None

    def workspace(self, tokens: int) -> Workspace:
        """Return the memory for a clip of so many tokens; `hidden` is to be filled, then `run` called."""
        if self._workspace is None or self._workspace.tokens != tokens:
            # Before the next one is made, and from torch's cache too, which would hold both.
            self._workspace = None
            release_memory(self._device)
            sizes = (self._sizes.dim, self._sizes.ffn_dim)
            self._workspace = Workspace(tokens, *sizes, self.kernels.quantised, self._device)
        return self._workspace

    def text(self, context: torch.Tensor, embed: Callable[[torch.Tensor], torch.Tensor]) -> Text:
        """Return what is kept of a prompt's rows; what there was of another prompt is dropped. See Text."""
        if self._text is None or self._text.context is not context:
            self._text = None
            self._text = Text(context, embed, self.kernels)
        return self._text

    def rest(self) -> None:
        """Drop the workspace and what is kept of the text."""
        self._workspace = self._text = None

    def run(self, workspace: Workspace, rotary: Rotary, time: torch.Tensor, text: Text) -> None:
        """Run all blocks on `workspace.hidden`, in place.

        Args:
            rotary: of the clip's tokens.
            time: [6, D], the time projection.
            text: of the clip's prompt.
        """
        time = time.float().clone()
        time[1::3] += 1
        run = Pass(self.kernels, workspace, self._sizes.num_heads, rotary, time, text, modulation=time)
        for index, unit in enumerate(self._units):
            with self.conveyor.unit(index) as weights:
                for phase in unit.phases:
                    _PHASES[phase](unit.block, weights, run)


def _keys_values(block: int, weights: Weights, run: Pass) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a block's keys and values [rows, D] of the text."""
    text, kernels = run.text, run.kernels
    if text.kept is not None and block in text.kept:
        return text.kept[block]
    shape = text.inputs[0].shape
    k, v = (text.inputs[0].new_empty(shape, dtype=torch.bfloat16) for _ in range(2))
    kernels.linear(text.inputs, weights, "cross_attn.k", k)
    kernels.ops.rms_rotary(k, weights["cross_attn.norm_k.weight"], EPS, run.num_heads, None)
    kernels.linear(text.inputs, weights, "cross_attn.v", v)
    if text.kept is not None:
        text.kept[block] = (k, v)
    return k, v
