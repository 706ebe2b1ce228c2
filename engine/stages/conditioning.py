"""Text rows as the transformer wants them: at least 512, zero after the last token, and counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..constants import TEXT_ROWS
from ..inputs import check_finite, check_floats
from ..interfaces import Conditioning
from ..sentences.stages import Stages
from ..sentences.tensors import Tensors

# Widths other text encoders produce, to say where a wrong conditioning comes from.
_KNOWN_WIDTHS = {768: "SD 1.5 (CLIP-L)", 1024: "SD 2 (CLIP-H)", 1280: "CLIP-G", 2048: "SDXL", 3584: "Qwen2.5-VL"}


def of_rows(rows: torch.Tensor, text_dim: int, records: Sequence[Any] = ()) -> list[Conditioning]:
    """Return one conditioning an entry of text rows, which are zero-padded to 512.

    More rows stay, as ComfyUI's Wan attends to them: Conditioning Concat puts one prompt's 512 behind another's.

    Args:
        rows: [n, text_dim] or [k, n, text_dim].
        text_dim: the width the transformer expects.
        records: report records of the stages that made the rows.

    Raises:
        ValueError: wrong rank or width, or NaN among them.
    """
    check_rows(rows, text_dim)
    missing = max(TEXT_ROWS - rows.shape[-2], 0)
    entries = torch.nn.functional.pad(rows, (0, 0, 0, missing)).reshape(-1, rows.shape[-2] + missing, text_dim)
    return [Conditioning(text=entry, num_text=_count_text(entry), records=tuple(records)) for entry in entries.unbind()]


def check_rows(rows: torch.Tensor, text_dim: int, ranks: Sequence[int] = (2, 3)) -> None:
    """Raise where text rows are not what a transformer takes; see of_rows. Args: ranks: how many axes they may have."""
    found = Stages.CONDITIONING_SHAPE(shape=list(rows.shape))
    remedy = Stages.USE_TEXT_ENCODE()
    if rows.ndim not in ranks or not rows.numel():
        raise ValueError(Stages.ODD_CONDITIONING(found=found, rows=TEXT_ROWS, width=text_dim, guess="", remedy=remedy))
    if rows.shape[-1] != text_dim:
        source = _KNOWN_WIDTHS.get(rows.shape[-1])
        guess = Stages.WIDTH_OF(width=rows.shape[-1], source=source) if source else ""
        raise ValueError(
            Stages.ODD_CONDITIONING(found=found, rows=TEXT_ROWS, width=text_dim, guess=guess, remedy=remedy)
        )
    check_floats(rows, Tensors.ROWS(), Tensors.CONNECT_TEXT())
    check_finite(rows, Tensors.ROWS(), Tensors.ENCODE_AGAIN())


def _count_text(entry: torch.Tensor) -> int:
    """Return how many rows there are before the padding, whose rows are zero."""
    used = entry.ne(0).any(dim=1).nonzero()
    return int(used[-1]) + 1 if len(used) else 0
