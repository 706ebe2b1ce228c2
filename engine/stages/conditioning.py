"""Conditioning rows as the transformer wants them: exactly 512, zero after the last token."""

from __future__ import annotations

import logging

import torch

from ..constants import TEXT_ROWS

logger = logging.getLogger(__name__)

# Widths other text encoders produce, to say where a wrong conditioning comes from.
_KNOWN_WIDTHS = {768: "SD 1.5 (CLIP-L)", 1024: "SD 2 (CLIP-H)", 1280: "CLIP-G", 2048: "SDXL", 3584: "Qwen2.5-VL"}


def fit_rows(conditioning: torch.Tensor, text_dim: int) -> torch.Tensor:
    """Cut or zero-pad text rows to [k, 512, text_dim].

    Args:
        conditioning: [n, text_dim] or [k, n, text_dim].
        text_dim: the width the transformer expects.

    Raises:
        ValueError: wrong rank or width.
    """
    found = f"conditioning has shape {list(conditioning.shape)}"
    expected = f"expected [1, up to {TEXT_ROWS}, {text_dim}] from UMT5-XXL"
    remedy = "Use 'LightX2V Text Encode', or CLIPLoader with type 'wan' and a umt5_xxl file."
    if conditioning.ndim not in (2, 3) or not conditioning.numel():
        raise ValueError(f"{found}; {expected}. {remedy}")
    if conditioning.shape[-1] != text_dim:
        source = _KNOWN_WIDTHS.get(conditioning.shape[-1])
        guess = f" Width {conditioning.shape[-1]} is that of {source}." if source else ""
        raise ValueError(f"{found}; {expected}.{guess} {remedy}")
    rows = conditioning if conditioning.ndim == 3 else conditioning[None]
    extra = rows.shape[1] - TEXT_ROWS
    if extra > 0:
        logger.warning("LightX2V: conditioning has %d rows; the last %d are cut.", rows.shape[1], extra)
    return torch.nn.functional.pad(rows, (0, 0, 0, -extra))
