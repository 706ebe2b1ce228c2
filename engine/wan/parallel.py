"""Self-attention where each of several GPUs has some rows of a clip: rows are exchanged for heads, and back (Ulysses).

Everything else in a block goes by rows and knows nothing of the others.

Source of the method: DeepSpeed-Ulysses (arXiv 2309.14509).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from ..kernels.attention import Pair, SelfAttention
from ..kernels.ops import Rotary

# Heads of a rank attend in so many parts.
_PARTS = 2


class Exchange(Protocol):
    """One rank's view of the ranks that compute a clip together."""

    rank: int
    size: int

    def rows(self, tokens: int) -> slice:
        """Return this rank's tokens."""

    def heads(self, count: int) -> slice:
        """Return this rank's heads."""

    def to_heads(self, part: torch.Tensor, tokens: int) -> Callable[[], torch.Tensor]:
        """Start to exchange this rank's rows [rows, H, D] of all heads for all rows of its heads.

        Returns:
            what waits for [tokens, heads, D]; `part` may be overwritten then.
        """

    def share(self, heads: slice, index: int, parts: int) -> slice:
        """Return which of a rank's heads, counted from its first, are in one of so many parts."""

    def to_rows(
        self, part: torch.Tensor, num_heads: int, out: torch.Tensor, share: tuple[int, int]
    ) -> Callable[[], None]:
        """Start to exchange all rows of some of this rank's heads for this rank's rows of all ranks' such heads.

        Args:
            part: [tokens, heads, D]; may not be overwritten before the wait.
            num_heads: of all ranks.
            out: [rows, num_heads, D], takes them where what is returned is called.
            share: which part of each rank's heads, and of how many; see `share`.
        """

    def gather(self, part: torch.Tensor, tokens: int) -> torch.Tensor:
        """Return all ranks' rows [tokens, ...] of what this rank has its rows [rows, ...] of."""

    def begin_pass(self) -> None:
        """Say that a pass begins."""

    def check_block(self) -> None:
        """Called before every block: raises on every rank before the same one, where one rank is to stop."""

    def end_pass(self) -> None:
        """Say that a pass has ended."""


class Ulysses(SelfAttention):
    """Self-attention of a rank's rows to the rows of all."""

    def __init__(self, inner: SelfAttention, exchange: Exchange) -> None:
        self._inner = inner
        self._exchange = exchange
        self._started: dict[str, Callable[[], torch.Tensor]] = {}
        """What is on its way to other ranks: q, k, v."""

    def start(self, name: str, part: torch.Tensor, rotary: Rotary) -> None:
        """Send rows away while the next linear computes; see SelfAttention."""
        if name == "v" or self._inner.leaves_rows:
            self._started[name] = self._exchange.to_heads(part, len(rotary.cos))

    def prepare(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, norms: Pair, eps: float, rotary: Rotary
    ) -> Any:
        """See SelfAttention; q, k and v are the rank's rows, and `rotary` has the angles of all."""
        exchange, tokens, count = self._exchange, len(rotary.cos), q.shape[1]
        rows, heads = exchange.rows(tokens), exchange.heads(count)
        own = Rotary(rotary.cos[rows], rotary.sin[rows])
        factors = self._inner.measure_rows(q, k, norms, eps, own)
        if factors is not None:
            factors = exchange.gather(factors, tokens)
        for name, part in (("q", q), ("k", k), ("v", v)):
            if name not in self._started:
                self._started[name] = exchange.to_heads(part, tokens)
        all_q, all_k, all_v = (self._started.pop(name)() for name in "qkv")
        columns = slice(heads.start * q.shape[2], heads.stop * q.shape[2])
        own_norms = (norms[0][columns], norms[1][columns])
        # With fewer heads than ranks some have none.
        has_heads = heads.stop > heads.start
        inputs = self._inner.prepare_heads(all_q, all_k, all_v, own_norms, factors, eps, rotary) if has_heads else None
        return inputs, all_v, v

    def attend(self, prepared: Any) -> torch.Tensor:
        inputs, values, out = prepared
        exchange, count = self._exchange, out.shape[1]
        own = exchange.heads(count)
        # The same on every rank, as each part is exchanged by all of them.
        parts = max(1, min(_PARTS, count // exchange.size))
        waits = []
        for index in range(parts):
            # While the first heads' rows travel, the others attend.
            found = values
            if inputs is not None:
                mine = inputs if parts == 1 else self._inner.of_heads(inputs, exchange.share(own, index, parts))
                found = self._inner.attend(mine)
            waits.append(exchange.to_rows(found, count, out, (index, parts)))
        for wait in waits:
            wait()
        result: torch.Tensor = out
        return result
