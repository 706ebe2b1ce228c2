"""The blocks of Wan2.1's transformer: three phases each, computed in one workspace.

    x += gate0 * self_attention(norm(x) * (1 + scale0) + shift0)
    x += cross_attention(norm(x) * weight + bias), to the text, and to an image where the model has weights for it
    x += gate1 * feed_forward(norm(x) * (1 + scale1) + shift1)

The six vectors are the block's `modulation` plus the projected time. A phase leaves the output of its last linear in
the workspace, and the next one, of this block or another, adds it to x in the same pass that normalizes x. Weights
come under their native names.
Source: Wan2.1 wan/modules/model.py (WanAttentionBlock).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from ..checkpoints.formats import WanArchitecture
from ..interfaces import Conditioning
from ..kernels.ops import Rotary
from ..lora.placed import PlacedLoras
from ..memory.activations import TEXT_ROWS_KEPT, branch_room
from ..offload import ExpertUnits, OnceUnits, Unit, WeightStreamer
from ..system import release_memory
from .image import Image
from .kernels import EPS, Inputs, Kernels, Weights
from .workspace import ClipMemory, Workspace

# Keys are filled up to a multiple of this where their weights are an operand of a BF16 matmul.
KEYS_MULTIPLE = 8


class Text:
    """The text rows of a prompt, and each block's keys and values of them, computed once.

    Rows after the prompt's are padding and all alike, so that one of them stands for the others.
    """

    def __init__(
        self, conditioning: Conditioning, embed: Callable[[torch.Tensor], torch.Tensor], kernels: Kernels
    ) -> None:
        """Args: embed: turns text rows [rows, text_dim] into [rows, D] BF16 on the compute device."""
        self.conditioning = conditioning
        # Text rows, then the one that counts `repeats` times: padding, or the last text row itself.
        num_rows = min(conditioning.num_text + 1, len(conditioning.text))
        self.repeats = len(conditioning.text) - num_rows + 1
        self.inputs: Inputs = kernels.inputs_of(embed(conditioning.text[:num_rows]))
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = {} if num_rows <= TEXT_ROWS_KEPT else None


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
    image: Image | None
    """What the blocks attend to beside the text."""
    check_interrupt: Callable[[], None]
    modulation: torch.Tensor
    """[6, D] fp32 of the current block."""
    change: tuple[torch.Tensor, torch.Tensor | None] | None = None
    """What the last phase found: rows [N, D], and the gate [D] with which they are to be added to x."""

    def norm(self, mul: torch.Tensor, add: torch.Tensor) -> None:
        """Add the last change to x, and write the norm of x, times mul plus add, where linears take it from."""
        ops, work = self.kernels.ops, self.workspace
        if self.change is None:
            ops.norm(work.hidden, mul, add, EPS, work.inputs, work.scales)
        else:
            ops.residual_norm(work.hidden, *self.change, mul, add, EPS, work.inputs, work.scales)

    def split_heads(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows [N, D] as [N, heads, head_dim]."""
        return rows.view(len(rows), self.num_heads, -1)


def self_attention(block: int, weights: Weights, run: Pass) -> None:
    """Compute the first phase."""
    kernels, work = run.kernels, run.workspace
    run.modulation = (weights["modulation"] + run.time).view(6, -1)
    run.norm(run.modulation[1], run.modulation[0])
    q, k, v = (run.split_heads(part) for part in work.parts)
    attention = kernels.attention_for(q)

    def start(name: str, out: torch.Tensor) -> None:
        attention.start(name.removeprefix("self_attn."), run.split_heads(out), run.rotary)

    outs = {f"self_attn.{name}": part for name, part in zip("qkv", work.parts, strict=True)}
    kernels.linears((work.inputs, work.scales), weights, outs, start)
    norms = (weights["self_attn.norm_q.weight"], weights["self_attn.norm_k.weight"])
    out = attention.attend(attention.prepare(q, k, v, norms, EPS, run.rotary)).flatten(1)
    kernels.linear(kernels.quantize(out, work.inputs, work.scales), weights, "self_attn.o", work.parts[0])
    run.change = (work.parts[0], run.modulation[2])


