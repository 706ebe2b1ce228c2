"""Prompt to text conditioning: the rows the transformer was trained to read."""

from __future__ import annotations

import re

import torch

from ..constants import TEXT_ROWS
from ..interfaces import Hooks
from ..sentences.stages import Stages
from ..umt5.encoder import Umt5Encoder

# What other models' prompts have: (word:1.3), and not (at 10:30) or (16:9).
_WEIGHT = re.compile(r"\([^()\n]*[^()\d\s]\s*:\s*[+-]?(\d(\.\d*)?|\.\d+)\s*\)")
# <lora:name:0.8>, as other programs load files by.
_TAG = re.compile(r"<\s*(lora|lyco|lycoris|hypernet)\s*:[^<>\n]*>", re.IGNORECASE)


def encode_prompt(encoder: Umt5Encoder, text: str, hooks: Hooks) -> tuple[torch.Tensor, list[str]]:
    """Encode a prompt with a loaded text encoder.

    Only real tokens are encoded: padding is masked in every layer and positions are relative, so padding the tokens
    would give the same rows at many times the cost. A prompt over 512 tokens is cut and keeps its end token, as Wan's
    tokenizer does. An empty prompt is its end token alone.

    Returns:
        Rows [1, 512, text_dim] float32 on the CPU; those after the last token are exactly zero. What of the prompt does
        not do what it may be meant to, a sentence each.
    """
    token_ids = encoder.tokenize(text)
    warnings = _doubts_about(text, len(token_ids))
    if len(token_ids) > TEXT_ROWS:
        token_ids = [*token_ids[: TEXT_ROWS - 1], token_ids[-1]]
    rows = encoder.encode_tokens(token_ids, hooks)
    padded = torch.zeros(1, TEXT_ROWS, rows.shape[-1])
    padded[0, : len(rows)] = rows
    return padded, warnings


def _doubts_about(text: str, num_tokens: int) -> list[str]:
    warnings: list[str] = []
    tag = _TAG.search(text)
    if tag:
        warnings.append(Stages.TAG_IS_TEXT(tag=tag[0][:60]))
    if _WEIGHT.search(text):
        warnings.append(Stages.WEIGHTS_ARE_TEXT())
    if num_tokens > TEXT_ROWS:
        warnings.append(
            Stages.LONG_PROMPT(num_tokens=num_tokens, num_rows=TEXT_ROWS, num_ignored=num_tokens - TEXT_ROWS)
        )
    return warnings
