"""Slows the GPU down at one side, so that a missing wait shows."""

from dataclasses import replace

import torch
from lightx2v_pack.engine.kernels.attention import SelfAttention


def delayed(function, cycles):
    """Return `function` with so many cycles of GPU time before it."""

    def slow(*arguments, **named):
        torch.cuda._sleep(cycles)
        return function(*arguments, **named)

    return slow


class DelayedAttention(SelfAttention):
    """A self-attention with so many cycles of GPU time before it."""

    def __init__(self, attention, cycles):
        self.prepare = delayed(attention.prepare, cycles)
        self.attend = attention.attend


def delay_attention(blocks, cycles):
    """Let the GPU sleep before each self-attention of the pack's blocks."""
    kernels = blocks.kernels
    in_place = kernels.attention_in_place
    blocks.kernels = replace(
        kernels,
        attention=DelayedAttention(kernels.attention, cycles),
        attention_in_place=None if in_place is None else DelayedAttention(in_place, cycles),
    )


def delay_copies(streamed, cycles):
    """Let the stream of copies sleep before each unit that is brought to the device."""
    packed = streamed._home.packed

    def slow_packed(*arguments):
        with torch.cuda.stream(streamed._copies):
            torch.cuda._sleep(cycles)
        return packed(*arguments)

    streamed._home.packed = slow_packed