def cross_attention(block: int, weights: Weights, run: Pass) -> None:
    """Compute the second phase."""
    kernels, work = run.kernels, run.workspace
    change, q, _ = work.parts
    run.norm(weights["norm3.weight"].float(), weights["norm3.bias"].float())
    kernels.linear((work.inputs, work.scales), weights, "cross_attn.q", q)
    # The RMS norm of q without a pass that writes it: its weight is in the keys, its factors go to the attention.
    factors = q.new_empty(len(q), dtype=torch.float32)
    kernels.ops.row_factors(q, EPS, factors)
    k, v = (run.split_heads(part) for part in _keys_values(block, weights, run))
    # Half the columns: a BF16 matmul takes about twice the time of an 8-bit one. An image's are always too many.
    is_short = run.image is None and run.num_heads * _padded(len(k)) <= q.shape[1] // 2
    attend = _attend_to_outputs if is_short else _attend_to_values
    attend(block, factors, k, v, weights, run)
    run.change = (change, None)


def feed_forward(block: int, weights: Weights, run: Pass) -> None:
    """Compute the third phase, in row chunks."""
    kernels, work = run.kernels, run.workspace
    run.norm(run.modulation[4], run.modulation[3])
    for chunk in work.chunks:
        scales = None if work.scales is None else work.scales[chunk.rows]
        kernels.linear((work.inputs[chunk.rows], scales), weights, "ffn.0", chunk.wide)
        kernels.ops.gelu(chunk.wide, chunk.inputs, chunk.scales)
        kernels.linear((chunk.inputs, chunk.scales), weights, "ffn.2", work.output[chunk.rows])
    run.change = (work.output, run.modulation[5])


_PHASES = (self_attention, cross_attention, feed_forward)


class Blocks:
    """The blocks of a loaded transformer; owns their workspace and what is kept of text and image."""

    def __init__(
        self,
        units: Sequence[Unit],
        streamer: WeightStreamer | ExpertUnits,
        sizes: WanArchitecture,
        kernels: Kernels,
        device: torch.device,
        image_weights: OnceUnits | None = None,
        memory: ClipMemory | None = None,
    ) -> None:
        """Args:
        units: in the order of compute, as `streamer` has them.
        image_weights: for models that attend to an image.
        memory: that other experts use too.
        """
        self.streamer = streamer
        self.kernels = kernels
        self.units = units
        self._loras = PlacedLoras()
        self._sizes = sizes
        self.device = device
        self.memory = memory or ClipMemory()
        self._image_weights = image_weights
        self._text: Text | None = None
        self._image: Image | None = None

    def workspace(self, tokens: int) -> Workspace:
        """Return the memory for a clip of so many tokens; `hidden` is to be filled, then `run` called."""
        room = branch_room(self._loras.rank, joins_loras=self.kernels.joins_loras)
        if self.memory.workspace is None or self.memory.workspace.size != (tokens, room):
            # Before the next one is made, and from torch's cache too, which would hold both.
            self.memory.workspace = None
            release_memory(self.device)
            sizes = (self._sizes.dim, self._sizes.ffn_dim)
            self.memory.workspace = Workspace(tokens, *sizes, self.kernels.quantized, self.device, room)
        return self.memory.workspace

    def text(self, conditioning: Conditioning, embed: Callable[[torch.Tensor], torch.Tensor]) -> Text:
        """Return what is kept of a prompt's rows; what there was of another prompt is dropped. See Text."""
        if self._text is None or self._text.conditioning is not conditioning:
            self._text = None
            self._text = Text(conditioning, embed, self.kernels)
        return self._text

    def image(self, tokens: torch.Tensor | None, embed: Callable[[torch.Tensor], torch.Tensor]) -> Image | None:
        """Return what is kept of the rows of an image; what there was of another one is dropped. See Image."""
        if tokens is None or self._image_weights is None:
            return None
        if self._image is None or not torch.equal(self._image.tokens, tokens):
            self._drop_image()
            loras = self._loras.image_weights
            weights = [self._image_weights] if loras is None else [self._image_weights, loras]
            self._image = Image(tokens, embed, self.kernels, weights)
        return self._image

    @property
    def loras(self) -> PlacedLoras:
        """What is added to the weights. Setting it drops what is kept of text and image, computed with another."""
        return self._loras

    @loras.setter
    def loras(self, placed: PlacedLoras) -> None:
        self._loras, self._text = placed, None
        self._drop_image()

    @property
    def moved_bytes(self) -> int:
        """Copied to the device so far."""
        image = self._image_weights.moved_bytes if self._image_weights else 0
        return self.streamer.moved_bytes + self._loras.moved_bytes + image

    def release_workspace(self) -> None:
        """Drop the workspace and what is kept of the text; what is kept of an image goes to RAM."""
        self.memory.release()
        self.forget_text()
        if self._image is not None:
            self._image.rest()

    def forget_text(self) -> None:
        """Drop what is kept of the text."""
        self._text = None

    def close(self) -> None:
        """Give back all memory and end all threads."""
        self._drop_image()
        self._loras.close()
        self.streamer.close()

    def _drop_image(self) -> None:
        image, self._image = self._image, None
        if image is not None:
            image.close()

    def run(self, workspace: Workspace, rotary: Rotary, time: torch.Tensor, text: Text, image: Image | None) -> None:
        """Run all blocks on `workspace.hidden`, in place.

        Args:
            rotary: of the clip's tokens.
            time: [6, D], the time projection.
            text: of the clip's prompt.
            image: of the clip, for models that attend to one.
        """
        time = time.float().clone()
        time[1::3] += 1
        check, heads = self.streamer.check_interrupt, self._sizes.num_heads
        run = Pass(self.kernels, workspace, heads, rotary, time, text, image, check, modulation=time)
        for index, unit in enumerate(self.units):
            with self.streamer.unit(index) as stored, self._loras.unit(index, stored) as weights:
                for phase in unit.phases:
                    _PHASES[phase](unit.block, weights, run)
        assert run.change is not None
        self.kernels.ops.residual(workspace.hidden, *run.change)


