"""Slows the GPU down at one side, so that a missing wait shows."""

from dataclasses import replace

import torch


def delayed(function, cycles):
    """Return `function` with so many cycles of GPU time before it."""

    def slow(*arguments, **named):
        torch.cuda._sleep(cycles)
        return function(*arguments, **named)

    return slow


def delay_attention(blocks, cycles):
    """Let the GPU sleep before each self-attention of the pack's blocks."""
    kernels = blocks.kernels
    blocks.kernels = replace(kernels, self_attention=delayed(kernels.self_attention, cycles))


def delay_copies(streamed, cycles):
    """Let the stream of copies sleep before each unit that is brought to the device."""
    packed = streamed._home.packed

    def slow_packed(*arguments):
        with torch.cuda.stream(streamed._copies):
            torch.cuda._sleep(cycles)
        return packed(*arguments)

    streamed._home.packed = slow_packed
