"""Prompt to text conditioning: the rows the transformer was trained to read."""

from __future__ import annotations

import logging
import re

import torch

from ..constants import TEXT_ROWS
from ..interfaces import Hooks
from ..sentences.stages import Stages
from ..umt5.encoder import Umt5Encoder

logger = logging.getLogger(__name__)

# What other models' prompts have: (word:1.3), and not (at 10:30) or (16:9).
_WEIGHT = re.compile(r"\([^()\n]*[^()\d\s]\s*:\s*[+-]?(\d(\.\d*)?|\.\d+)\s*\)")
# <lora:name:0.8>, as other programs load files by.
_TAG = re.compile(r"<\s*(lora|lyco|lycoris|hypernet)\s*:[^<>\n]*>", re.IGNORECASE)


def encode_prompt(encoder: Umt5Encoder, text: str, hooks: Hooks) -> torch.Tensor:
    """Encode a prompt with a loaded text encoder.

    Only real tokens are encoded: padding is masked in every layer and positions are relative, so padding the tokens
    would give the same rows at many times the cost. A prompt over 512 tokens is cut with a warning and keeps its end
    token, as Wan's tokenizer does. An empty prompt is its end token alone.

    Returns:
        [1, 512, text_dim] float32 on the CPU; rows after the last token are exactly zero.
    """
    tag = _TAG.search(text)
    if tag:
        logger.warning("LightX2V: %s", Stages.TAG_IS_TEXT(tag=tag[0][:60]))
    if _WEIGHT.search(text):
        logger.warning("LightX2V: %s", Stages.WEIGHTS_ARE_TEXT())
    token_ids = encoder.tokenize(text)
    if len(token_ids) > TEXT_ROWS:
        logger.warning(
            "LightX2V: %s",
            Stages.LONG_PROMPT(num_tokens=len(token_ids), num_rows=TEXT_ROWS, num_ignored=len(token_ids) - TEXT_ROWS),
        )
        token_ids = [*token_ids[: TEXT_ROWS - 1], token_ids[-1]]
    rows = encoder.encode_tokens(token_ids, hooks)
    padded = torch.zeros(1, TEXT_ROWS, rows.shape[-1])
    padded[0, : len(rows)] = rows
    return padded