def _attend_to_values(
    block: int, factors: torch.Tensor, k: torch.Tensor, v: torch.Tensor, weights: Weights, run: Pass
) -> None:
    """Attend from q to the text, and by itself to the image, then apply the layer o to the sum."""
    kernels, work = run.kernels, run.workspace
    change, q, out = work.parts
    kernels.ops.cross_attention(run.split_heads(q), factors, k, v, run.text.repeats, run.split_heads(out))
    if run.image is not None:
        norm = weights["cross_attn.norm_q.weight"]
        parts = run.image.keys_values(block, norm, run.num_heads, run.check_interrupt)
        k, v = (run.split_heads(part) for part in parts)
        kernels.ops.add_cross_attention(run.split_heads(q), factors, k, v, run.split_heads(out))
    kernels.linear(kernels.quantize(out, work.inputs, work.scales), weights, "cross_attn.o", change)


def _attend_to_outputs(
    block: int, factors: torch.Tensor, k: torch.Tensor, v: torch.Tensor, weights: Weights, run: Pass
) -> None:
    """Do the same for a text alone, with the layer o applied to the few rows of v.

    sum(P_h V_h) O_h^T is sum(P_h (V_h O_h^T)).
    The sum over heads is a matmul of all heads' attention weights side by side, and nothing is quantized.
    """
    change, q, out = run.workspace.parts
    columns = _padded(len(k))
    shares = out.flatten()[: len(q) * run.num_heads * columns].view(len(q), run.num_heads, columns)
    run.kernels.ops.cross_weights(run.split_heads(q), factors, k, run.text.repeats, shares)
    v = functional.pad(v, (0, 0, 0, 0, 0, columns - len(v)))
    outputs = run.kernels.linear_of_heads(v, weights, "cross_attn.o").flatten(0, 1)
    torch.addmm(weights["cross_attn.o.bias"], shares.flatten(1), outputs, out=change)


def _padded(keys: int) -> int:
    return -(-keys // KEYS_MULTIPLE) * KEYS_MULTIPLE


def _keys_values(block: int, weights: Weights, run: Pass) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a block's keys and values [rows, D] of the text, the keys times the weight of the queries' norm."""
    text = run.text
    if text.kept is not None and block in text.kept:
        return text.kept[block]
    made = run.kernels.keys_values(text.inputs, weights, weights["cross_attn.norm_q.weight"], run.num_heads)
    if text.kept is not None:
        text.kept[block] = made
    return made
