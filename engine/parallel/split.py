"""Which rows, heads and columns of a clip are whose, and what several GPUs gain: plain arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

from ..sentences.gpus import Gpus

# Rows are dealt in blocks of so many, so that what is quantized together is on one GPU.
ROW_BLOCK = 128
# GPUs that compute a clip together.
MOST_RANKS = 8
# Of the decoder's last part a pixel sees so many latent cells on each side: with a halo of 7 columns the frames are
# those of one GPU bit for bit, with 6 they differ by 2e-7, with 4 by 5e-4 (random weights).
HALO_COLUMNS = 7
_BF16_BYTES = 2
# q, k, v and the attention's result.
_EXCHANGED = 4


def split_evenly(count: int, parts: int) -> list[slice]:
    """Return runs of 0 .. count, as equal as they can be, the longer ones first."""
    sizes = [count // parts + (index < count % parts) for index in range(parts)]
    return [slice(start, end) for start, end in pairwise(accumulate(sizes, initial=0))]


def split_rows(tokens: int, ranks: int) -> list[slice]:
    """Return each rank's tokens: whole blocks of 128, or single ones where there are fewer blocks than ranks.

    Raises:
        ValueError: there are fewer tokens than ranks.
    """
    if tokens < ranks:
        raise ValueError(Gpus.TOO_FEW_TOKENS(tokens=tokens, ranks=ranks))
    blocks = -(-tokens // ROW_BLOCK)
    block = ROW_BLOCK if blocks >= ranks else 1
    runs = split_evenly(-(-tokens // block), ranks)
    return [slice(min(run.start * block, tokens), min(run.stop * block, tokens)) for run in runs]


def length(run: slice) -> int:
    """Return how many a run has."""
    return int(run.stop - run.start)


def most_rows(tokens: int, ranks: int) -> int:
    """Return the rows of the rank that has most of them; of a clip that is too small for so many, 1."""
    return max(map(length, split_rows(max(tokens, ranks), ranks)))


def with_halo(columns: slice, count: int) -> slice:
    """Return columns of latents with what their frames depend on beside them."""
    return slice(max(columns.start - HALO_COLUMNS, 0), min(columns.stop + HALO_COLUMNS, count))


def widest_part(columns: int, ranks: int) -> int:
    """Return the most columns that a rank decodes, its halo included."""
    parts = [with_halo(part, columns) for part in split_evenly(columns, ranks)]
    return max(map(length, parts))


def sent_bytes(tokens: int, dim: int, ranks: int) -> int:
    """Return the bytes that a rank sends in a block."""
    return _EXCHANGED * tokens * dim * _BF16_BYTES * (ranks - 1) // ranks**2


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What a number of GPUs gives, computed."""

    ranks: int
    speedup: float
    """Times as fast as one GPU, where nothing of the exchange is hidden behind computing."""
    hidden: float
    """The same where half of it is."""


def gain(
    tokens: int, dim: int, ranks: int, *, block_seconds: float, link_bytes: float, serial_share: float = 0.005
) -> Gain:
    """Return what several GPUs give.

    Args:
        tokens, dim: of the clip and the transformer.
        ranks: GPUs.
        block_seconds: of a block on one GPU.
        link_bytes: that a GPU sends a second while it receives as many.
        serial_share: of a block's seconds that every GPU spends alike.
    """
    alike = block_seconds * serial_share
    shared = (block_seconds - alike) * most_rows(tokens, ranks) / tokens
    sending = sent_bytes(tokens, dim, ranks) / link_bytes
    return Gain(
        ranks=ranks,
        speedup=block_seconds / (alike + shared + sending),
        hidden=block_seconds / (alike + shared + sending / 2),
    )
